"""Whatever answers, by its name; and the commands that take it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from fieldguide.cli import app
from fieldguide.data.importer import import_pictures
from fieldguide.errors import ModelMissing, SettingsError
from fieldguide.files import read_json
from fieldguide.settings import ImportSettings
from fieldguide.testing.hub import save_tiny
from fieldguide.zeroshot.names import LabelNames
from fieldguide.zeroshot.opening import load_asking_settings, open_answerer
from fieldguide.zeroshot.vlm import VisionLanguageZeroShot

NAMES = LabelNames(("cat", "dog"))


def run(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.output


@pytest.fixture
def photos(make_picture: Callable[..., Path], tmp_path: Path) -> Path:
    for label in ("cat", "dog"):
        for number in range(12):
            make_picture(f"photos/{label}/{number}.png", 100 * (label == "cat") + number)
    return tmp_path / "photos"


def test_each_name_opens_its_kind(tmp_path: Path) -> None:
    folder = str(save_tiny("llava", tmp_path / "m"))
    assert isinstance(open_answerer(folder, NAMES, announce=lambda line: None), VisionLanguageZeroShot)
    with pytest.raises(SettingsError, match="must be told the labels"):
        open_answerer(folder)
    with pytest.raises(ModelMissing, match="nowhere: no such model folder"):
        open_answerer("nowhere", NAMES)


def test_settings_of_asking_are_read_and_every_fault_is_named(tmp_path: Path) -> None:
    path = tmp_path / "asking.toml"
    path.write_text(
        '[zeroshot]\nquestion = "Which bird?"\ntemplates = ["a {}"]\nprior = false\n'
        "[remote]\ntemperature = 0.5\n"
    )
    found = load_asking_settings(path)
    assert (found.zeroshot.question, found.zeroshot.templates) == ("Which bird?", ("a {}",))
    assert found.remote.temperature == 0.5
    path.write_text('quest = 1\n[zeroshot]\ntemplates = ["no place"]\n[remote]\nspeed = 3\n')
    with pytest.raises(SettingsError) as caught:
        load_asking_settings(path)
    for fault in (
        "unknown table or setting 'quest'",
        "template 'no place' has no {}",
        "unknown setting 'speed'",
    ):
        assert fault in str(caught.value)


def test_pictures_are_named_and_asked_about_from_the_command_line(photos: Path, tmp_path: Path) -> None:
    folder = str(save_tiny("llava", tmp_path / "m"))
    table = tmp_path / "t.jsonl"
    run("classify", "--model", folder, "--labels", "cat,dog", str(photos / "cat"), "-o", str(table))
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    assert len(rows) == 12
    assert {row["label"] for row in rows} <= {"cat", "dog"}
    answer = json.loads(run("ask", folder, str(photos / "cat" / "0.png"), "--labels", "cat,dog", "--json"))
    assert answer["label"] == rows[0]["label"]
    drawing = tmp_path / "heat.png"
    picture = str(photos / "cat" / "0.png")
    run("ask", folder, picture, "--labels", "cat,dog", "--heat", str(drawing))
    assert Image.open(drawing).size == Image.open(picture).size
    said = run("ask", "nowhere.guide", str(photos / "cat" / "0.png"), code=2)
    assert "to ask a model, give --labels" in said
    assert "pictures are missing" in run("classify", folder, "-o", str(table), code=2)


def test_models_are_compared_on_the_same_pictures(photos: Path, tmp_path: Path) -> None:
    import_pictures(photos, tmp_path / "data", ImportSettings(), announce=lambda line: None)
    models = [str(save_tiny("llava", tmp_path / f"m{seed}", seed)) for seed in (0, 1)]
    out = tmp_path / "compared"
    asked = [part for model in models for part in ("--model", model)]
    said = run("evaluate", str(tmp_path / "data"), *asked, "-o", str(out), "--split", "all")
    assert "m0: accuracy" in said
    record = read_json(out / "metrics.json")
    assert [row["pictures"] for row in record["models"]] == [24, 24]
    first, second = record["models"]
    assert first["against_the_first"] is None
    test = second["against_the_first"]["test"]
    right = {row["name"]: row["accuracy"] * 24 for row in record["models"]}
    gained = test["only_first"] - test["only_second"]
    assert gained == pytest.approx(right[second["name"]] - right[first["name"]])
    assert second["against_the_first"]["difference"] == pytest.approx(gained / 24)
    page = (out / "index.html").read_text(encoding="utf-8")
    for row in record["models"]:
        assert f'href="{row["report"]}/index.html"' in page
        assert (out / row["report"] / "predictions.parquet").is_file()
    assert not [p for p in (tmp_path / "data").iterdir() if p.name == "report"]
    run(
        "evaluate",
        str(tmp_path / "data"),
        "--model",
        models[0],
        "-o",
        str(tmp_path / "one"),
        "--split",
        "all",
    )
    alone = read_json(tmp_path / "one" / "metrics.json")
    assert alone["guide"]["accuracy"] == pytest.approx(first["accuracy"])
