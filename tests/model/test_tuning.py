"""What is declared to train trains, and nothing else does."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fieldguide.errors import GuideError, SettingsError
from fieldguide.model.families import family_of
from fieldguide.model.tuning import (
    check_parts,
    choose_attention,
    choose_precision,
    make_optimizer,
    part_modes,
    prepare_parts,
)
from fieldguide.settings import TrainSettings
from fieldguide.testing.hub import KINDS, MARKS, tiny_hub

CPU = torch.device("cpu")
WAYS = (
    {},
    {"language_part": "frozen"},
    {"vision_part": "lora"},
    {"language_part": "full", "projector_part": "lora"},
    {"vision_part": "full", "language_part": "frozen", "projector_part": "frozen"},
)


def inputs(network: torch.nn.Module, kind: str) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 200, (2, 12), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_parts_train_as_declared(kind: str, way: dict[str, str]) -> None:
    settings = dataclasses.replace(TrainSettings(), lora_rank=2, **way)
    network, _ = tiny_hub(kind)
    family = family_of(network.config)
    modes = part_modes(family, settings)
    if set(modes.values()) == {"frozen"}:
        with pytest.raises(GuideError, match="all parts of this model are frozen"):
            prepare_parts(network, family, settings, "base")
        return
    tuned = prepare_parts(network, family, settings, "base")
    for part, mode in modes.items():
        named = [(n, p.requires_grad) for n, p in tuned.named_parameters() if family.part_of(n) == part]
        assert {grad for name, grad in named if "lora_" in name} <= {mode == "lora"}
        assert {grad for name, grad in named if "lora_" not in name} <= {mode == "full"}
        assert any("lora_" in name for name, _ in named) == (mode == "lora")
    again = prepare_parts(tiny_hub(kind)[0], family, settings, "base")
    trains = [n for n, p in tuned.named_parameters() if p.requires_grad]
    assert trains == [n for n, p in again.named_parameters() if p.requires_grad]


@pytest.mark.parametrize("kind", ["llama", "phi3", "llava"])
def test_one_step_moves_what_trains_and_no_bit_of_the_rest(kind: str) -> None:
    network, _ = tiny_hub(kind)
    settings = TrainSettings(lora_rank=2, projector_part="frozen")
    tuned = prepare_parts(network, family_of(network.config), settings, "base")
    before = {name: p.detach().clone() for name, p in tuned.named_parameters()}
    trained = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = make_optimizer([{"params": trained, "lr": 1e-2}], settings)
    tuned(**inputs(tuned, kind)).logits.square().mean().backward()
    optimizer.step()
    moved = {name for name, p in tuned.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)


def test_something_that_trains_against_the_declaration_is_named() -> None:
    network, _ = tiny_hub("llava")
    family = family_of(network.config)
    network.requires_grad_(False)
    network.model.vision_tower.requires_grad_(True)
    modes = {"language": "frozen", "vision": "frozen", "projector": "full"}
    with pytest.raises(GuideError, match=r"vision_tower.* trains, though the vision part is set to 'frozen'"):
        check_parts(network, family, modes)
    network.model.vision_tower.requires_grad_(False)
    with pytest.raises(GuideError, match="projector"):
        check_parts(network, family, modes)


def test_arithmetic_and_attention_are_chosen_for_the_device() -> None:
    assert choose_precision(CPU)[0] == "fp32"
    assert choose_precision(CPU, "bf16")[0] == "bf16"
    with pytest.raises(SettingsError, match="fp16"):
        choose_precision(CPU, "fp16")
    assert choose_attention(CPU)[0] == "sdpa"
    assert choose_attention(CPU, "eager")[0] == "eager"
    with pytest.raises(SettingsError, match="flash"):
        choose_attention(CPU, "flash")


def test_the_8_bit_optimizer_needs_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SettingsError, match="adamw8bit needs"):
        make_optimizer([], TrainSettings(optimizer="adamw8bit"))


def test_every_picture_model_has_all_three_parts() -> None:
    for kind in MARKS:
        modes = part_modes(family_of(tiny_hub(kind)[0].config), TrainSettings())
        assert modes == {"language": "lora", "vision": "frozen", "projector": "full"}
