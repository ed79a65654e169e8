"""The ridge solution as one linear map, and its place in a LLaVA projector."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fieldguide.errors import GuideError
from fieldguide.model.llava import assemble_llava
from fieldguide.testing.hub import tiny_hub
from fieldguide.train.ridgemap import LinearMap, ridge_map, write_map

GENERATOR = np.random.default_rng(0)
CENTRES = GENERATOR.normal(size=(3, 32)) * 2
WORDS = GENERATOR.normal(size=(3, 32))


def pictures(count: int = 90) -> tuple[np.ndarray, np.ndarray]:
    targets = np.arange(count) % 3
    return CENTRES[targets] + GENERATOR.normal(size=(count, 32)), targets


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_the_projector_carries_the_map_exactly_and_names_held_out_pictures(kind: str) -> None:
    means, targets = pictures()
    solved = ridge_map(means, targets, WORDS, None)
    assert solved.left_out_accuracy > 0.95
    (vision, pixels), (language, tokenizer) = tiny_hub("clip"), tiny_hub("llama")
    network = assemble_llava(vision, language, tokenizer, pixels, projector=kind).network
    projector = network.model.multi_modal_projector
    assert write_map(projector, solved, means).kept == 1
    held_out, right = pictures()
    with torch.no_grad():
        out = projector(torch.from_numpy(held_out).float()[None])[0].numpy()
    assert np.allclose(out, solved(held_out), atol=1e-5)
    nearest = ((out[:, None] - WORDS[None]) ** 2).sum(2).argmin(1)
    assert (nearest == right).mean() > 0.95


def test_a_narrow_projector_keeps_the_best_map_of_its_rank() -> None:
    means, _ = pictures()
    solved = LinearMap(
        GENERATOR.normal(size=(32, 20)), GENERATOR.normal(size=20), GENERATOR.normal(size=(20, 32)), 0.5
    )
    wide, narrow = solved.cut(20, means), solved.cut(12, means)
    assert wide is solved
    assert narrow.first.shape == (32, 12)
    assert 0.5 < narrow.kept < 1
    missed = ((narrow(means) - solved(means)) ** 2).sum()
    spread = ((solved(means) - solved(means).mean(0)) ** 2).sum()
    assert missed / spread == pytest.approx(1 - narrow.kept, abs=1e-6)


def test_another_kind_of_projector_is_refused() -> None:
    means, targets = pictures()
    with pytest.raises(GuideError, match="no place for the warm start"):
        write_map(nn.Identity(), ridge_map(means, targets, WORDS, None), means)
