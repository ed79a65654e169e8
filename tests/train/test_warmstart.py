"""The closed-form warm start against brute force, and that nothing leaks into left-out evidence."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fieldguide.model.projector import PictureFeatures, Projector, ProjectorConfig
from fieldguide.train import warmstart
from fieldguide.train.warmstart import BIAS, WarmStart, install, label_embeddings, solve, standardise

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def made(count: int, *, labels: int = 3, signal: float = 1.0, seed: int = 0, width: int = 6) -> Arrays:
    """Features (n, 4, width) and (n, 5) around a point a label, and the label numbers."""
    generator = np.random.default_rng(seed)
    targets = generator.permutation(np.arange(count) % labels)
    centres = generator.normal(size=(labels, 4 * width + 5)) * signal
    flat = (centres[targets] + generator.normal(size=(count, 4 * width + 5))).astype(np.float32) * 3 + 2
    return flat[:, : 4 * width].reshape(count, 4, width), flat[:, 4 * width :], targets


def refit(
    grid: np.ndarray, pooled: np.ndarray, targets: np.ndarray, out: list[int], like: WarmStart
) -> np.ndarray:
    """Evidence for the pictures `out`, by a map fitted on all others in the primal form."""
    flat, _, _ = standardise(grid, pooled)
    cut = grid[0].size
    sizes = [(part**2).sum(1).mean() for part in (flat[:, :cut], flat[:, cut:])]
    weights = np.sqrt([(1 - like.pooled_share) / sizes[0], like.pooled_share / sizes[1]])
    columns = [flat[:, :cut] * weights[0], flat[:, cut:] * weights[1], np.full((len(flat), 1), BIAS**0.5)]
    design = np.concatenate(columns, axis=1)
    count = int(targets.max()) + 1
    wanted = np.eye(count)[targets] - 1 / count
    rest = np.setdiff1d(np.arange(len(flat)), out)
    gram = design[rest].T @ design[rest] + like.penalty * np.eye(design.shape[1])
    solution = np.linalg.solve(gram, design[rest].T @ wanted[rest])
    return design[out] @ solution + 1 / count


def test_left_out_evidence_is_that_of_refits_without_the_picture() -> None:
    grid, pooled, targets = made(24)
    start = solve(grid, pooled, targets, 3)
    for i in range(len(targets)):
        np.testing.assert_allclose(start.left_out[[i]], refit(grid, pooled, targets, [i], start), atol=1e-8)
    assert start.left_out_accuracy == (start.left_out.argmax(1) == targets).mean()


def test_groups_are_left_out_together() -> None:
    grid, pooled, targets = made(24)
    groups = np.array([7, 3, 3, 0, 7, 5, 3, 8] + [10 + i for i in range(16)])
    start = solve(grid, pooled, targets, 3, groups)
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group).tolist()
        np.testing.assert_allclose(start.left_out[rows], refit(grid, pooled, targets, rows, start), atol=1e-8)
    alone = refit(grid, pooled, targets, [1], start)
    assert abs(start.left_out[1] - alone[0]).max() > 1e-3


def test_copies_of_a_picture_do_not_tell_its_label_when_grouped() -> None:
    """Each picture twice, labels at random: only leaving both out shows that nothing can be known."""
    grid, pooled, targets = made(30, signal=0.0, seed=1, width=40)
    twice = [np.repeat(array, 2, axis=0) for array in (grid, pooled, targets)]
    assert solve(*twice, 3).left_out_accuracy > 0.9
    assert solve(*twice, 3, np.repeat(np.arange(30), 2)).left_out_accuracy < 0.55


def test_penalty_and_share_have_the_least_left_out_error(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, pooled, targets = made(30, signal=0.4)

    def error(start: WarmStart) -> float:
        return float(((start.left_out - np.eye(3)[targets]) ** 2).mean())

    free = solve(grid, pooled, targets, 3)
    errors = {}
    for penalty in warmstart.PENALTIES:
        for share in warmstart.POOLED_SHARES:
            with monkeypatch.context() as fixed:
                fixed.setattr(warmstart, "PENALTIES", (penalty,))
                fixed.setattr(warmstart, "POOLED_SHARES", (share,))
                errors[penalty, share] = error(solve(grid, pooled, targets, 3))
    assert error(free) == pytest.approx(min(errors.values()), rel=1e-9)
    assert errors[free.penalty, free.pooled_share] == pytest.approx(error(free), rel=1e-9)
    assert max(errors.values()) > 1.02 * min(errors.values())


@pytest.mark.parametrize(("count", "labels", "width"), [(60, 3, 225), (120, 4, 225)])
def test_random_labels_cannot_be_told_from_left_out_evidence(count: int, labels: int, width: int) -> None:
    """Far more features than pictures. Without the constant feature all were right: centring told them."""
    accuracies, ranks = [], []
    for seed in range(6):
        grid, pooled, targets = made(count, labels=labels, signal=0.0, seed=seed, width=width)
        start = solve(grid, pooled, targets, labels)
        accuracies.append(start.left_out_accuracy)
        right = start.left_out[np.arange(count), targets]
        ranks.append((right[:, None] > start.left_out).sum(1).mean() / (labels - 1))
    # A little below chance is right: of what is left, a little less has the label of the one left out.
    assert 1 / labels - 0.1 < np.mean(accuracies) < 1 / labels + 0.08
    assert 0.4 < np.mean(ranks) < 0.6


def test_weights_and_bias_say_what_the_kernel_says() -> None:
    grid, pooled, targets = made(24)
    start = solve(grid, pooled, targets, 3)
    new_grid, new_pooled, _ = made(7, seed=5)
    everything = np.concatenate([grid, new_grid]), np.concatenate([pooled, new_pooled])
    flat = np.concatenate([everything[0].reshape(31, -1), everything[1]], axis=1)
    flat = np.clip((flat - start.mean) / start.scale, -10, 10)
    cut = grid[0].size
    sizes = [(part[:24] ** 2).sum(1).mean() for part in (flat[:, :cut], flat[:, cut:])]
    shares = (1 - start.pooled_share, start.pooled_share)
    kernel = BIAS + sum(
        share * part @ part[:24].T / size
        for share, part, size in zip(shares, (flat[:, :cut], flat[:, cut:]), sizes, strict=True)
    )
    dual = np.linalg.solve(kernel[:24] + start.penalty * np.eye(24), np.eye(3)[targets] - 1 / 3)
    np.testing.assert_allclose(flat @ start.weights + start.bias, kernel @ dual + 1 / 3, atol=1e-8)


def test_a_channel_that_never_varies_is_not_blown_up() -> None:
    grid, pooled, targets = made(24)
    grid[:, 0, 0] = 5.0
    grid[0, 0, 0] += 1e-6
    start = solve(grid, pooled, targets, 3)
    assert start.scale.min() > 0.1
    assert np.isfinite(start.left_out).all()


def test_the_installed_projector_gives_the_evidence() -> None:
    grid, pooled, targets = made(24)
    start = solve(grid, pooled, targets, 3)
    projector = Projector(ProjectorConfig(4, 6, 5, 8, 3, summary_tokens=2, patch_tokens=0))
    torch.nn.init.normal_(projector.bias)
    embeddings = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    install(projector, start, embeddings)
    new_grid, new_pooled, _ = made(7, seed=5)
    features = PictureFeatures(torch.from_numpy(new_grid), torch.from_numpy(new_pooled))
    flat = np.concatenate([new_grid.reshape(7, -1), new_pooled], axis=1)
    wanted = np.clip((flat - start.mean) / start.scale, -10, 10) @ start.weights + start.bias
    np.testing.assert_allclose(projector.evidence(features).numpy(), wanted, atol=1e-5)
    np.testing.assert_allclose(wanted.sum(1), 1, atol=1e-8)
    tokens = projector(features)  # each the evidence-weighted mean of the labels' words
    for token in range(2):
        torch.testing.assert_close(
            tokens[:, token], torch.from_numpy(wanted).float() @ embeddings, atol=1e-4, rtol=0
        )


def test_install_without_summary_tokens_sets_the_standardisation() -> None:
    grid, pooled, targets = made(24)
    start = solve(grid, pooled, targets, 3)
    projector = Projector(ProjectorConfig(4, 6, 5, 8, 0, summary_tokens=0, patch_tokens=4))
    install(projector, start, torch.zeros(3, 8))
    np.testing.assert_allclose(projector.mean.numpy(), start.mean, rtol=1e-6)
    np.testing.assert_allclose(projector.scale.numpy(), start.scale, rtol=1e-6)


def test_a_labels_embedding_is_the_mean_of_its_words() -> None:
    embedding = torch.arange(12.0).reshape(4, 3)
    means = label_embeddings(embedding, [[1], [0, 2], [3, 3, 0]])
    torch.testing.assert_close(means, torch.tensor([[3.0, 4, 5], [3, 4, 5], [6, 7, 8]]))
