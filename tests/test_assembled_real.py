"""Assembled models with the real language model, behind a small random CLIP tower and a real encoder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import transformers
from safetensors.torch import load_file
from typer.testing import CliRunner

from fieldguide.cli import app
from fieldguide.data.dataset import Dataset
from fieldguide.data.importer import import_pictures
from fieldguide.files import read_json
from fieldguide.guide import load_guide
from fieldguide.model.network import ENCODER_ARCHITECTURE
from fieldguide.model.starter import starter_folder
from fieldguide.settings import ImportSettings, load_recipe
from fieldguide.testing.hub import save_tiny
from fieldguide.training import train_guide

pytestmark = pytest.mark.starter
A_LABEL = 12  # pictures


def quiet(line: str) -> None:
    """Says nothing."""


@pytest.fixture(scope="module")
def animals(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Some of the animals: a few pictures a label, as links."""
    folder = tmp_path_factory.mktemp("animals")
    for label in sorted(path for path in (shared_data / "animals").iterdir() if path.is_dir()):
        (folder / "photos" / label.name).mkdir(parents=True)
        for picture in sorted(label.iterdir())[:A_LABEL]:
            (folder / "photos" / label.name / picture.name).symlink_to(picture)
    return import_pictures(folder / "photos", folder / "data", ImportSettings(), announce=quiet)


def save_real_encoder(folder: Path) -> Path:
    """EfficientNet-Lite2 as transformers holds an encoder of timm."""
    pixels = {"input_size": [3, 260, 260], "crop_pct": 0.89, "interpolation": "bicubic", "mean": [0.5] * 3,
              "std": [0.5] * 3}  # fmt: skip
    config = transformers.TimmWrapperConfig(architecture=ENCODER_ARCHITECTURE, pretrained_cfg=pixels)
    network: Any = transformers.TimmWrapperModel(config)
    weights = load_file(next(starter_folder("encoder").glob("*.safetensors")))
    network.timm_model.load_state_dict({k: v for k, v in weights.items() if not k.startswith("classifier.")})
    network.save_pretrained(folder)
    transformers.TimmWrapperImageProcessor(pixels).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("tower", "projector", "epochs", "least"), [("clip", "mlp", 1, 0.0), ("timm", "pooled", 3, 0.6)]
)
def test_animals_are_learnt_asked_classified_and_evaluated(
    animals: Dataset, tmp_path: Path, tower: str, projector: str, epochs: int, least: float
) -> None:
    encoder = (save_tiny if tower == "clip" else lambda _, folder: save_real_encoder(folder))(
        tower, tmp_path / "tower"
    )
    settings = {"model": str(starter_folder("language")), "vision": str(encoder), "projector": projector,
                "epochs": epochs, "lora_rank": 4, "batch_size": 8}  # fmt: skip
    said: list[str] = []
    guide = train_guide(
        animals, tmp_path / "animals.guide", load_recipe(None, {"train": settings}), announce=said.append
    )
    assert any(re.match(r"warm start: [\d.]+% of the training pictures named rightly", line) for line in said)

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(app, list(arguments))
        assert done.exit_code == 0, done.output
        return done.output

    picture = animals.path(animals.of("test")[0])
    told = run("ask", str(guide.folder), str(picture))
    answer = load_guide(guide.folder).ask(picture)
    assert answer.label in told
    assert sum(score.probability for score in answer.scores) <= 1 + 1e-5
    run("classify", str(guide.folder), str(picture.parent), "--out", str(tmp_path / "table.csv"))
    assert (tmp_path / "table.csv").read_text().count("\n") == A_LABEL + 1
    run("evaluate", str(guide.folder), str(animals.folder))
    metrics = read_json(guide.report.parent / "metrics.json")
    assert metrics["guide"]["count"] == len(animals.of("test"))
    assert metrics["guide"]["accuracy"] >= least
    assert [b["name"] for b in metrics["baselines"]]
