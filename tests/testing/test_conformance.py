"""Every built-in kind of model keeps its promises, and the check notices one that does not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image

from fieldguide.model.hub import HubModel, HubPictures
from fieldguide.model.local import LocalModel
from fieldguide.model.opening import open_model
from fieldguide.model.tuning import part_modes, prepare_parts
from fieldguide.settings import TrainSettings
from fieldguide.testing import check_model, tiny_features, tiny_model
from fieldguide.testing.hub import KINDS, save_tiny


def opened(folder: Path, **settings: str) -> HubModel:
    return open_model(TrainSettings(model=str(folder), **settings), announce=lambda line: None).model


def batch(model: HubModel) -> HubPictures:
    generator, items = np.random.default_rng(0), []
    for height, width in ((40, 70), (64, 30), (20, 90)):
        pixels = generator.integers(0, 255, (height, width, 3), dtype=np.uint8)
        shown = [Image.fromarray(pixels)] if model.family.vision else []
        items.append(model.prepare(shown))
    return HubPictures(tuple(items))


def test_the_starter_kind() -> None:
    model = tiny_model(["ox", "cat"], summary_tokens=2, patch_tokens=4, lora_rank=2)
    check_model(model, tiny_features(model, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_the_kinds_of_transformers(kind: str, tmp_path: Path) -> None:
    model = opened(save_tiny(kind, tmp_path / "model"))

    def reload(one: LocalModel) -> LocalModel:
        one.network.save_pretrained(tmp_path / "again")  # type: ignore[operator,union-attr]
        (model.processor or model.tokenizer).save_pretrained(tmp_path / "again")
        return opened(tmp_path / "again")

    check_model(model, batch(model), reload=reload)


WORDS_OF = {"language": "language model", "vision": "vision tower", "projector": "projector"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vision", ["frozen", "lora", "full"])
def test_what_is_declared_to_train_trains(kind: str, vision: str, tmp_path: Path) -> None:
    model = opened(save_tiny(kind, tmp_path / "model"))
    settings = dataclasses.replace(TrainSettings(), lora_rank=2, vision_part=vision)
    model.network = prepare_parts(model.network, model.family, settings, "base")
    trains = [
        f"{WORDS_OF[part]}: LoRA adapter" if mode == "lora" else WORDS_OF[part]
        for part, mode in part_modes(model.family, settings).items()
        if mode != "frozen"
    ]
    check_model(model, batch(model), trains=trains)


def test_a_tower_that_trains_undeclared_is_found_out(tmp_path: Path) -> None:
    """Case: a tower that was to be frozen trains; a projector that was to train is frozen."""
    model = opened(save_tiny("llava", tmp_path / "model"))
    model.bare.model.multi_modal_projector.requires_grad_(True)
    check_model(model, batch(model), trains=["projector"])
    with pytest.raises(AssertionError, match="against what is declared"):
        check_model(model, batch(model), trains=[])
    model.bare.model.vision_tower.requires_grad_(True)
    with pytest.raises(AssertionError, match=r"vision_tower.* trains, against what is declared"):
        check_model(model, batch(model), trains=["projector"])
    model.bare.requires_grad_(False)
    with pytest.raises(AssertionError, match="does not train"):
        check_model(model, batch(model), trains=["projector"])
    with pytest.raises(AssertionError, match="no part 'prism'"):
        check_model(model, batch(model), trains=["prism"])


def test_an_adapter_where_nobody_reads_is_found_out(tmp_path: Path) -> None:
    model = opened(save_tiny("llava", tmp_path / "model"))
    everywhere = LoraConfig(r=2, target_modules=r"model\.vision_tower\..*\.q_proj")
    model.network = get_peft_model(model.network, everywhere)
    with pytest.raises(AssertionError, match="an adapter that cannot learn"):
        check_model(model, batch(model), trains=["vision tower: LoRA adapter"])


@pytest.mark.parametrize("kind", ["phi3", "llava"])
def test_a_language_part_in_four_bits(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    model = opened(save_tiny(kind, tmp_path / "model"), quantise="nf4")
    check_model(model, batch(model))


def test_assembled_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIELDGUIDE_CACHE", str(tmp_path / "cache"))
    vision = str(save_tiny("siglip", tmp_path / "vision"))
    model = opened(save_tiny("mistral", tmp_path / "model"), vision=vision, projector="shuffled")
    check_model(model, batch(model))


def test_a_model_that_looks_at_its_batch_mates_is_found_out(tmp_path: Path) -> None:
    model = opened(save_tiny("llava", tmp_path / "model"))
    embed = model.bare.model.get_image_features

    def mixed(*arguments: object, **named: object) -> object:
        output = embed(*arguments, **named)
        whole = torch.stack(output.pooler_output)
        output.pooler_output = list(whole + 0.1 * whole.mean(0))
        return output

    model.bare.model.get_image_features = mixed
    with pytest.raises(AssertionError, match="in the batch and alone"):
        check_model(model, batch(model))
