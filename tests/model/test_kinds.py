"""A kind of model that another package brings: one class and an entry point."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fieldguide.data.dataset import Dataset
from fieldguide.errors import GuideError, ModelMissing
from fieldguide.guide import load_guide
from fieldguide.merging import merge_guide
from fieldguide.model.hub import HubPictures
from fieldguide.model.kinds import kind_of
from fieldguide.model.opening import open_model
from fieldguide.settings import TrainSettings, load_recipe
from fieldguide.testing import check_model
from fieldguide.testing.hub import save_tiny
from fieldguide.training import train_guide
from test_tune import data, quiet  # noqa: F401

# A model that reads every picture upside down.
MODULE = """
from PIL import ImageOps
from fieldguide.model.hub import HubModel
from fieldguide.model.opening import find_model, open_folder, model_sha256

class Turned(HubModel):
    opened = []

    @classmethod
    def open(cls, name, settings, template, announce):
        cls.opened.append(name)
        folder = find_model(name, announce)
        return open_folder(folder, settings, template, model_sha256(folder), kind=cls)

    def show(self, image, processor=None):
        return super().show(ImageOps.flip(image), processor)
"""


def install(site: Path, package: str, entry: str, module: str = MODULE) -> None:
    """As pip leaves a package: its module, and what it says of itself."""
    about = site / f"{package}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[fieldguide.models]\n{entry}\n")
    (site / f"{package}.py").write_text(module)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path / "site")
    for name in ("turned_models", "other_models"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path / "site"


def test_it_is_trained_asked_and_merged_like_a_built_in_one(
    data: Dataset,  # noqa: F811
    site: Path,
    tmp_path: Path,
) -> None:
    install(site, "turned_models", "turned = turned_models:Turned")
    name = f"turned:{save_tiny('llava', tmp_path / 'model')}"
    settings = {"model": name, "epochs": 1, "batch_size": 4, "lora_rank": 2}
    guide = train_guide(data, tmp_path / "x.guide", load_recipe(None, {"train": settings}), announce=quiet)
    answers = load_guide(guide.folder).classify([data.path(e) for e in data.of("test")])
    assert all(answer.label in data.labels for answer in answers)
    assert type(guide.model).__name__ == "Turned"
    assert merge_guide(guide, tmp_path / "merged", data, announce=quiet).relative_loss_difference < 1e-4
    assert {*sys.modules["turned_models"].Turned.opened} == {str(tmp_path / "model")}


def test_it_is_what_opens_and_passes_the_public_check(site: Path, tmp_path: Path) -> None:
    install(site, "turned_models", "turned = turned_models:Turned")
    save_tiny("llava", tmp_path / "model")
    pixels = np.random.default_rng(0).integers(0, 255, (40, 70, 3), dtype=np.uint8)
    pictures = [Image.fromarray(pixels), Image.fromarray(pixels[:20])]
    models = [
        open_model(TrainSettings(model=f"{kind}{tmp_path / 'model'}"), announce=quiet).model
        for kind in ("turned:", "")
    ]
    upright, turned = (
        [one.prepare([image]).shown[0].inputs["pixel_values"] for image in pictures] for one in models
    )
    assert not any(np.array_equal(a, b) for a, b in zip(upright, turned, strict=True))
    check_model(models[0], HubPictures(tuple(models[0].prepare([image]) for image in pictures)))


def test_other_weights_than_a_guide_was_trained_on_are_refused(site: Path, tmp_path: Path) -> None:
    install(site, "turned_models", "turned = turned_models:Turned")
    settings = TrainSettings(model=f"turned:{save_tiny('llava', tmp_path / 'model')}")
    with pytest.raises(GuideError, match="not the model that the guide was trained on"):
        open_model(settings, announce=quiet, sha256="0" * 64)


def test_a_kind_that_nobody_brings_is_named_with_those_there_are(site: Path) -> None:
    install(site, "turned_models", "turned = turned_models:Turned")
    with pytest.raises(ModelMissing, match="no package here brings models of kind 'tuned'") as caught:
        open_model(TrainSettings(model="tuned:x"), announce=quiet)
    assert "brought here: turned" in str(caught.value)


def test_faulty_packages_are_named_when_they_are_asked_for(site: Path) -> None:
    install(site, "turned_models", "turned = turned_models:Missing")
    assert kind_of("starter") is None
    assert kind_of("C:/models/llava") is None
    with pytest.raises(GuideError, match="turned_models brings this kind, and cannot be loaded"):
        kind_of("turned:x")
    install(site, "other_models", "turned = other_models:Turned\nidle = other_models:MODELS", "MODELS = ()")
    with pytest.raises(GuideError, match="other_models and turned_models both bring"):
        kind_of("turned:x")
    with pytest.raises(GuideError, match="has no `open`"):
        kind_of("idle:x")
