"""The projector's shapes, pooling and evidence."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fieldguide.errors import GuideError
from fieldguide.model.projector import PictureFeatures, Projector, ProjectorConfig


def config(summary_tokens: int = 1, patch_tokens: int = 0, patches: int = 16) -> ProjectorConfig:
    return ProjectorConfig(patches, 3, 5, 8, 4 if summary_tokens else 0, summary_tokens, patch_tokens)


def features(count: int = 2, patches: int = 16) -> PictureFeatures:
    generator = torch.Generator().manual_seed(0)
    return PictureFeatures(
        torch.randn(count, patches, 3, generator=generator), torch.randn(count, 5, generator=generator)
    )


@pytest.mark.parametrize(
    ("summary_tokens", "patch_tokens"), [(1, 0), (3, 0), (0, 1), (0, 16), (1, 4), (2, 16)]
)
def test_there_are_as_many_tokens_as_asked(summary_tokens: int, patch_tokens: int) -> None:
    sizes = config(summary_tokens, patch_tokens)
    projector = Projector(sizes)
    assert projector(features()).shape == (2, summary_tokens + patch_tokens, 8)
    assert sizes.tokens == summary_tokens + patch_tokens
    parts = {name.split(".")[0] for name, _ in projector.named_parameters()}
    assert parts == ({"table", "bias"} if summary_tokens else set()) | ({"patch"} if patch_tokens else set())


@pytest.mark.parametrize("patch_tokens", [2, 3, 9, 25, 64])
def test_patch_tokens_that_do_not_divide_the_grid_are_refused(patch_tokens: int) -> None:
    with pytest.raises(GuideError, match=f"patch_tokens={patch_tokens} does not divide"):
        Projector(config(patch_tokens=patch_tokens))


def test_a_grid_that_is_no_square_is_refused() -> None:
    with pytest.raises(GuideError, match="grid of 15 patches"):
        Projector(config(patch_tokens=1, patches=15))


@pytest.mark.parametrize(
    ("patch_tokens", "cells"),
    [
        (1, [range(16)]),
        (4, [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]),
        (16, [[i] for i in range(16)]),
    ],
)
def test_a_cell_is_the_mean_of_its_patches(patch_tokens: int, cells: list[list[int]]) -> None:
    projector = Projector(config(patch_tokens=patch_tokens))
    given = features()
    seen = []
    projector.patch.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    projector(given)
    wanted = torch.stack([given.grid[:, list(cell)].mean(1) for cell in cells], dim=1)
    torch.testing.assert_close(seen[0], wanted)  # (2, patch_tokens, 3)


def test_features_are_standardised_and_clipped() -> None:
    projector = Projector(config())
    projector.mean.fill_(1.0)
    projector.scale.fill_(0.5)
    given = features()
    given.grid[0, 0, 0], given.pooled[1, 4] = 1000.0, -1000.0
    flat = projector.standardise(given)
    assert flat.shape == (2, 16 * 3 + 5)
    assert (flat[0, 0], flat[1, -1]) == (10, -10)
    torch.testing.assert_close(flat[1, :48], (given.grid[1].flatten() - 1) / 0.5)
    torch.testing.assert_close(flat[0, 48:], (given.pooled[0] - 1) / 0.5)


def test_given_evidence_takes_the_place_of_the_computed() -> None:
    projector = Projector(config(summary_tokens=2))
    generator = torch.Generator().manual_seed(1)
    for tensor in (
        projector.evidence_map,
        projector.evidence_bias,
        projector.table.data,
        projector.bias.data,
    ):
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    given = features()
    projector.sharpness.fill_(0.7)
    solved = projector.standardise(given) @ projector.evidence_map + projector.evidence_bias
    computed = torch.softmax(0.7 * solved, dim=1)
    torch.testing.assert_close(projector.evidence(given), computed)
    torch.testing.assert_close(projector(given), projector(replace(given, evidence=computed)))
    one_hot = torch.eye(4)[[2, 0]]
    told = projector(replace(given, evidence=one_hot))
    torch.testing.assert_close(told[0], projector.table[:, 2] + projector.bias)
    torch.testing.assert_close(told[1], projector.table[:, 0] + projector.bias)


def test_standardisation_and_evidence_map_are_saved_but_not_trained() -> None:
    projector = Projector(config(patch_tokens=4))
    trained = {name for name, _ in projector.named_parameters()}
    solved = {"mean", "scale", "evidence_map", "evidence_bias", "sharpness"}
    assert not trained & solved
    assert solved <= set(projector.state_dict())


def test_config_survives_json() -> None:
    assert ProjectorConfig(**config(2, 4).to_dict()) == config(2, 4)
