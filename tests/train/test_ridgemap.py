"""The ridge solution as one linear map, and its place in a LLaVA projector."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fieldguide.errors import GuideError
from fieldguide.model.llava import assemble_llava
from fieldguide.testing.hub import tiny_hub
from fieldguide.train.ridgemap import LinearMap, linear_layers, ridge_map, warm_start_projector, write_map

GENERATOR = np.random.default_rng(0)
CENTRES = GENERATOR.normal(size=(3, 32)) * 2
WORDS = GENERATOR.normal(size=(3, 32))


def pictures(count: int = 90) -> tuple[np.ndarray, np.ndarray]:
    targets = np.arange(count) % 3
    return CENTRES[targets] + GENERATOR.normal(size=(count, 32)), targets


def test_pooled_and_shuffled_projectors_carry_a_map_of_what_their_first_layer_reads() -> None:
    for kind, channels in (("pooled", 32), ("shuffled", 128)):
        (vision, pixels), (language, tokenizer) = tiny_hub("clip"), tiny_hub("llama")
        network = assemble_llava(vision, language, tokenizer, pixels, projector=kind).network
        projector = network.model.multi_modal_projector.double()
        solved = LinearMap(
            GENERATOR.normal(size=(channels, 3)), GENERATOR.normal(size=3), GENERATOR.normal(size=(3, 32)), 1
        )
        write_map(projector, solved, GENERATOR.normal(size=(9, channels)))
        read: list[torch.Tensor] = []
        first = linear_layers(projector)[0]
        first.register_forward_pre_hook(lambda module, inputs, read=read: read.append(inputs[0]))
        with torch.no_grad():
            out = projector(torch.from_numpy(GENERATOR.normal(size=(2, 16, 32))))
        assert np.allclose(out.reshape(-1, 32), solved(read[0].reshape(-1, channels).numpy()), atol=1e-9)


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
        assert np.allclose(out, solved(held_out), atol=1e-5)  # in 32 bits
        exact = projector.double()
        write_map(exact, solved, means)
        assert np.allclose(exact(torch.from_numpy(held_out)), solved(held_out), rtol=0, atol=1e-10)
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


def test_a_projector_too_narrow_says_what_it_lost_and_carries_the_rest() -> None:
    targets, words = np.arange(200) % 20, GENERATOR.normal(size=(20, 32))
    means = GENERATOR.normal(size=(20, 32))[targets] * 2 + GENERATOR.normal(size=(200, 32))
    (vision, pixels), (language, tokenizer) = tiny_hub("clip"), tiny_hub("llama")
    projector = assemble_llava(vision, language, tokenizer, pixels).network.model.multi_modal_projector
    said: list[str] = []
    groups = [str(number) for number in range(200)]
    warm_start_projector(
        projector.double(), means, targets, torch.from_numpy(words), groups, said.append
    )  # 2 × 20 units are wanted of 32
    solved = ridge_map(means, targets, words.astype(np.float32), np.arange(200))
    best = solved.cut(16, means)
    with torch.no_grad():
        out = projector(torch.from_numpy(means)[None])[0].numpy()
    assert np.allclose(out, best(means), rtol=0, atol=1e-6)
    assert f"the projector is narrow and keeps {best.kept:.1%} of the map" in said[0]
    assert 0.5 < best.kept < 1


def test_units_that_the_map_leaves_free_can_learn() -> None:
    means, targets = pictures()
    (vision, pixels), (language, tokenizer) = tiny_hub("clip"), tiny_hub("llama")
    projector = assemble_llava(vision, language, tokenizer, pixels).network.model.multi_modal_projector
    write_map(projector, ridge_map(means, targets, WORDS, None), means)
    projector.requires_grad_(True)
    projector(torch.from_numpy(means).float()[None]).square().sum().backward()
    assert (projector.linear_2.weight.grad[:, 6:].abs().sum(0) > 0).all()  # 2 × 3 units carry the map


def test_another_kind_of_projector_is_refused() -> None:
    means, targets = pictures()
    with pytest.raises(GuideError, match="no place for the warm start"):
        write_map(nn.Identity(), ridge_map(means, targets, WORDS, None), means)
