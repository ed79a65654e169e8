"""Guides from models of transformers, made and used from Python; the shipped recipes have their own tests."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fieldguide import load_guide, load_recipe
from fieldguide.data.dataset import Dataset
from fieldguide.data.importer import import_pictures
from fieldguide.errors import (
    DataError,
    GuideError,
    ModelMissing,
    ResumeError,
    SettingsError,
    Stopped,
)
from fieldguide.merging import merge_guide
from fieldguide.model.opening import find_model, open_model
from fieldguide.records import LabelScore
from fieldguide.settings import ImportSettings, Recipe, TrainSettings
from fieldguide.testing.hub import save_tiny
from fieldguide.train import loop as loops
from fieldguide.train.part import what_to_learn
from fieldguide.training import train_guide

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 40, 220)}


def quiet(line: str) -> None:
    """Says nothing."""


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.setenv("FIELDGUIDE_CACHE", str(tmp_path / "cache"))
    generator = np.random.default_rng(0)
    for label, colour in COLOURS.items():
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(10):
            size = (int(generator.integers(24, 90)), int(generator.integers(24, 90)))
            pixels = generator.normal(colour, 40, (*size, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{number}.png")
    return import_pictures(tmp_path / "photos", tmp_path / "data", ImportSettings(val=0.2), announce=quiet)


def recipe(tmp_path: Path, kind: str = "llava", **settings: Any) -> Recipe:
    folder = tmp_path / f"model-{kind}"
    if not folder.exists():
        save_tiny(kind, folder)
    small = {"model": str(folder), "epochs": 2, "batch_size": 4, "lora_rank": 2, "checkpoint_every": 1}
    return load_recipe(None, {"train": {**small, **settings}})


def tensors(guide: Path) -> dict[str, torch.Tensor]:
    found = load_file(guide / "projector.safetensors")
    adapter = guide / "adapter" / "adapter_model.safetensors"
    return found | (load_file(adapter) if adapter.is_file() else {})


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """The next training stops as if it were killed, after some optimizer steps."""
    whole = loops.Loop._step
    done = 0

    def step(self: Any, *arguments: Any) -> Any:
        nonlocal done
        if done == steps:
            monkeypatch.setattr(loops.Loop, "_step", whole)
            raise KeyboardInterrupt
        done += 1
        return whole(self, *arguments)

    monkeypatch.setattr(loops.Loop, "_step", step)


@pytest.mark.parametrize("settings", [{}, {"quantise": "nf4", "lora_dropout": 0.1}, {"pretrain_epochs": 1}])
@pytest.mark.parametrize("steps", [2, 9])
def test_a_stopped_training_resumes_to_the_same_bits(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], steps: int
) -> None:
    if settings.get("quantise"):
        pytest.importorskip("bitsandbytes")
    wanted = recipe(tmp_path, **settings)
    train_guide(data, tmp_path / "whole", wanted, announce=quiet)
    stop_after(monkeypatch, steps)
    with pytest.raises(KeyboardInterrupt):
        train_guide(data, tmp_path / "stopped", wanted, announce=quiet)
    train_guide(data, tmp_path / "stopped", wanted, resume=True, announce=quiet)
    whole, resumed = tensors(tmp_path / "whole"), tensors(tmp_path / "stopped")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert load_guide(tmp_path / "whole").fingerprint == load_guide(tmp_path / "stopped").fingerprint


def test_a_guide_answers_as_the_starters_do(data: Dataset, tmp_path: Path) -> None:
    guide = train_guide(data, tmp_path / "x.guide", recipe(tmp_path, "smolvlm"), announce=quiet)
    (tmp_path / "bad.png").write_bytes(b"")
    pictures = [data.path(e) for e in data.of("test")]
    answers = load_guide(guide.folder).classify([*pictures, tmp_path / "bad.png"])
    assert answers[-1].error
    for answer in answers[:-1]:
        assert sum(score.probability for score in answer.scores) == pytest.approx(1)
        assert all(isinstance(score, LabelScore) for score in answer.scores)
    alone = load_guide(guide.folder).ask(pictures[0])
    assert alone.label == answers[0].label
    assert alone.probability == pytest.approx(answers[0].probability, abs=1e-5)


@pytest.mark.parametrize(("vision", "projector"), [("timm", "mlp"), ("timm", "pooled"), ("clip", "shuffled")])
def test_assembled_models_that_are_not_llavas_own_learn_and_answer_and_are_merged(
    data: Dataset, tmp_path: Path, vision: str, projector: str
) -> None:
    encoder = str(save_tiny(vision, tmp_path / "encoder"))
    wanted = recipe(tmp_path, "llama", vision=encoder, projector=projector, epochs=12, language_part="full",
                    learning_rate=3e-3, projector_learning_rate=3e-3, checkpoint_every=100)  # fmt: skip
    guide = train_guide(data, tmp_path / "x.guide", wanted, announce=quiet)
    seen = [e for split in ("val", "test") for e in data.of(split)]
    answers = load_guide(guide.folder).classify([data.path(e) for e in seen])
    right = sum(answer.label == example.label for answer, example in zip(answers, seen, strict=True))
    assert right > 0.8 * len(seen)
    said: list[str] = []
    certificate = merge_guide(guide, tmp_path / "merged", data, announce=said.append)
    assert certificate.relative_loss_difference < 1e-4
    assert certificate.needed_import == "fieldguide.model.llava"
    assert "import fieldguide.model.llava" in said[-1]
    code = (
        "import sys, transformers\n"
        "if sys.argv[2:]: __import__(sys.argv[2])\n"
        "print(type(transformers.AutoModelForImageTextToText.from_pretrained(sys.argv[1])).__name__)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "merged")]
    alone = subprocess.run(command, capture_output=True, text=True)
    assert alone.returncode != 0
    assert "fieldguide_llava" in alone.stderr
    told = subprocess.run([*command, certificate.needed_import], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "AssembledLlava"


def test_parts_of_two_guides_do_not_mix(data: Dataset, tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        train_guide(data, tmp_path / name, recipe(tmp_path, seed=seed), announce=quiet)
    for part in ("projector.safetensors", "adapter/adapter_model.safetensors"):
        mixed = tmp_path / f"mixed-{Path(part).stem}"
        shutil.copytree(tmp_path / "a", mixed)
        shutil.copy(tmp_path / "b" / part, mixed / part)
        with pytest.raises(GuideError, match="is not the one this guide was written with"):
            load_guide(mixed)


def test_another_base_under_a_guide_is_refused(data: Dataset, tmp_path: Path) -> None:
    wanted = recipe(tmp_path)
    guide = train_guide(data, tmp_path / "x.guide", wanted, announce=quiet)
    save_tiny("llava", Path(wanted.train.model), seed=5)
    with pytest.raises(GuideError, match="not the model that the guide was trained on"):
        _ = load_guide(guide.folder).model
    again = recipe(tmp_path, start_from=str(guide.folder))
    with pytest.raises(GuideError, match="was trained on another model"):
        train_guide(data, tmp_path / "y.guide", again, announce=quiet)


def test_training_goes_on_from_another_guide(data: Dataset, tmp_path: Path) -> None:
    first = train_guide(data, tmp_path / "a", recipe(tmp_path), announce=quiet)
    frozen = recipe(tmp_path, start_from=str(first.folder), projector_part="frozen", learning_rate=1e-9)
    second = train_guide(data, tmp_path / "b", frozen, announce=quiet)
    before, after = tensors(first.folder), tensors(second.folder)
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-5) for name in before)
    projector = [name for name in before if "lora_" not in name]
    assert all(torch.equal(before[name], after[name]) for name in projector)


def test_resume_names_what_has_changed(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        train_guide(data, tmp_path / "x", recipe(tmp_path), announce=quiet)
    changed = recipe(tmp_path, learning_rate=1e-3)
    with pytest.raises(ResumeError, match="training settings, learning_rate"):
        train_guide(data, tmp_path / "x", changed, resume=True, announce=quiet)


def test_a_training_that_does_not_fit_is_refused_before_it_starts(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="GB on a device") as caught:
        train_guide(data, tmp_path / "x", recipe(tmp_path, memory_limit_gb=0.0001), announce=quiet)
    assert "train.quantise=nf4" in caught.value.hint
    assert not list((tmp_path / "x").glob("checkpoints/step-*"))


def test_what_is_learnt_follows_from_the_data(data: Dataset) -> None:
    assert what_to_learn(data, "auto") == "labels"
    with pytest.raises(DataError, match="no training example has messages"):
        what_to_learn(data, "messages")


def test_a_text_model_refuses_pictures_by_name(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\.png is a picture, and this model reads text only"):
        train_guide(data, tmp_path / "x", recipe(tmp_path, "llama"), announce=quiet)


def test_models_that_are_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelMissing, match="no such model folder"):
        find_model("./nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelMissing, match=r"config\.json"):
        find_model(str(tmp_path / "empty"))
    with pytest.raises(ModelMissing, match="not to be had from the model hub"):
        find_model("nobody/nothing-of-that-name", quiet)
    save_tiny("llama", tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(ModelMissing, match="no weights in safetensors"):
        open_model(TrainSettings(model=str(tmp_path / "pickled")), announce=quiet)


def test_the_signal_of_a_scheduler_has_its_own_exit_code() -> None:
    assert Stopped("x").code == 143


@pytest.mark.parametrize("kind", ["llava", "smolvlm"])
def test_a_tower_under_an_adapter_is_merged(data: Dataset, tmp_path: Path, kind: str) -> None:
    """The end of LLaVA's tower is read by nobody: an adapter there would stay zero, and merging refuse it."""
    wanted = recipe(tmp_path, kind, vision_part="lora", epochs=1)
    guide = train_guide(data, tmp_path / "x.guide", wanted, announce=quiet)
    learnt = {name: tensor for name, tensor in tensors(guide.folder).items() if "lora_B" in name}
    assert any("vision" in name for name in learnt)
    assert all(tensor.any() for tensor in learnt.values())
    merge_guide(guide, tmp_path / "merged", data, announce=quiet)
    assert (tmp_path / "merged" / "config.json").is_file()


def test_a_tuned_guide_tells_what_is_not_in_it(data: Dataset, tmp_path: Path) -> None:
    """The tower of the trained model gives the features, in training as in answering."""
    guide = train_guide(data, tmp_path / "g.guide", recipe(tmp_path, vision_part="lora"), announce=quiet)
    told = guide.info["calibration"]["novelty"]
    assert told["known"] >= 19
    assert "novelty.safetensors" in guide.info["files"]
    pictures = [data.path(e) for e in data.of("test")]
    answers = guide.classify(pictures)
    assert all(answer.familiarity is not None and 0 < answer.familiarity <= 1 for answer in answers)
    assert guide.ask(pictures[0]).familiarity == answers[0].familiarity
    plain = train_guide(data, tmp_path / "h.guide", recipe(tmp_path), announce=quiet)
    assert plain.encoder.key != guide.encoder.key, "another tower's features must not be taken from the cache"


def test_a_tuned_guide_is_explained_by_its_own_tower(data: Dataset, tmp_path: Path) -> None:
    guide = train_guide(data, tmp_path / "x.guide", recipe(tmp_path, epochs=1), announce=quiet)
    picture = data.path(data.of("test")[0])
    found = guide.explain(picture, dataset=data.folder)
    assert found.answer.label in data.labels
    assert len(found.neighbours) == 5
    assert all(one.path is not None and one.label in data.labels for one in found.neighbours)
    assert found.where is not None
    assert found.marks == ()
    assert found.remarks == (f"there are no notes on {found.answer.label!r}",)


@pytest.mark.parametrize(
    "settings",
    [{}, {"language_part": "full"}, {"quantise": "nf4", "pretrain_epochs": 1}, {"vision_part": "lora"}],
)
def test_16_bits_train_validate_and_calibrate(
    data: Dataset, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Parts that train are held in 32 bits beside others in 16, also while answering."""
    if settings.get("quantise"):
        pytest.importorskip("bitsandbytes")
    wanted = recipe(tmp_path, precision="bf16", epochs=1, **settings)
    guide = train_guide(data, tmp_path / "x.guide", wanted, announce=quiet)
    [entry] = guide.info["training"]["history"]
    assert 0 < entry["validation_loss"] < 10
    answers = load_guide(guide.folder).classify([data.path(e) for e in data.of("test")])
    assert all(answer.label in data.labels for answer in answers)
