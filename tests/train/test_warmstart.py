"""The closed-form warm start against brute force, and that nothing leaks into left-out evidence."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fieldguide.model.projector import PictureFeatures, Projector, ProjectorConfig
from fieldguide.train import warmstart
from fieldguide.train.warmstart import BIAS, install, label_embeddings, solve, standardise

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def made(count: int, *, labels: int = 3, signal: float = 1.0, seed: int = 0, width: int = 6) -> Arrays:
    """Features (n, 4, width) and (n, 5) around a point a label, and the label numbers."""
    generator = np.random.default_rng(seed)
    targets = generator.permutation(np.arange(count) % labels)
    centres = generator.normal(size=(labels, 4 * width + 5)) * signal
    flat = (centres[targets] + generator.normal(size=(count, 4 * width + 5))).astype(np.float32) * 3 + 2
    return flat[:, : 4 * width].reshape(count, 4, width), flat[:, 4 * width :], targets


def refit(
    grid: np.ndarray, pooled: np.ndarray, targets: np.ndarray, out: list[int], penalty: float, share: float
) -> np.ndarray:
    """What a map says of the pictures `out` that is fitted on all others, in the primal form."""
    flat, _, _ = standardise(grid, pooled)
    cut = grid[0].size
    sizes = [(part**2).sum(1).mean() for part in (flat[:, :cut], flat[:, cut:])]
    weights = np.sqrt([(1 - share) / sizes[0], share / sizes[1]])
    columns = [flat[:, :cut] * weights[0], flat[:, cut:] * weights[1], np.full((len(flat), 1), BIAS**0.5)]
    design = np.concatenate(columns, axis=1)
    count = int(targets.max()) + 1
    wanted = np.eye(count)[targets] - 1 / count
    rest = np.setdiff1d(np.arange(len(flat)), out)
    gram = design[rest].T @ design[rest] + penalty * np.eye(design.shape[1])
    solution = np.linalg.solve(gram, design[rest].T @ wanted[rest])
    return design[out] @ solution + 1 / count


def softmax(values: np.ndarray) -> np.ndarray:
    return np.exp(values) / np.exp(values).sum(1, keepdims=True)


def test_left_out_evidence_is_that_of_refits_without_the_picture() -> None:
    grid, pooled, targets = made(24, signal=0.4)
    start = solve(grid, pooled, targets, 3)
    for i in range(len(targets)):
        alone = refit(grid, pooled, targets, [i], start.penalty, start.pooled_share)
        np.testing.assert_allclose(start.left_out[[i]], softmax(start.sharpness * alone), atol=1e-8)
    assert start.left_out_accuracy == (start.left_out.argmax(1) == targets).mean()
    np.testing.assert_allclose(start.left_out.sum(1), 1)


def test_groups_are_left_out_together() -> None:
    grid, pooled, targets = made(24, signal=0.4)
    groups = np.array([7, 3, 3, 0, 7, 5, 3, 8] + [10 + i for i in range(16)])
    start = solve(grid, pooled, targets, 3, groups)
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group).tolist()
        together = refit(grid, pooled, targets, rows, start.penalty, start.pooled_share)
        np.testing.assert_allclose(start.left_out[rows], softmax(start.sharpness * together), atol=1e-8)
    alone = refit(grid, pooled, targets, [1], start.penalty, start.pooled_share)
    assert abs(start.left_out[1] - softmax(start.sharpness * alone)[0]).max() > 1e-3


def test_sharpness_makes_the_left_out_labels_likeliest() -> None:
    grid, pooled, targets = made(60, signal=0.3)
    start = solve(grid, pooled, targets, 3)
    refits = [refit(grid, pooled, targets, [i], start.penalty, start.pooled_share)[0] for i in range(60)]

    def loss(sharpness: float) -> float:
        return float(-np.log(softmax(sharpness * np.array(refits))[range(60), targets]).mean())

    factors = np.linspace(0.5, 2, 31)
    losses = [loss(start.sharpness * factor) for factor in factors]
    assert abs(factors[int(np.argmin(losses))] - 1) < 0.06
    assert max(losses) > 1.01 * min(losses)


def test_copies_of_a_picture_do_not_tell_its_label_when_grouped() -> None:
    """Each picture twice, labels at random: only leaving both out shows that nothing can be known."""
    grid, pooled, targets = made(30, signal=0.0, seed=1, width=40)
    twice = [np.repeat(array, 2, axis=0) for array in (grid, pooled, targets)]
    assert solve(*twice, 3).left_out_accuracy > 0.9
    assert solve(*twice, 3, np.repeat(np.arange(30), 2)).left_out_accuracy < 0.55


def test_penalty_and_share_have_the_least_left_out_error() -> None:
    grid, pooled, targets = made(30, signal=0.4)
    start = solve(grid, pooled, targets, 3)
    errors = {}
    for penalty in warmstart.PENALTIES:
        for share in warmstart.POOLED_SHARES:
            refits = [refit(grid, pooled, targets, [i], penalty, share)[0] for i in range(30)]
            errors[penalty, share] = float(((np.array(refits) - np.eye(3)[targets]) ** 2).mean())
    assert errors[start.penalty, start.pooled_share] == pytest.approx(min(errors.values()), rel=1e-9)
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
    embeddings = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    install(projector, start, embeddings)
    new_grid, new_pooled, _ = made(7, seed=5)
    features = PictureFeatures(torch.from_numpy(new_grid), torch.from_numpy(new_pooled))
    flat = np.concatenate([new_grid.reshape(7, -1), new_pooled], axis=1)
    solved = np.clip((flat - start.mean) / start.scale, -10, 10) @ start.weights + start.bias
    np.testing.assert_allclose(solved.sum(1), 1, atol=1e-8)
    evidence = softmax(start.sharpness * solved)
    assert start.sharpness > 1.5
    np.testing.assert_allclose(projector.evidence(features).numpy(), evidence, atol=1e-5)
    tokens = projector(features)  # (7, 2, 8), each the evidence-weighted mean of the labels' words
    for place in range(2):
        wanted = torch.from_numpy(evidence).float() @ embeddings[place]
        torch.testing.assert_close(tokens[:, place], wanted, atol=1e-4, rtol=0)


def test_install_without_summary_tokens_sets_the_standardisation() -> None:
    grid, pooled, targets = made(24)
    start = solve(grid, pooled, targets, 3)
    projector = Projector(ProjectorConfig(4, 6, 5, 8, 0, summary_tokens=0, patch_tokens=4))
    install(projector, start, torch.zeros(0, 3, 8))
    np.testing.assert_allclose(projector.mean.numpy(), start.mean, rtol=1e-6)
    np.testing.assert_allclose(projector.scale.numpy(), start.scale, rtol=1e-6)


def test_a_labels_words_are_spread_over_the_places() -> None:
    embedding = torch.arange(12.0).reshape(4, 3)
    table = label_embeddings(embedding, [[1], [0, 2], [3, 1, 0, 2]], 3)
    wanted = [[embedding[1], embedding[0], embedding[3]], [torch.zeros(3), embedding[2], embedding[1]]]
    wanted.append([torch.zeros(3), torch.zeros(3), (embedding[0] + embedding[2]) / 2])
    torch.testing.assert_close(table, torch.stack([torch.stack(place) for place in wanted]))
    (means,) = label_embeddings(embedding, [[1], [0, 2]], 1)
    torch.testing.assert_close(means, torch.stack([embedding[1], (embedding[0] + embedding[2]) / 2]))
