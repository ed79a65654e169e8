"""Guides that learn captions, conversations and texts, in one stage or two, and what they answer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fieldguide import load_guide, load_recipe
from fieldguide.build import evaluate
from fieldguide.cli import app
from fieldguide.data.dataset import Dataset
from fieldguide.data.importer import import_pictures
from fieldguide.errors import GuideError, ResumeError
from fieldguide.guide import Guide
from fieldguide.rowtest import evaluate_rows
from fieldguide.settings import ImportSettings, Recipe
from fieldguide.testing.hub import save_tiny
from fieldguide.train import loop as loops
from fieldguide.train.checkpoint import checkpoints
from fieldguide.training import train_guide

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 40, 220)}


def quiet(line: str) -> None:
    """Says nothing."""


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIELDGUIDE_CACHE", str(tmp_path / "cache"))


def pictures(folder: Path) -> list[Path]:
    generator, made = np.random.default_rng(0), []
    for label, colour in COLOURS.items():
        (folder / label).mkdir(parents=True)
        for number in range(10):
            size = (int(generator.integers(24, 90)), int(generator.integers(24, 90)))
            pixels = generator.normal(colour, 40, (*size, 3)).clip(0, 255).astype(np.uint8)
            made.append(folder / label / f"{number}.png")
            Image.fromarray(pixels).save(made[-1])
    return made


def imported(source: Path, out: Path, **more: Any) -> Dataset:
    return import_pictures(source, out, ImportSettings(val=0.2), announce=quiet, **more)


def labelled(folder: Path) -> Dataset:
    pictures(folder / "photos")
    return imported(folder / "photos", folder / "data")


def captioned(folder: Path) -> Dataset:
    made = pictures(folder / "photos")
    captions = {
        path.relative_to(folder / "photos").as_posix(): [f"A {path.parent.name} one."] for path in made
    }
    (folder / "photos" / "captions.json").write_text(json.dumps(captions))
    return imported(folder / "photos" / "captions.json", folder / "data")


def conversed(folder: Path) -> Dataset:
    rows = []
    for path in pictures(folder / "photos"):
        name = path.relative_to(folder / "photos").as_posix()
        said = [("human", "<image>\nWhat is it?"), ("gpt", f"It is {path.parent.name}.")]
        rows.append({"id": name, "image": name, "conversations": [{"from": a, "value": b} for a, b in said]})
    (folder / "rows.json").write_text(json.dumps(rows))
    return imported(folder / "rows.json", folder / "data", images=folder / "photos")


def texts(folder: Path, word: str = "cars") -> Dataset:
    folder.mkdir(exist_ok=True)
    rows = []
    for number in range(30):
        said = [("human", f"{number} {word}, {number + 1} trees"), ("gpt", f"{number} {word} by trees.")]
        rows.append({"id": str(number), "conversations": [{"from": a, "value": b} for a, b in said]})
    (folder / f"{word}.json").write_text(json.dumps(rows))
    return imported(folder / f"{word}.json", folder / word)


def recipe(tmp_path: Path, kind: str = "llava", **settings: Any) -> Recipe:
    folder = tmp_path / f"model-{kind}"
    if not folder.exists():
        save_tiny(kind, folder)
    small = {
        "model": str(folder), "epochs": 4, "batch_size": 4, "lora_rank": 4, "checkpoint_every": 5,
        "learning_rate": 1e-2, "projector_learning_rate": 1e-2,
    }  # fmt: skip
    return load_recipe(None, {"train": {**small, **settings}, "answer": {"max_new_tokens": 8}})


def learnt(guide: Guide) -> bool:
    """Whether the validation loss fell."""
    losses = [entry["validation_loss"] for entry in guide.info["training"]["history"]]
    return min(losses[1:]) < losses[0]


@pytest.mark.parametrize(("make", "learns"), [(captioned, "captions"), (conversed, "messages")])
@pytest.mark.parametrize("pretrain", [0, 1])
def test_words_about_pictures_are_learnt_and_said(
    tmp_path: Path, make: Any, learns: str, pretrain: int
) -> None:
    data = make(tmp_path)
    guide = train_guide(
        data, tmp_path / "x.guide", recipe(tmp_path, pretrain_epochs=pretrain), announce=quiet
    )
    assert guide.info["training"]["learns"] == learns
    assert learnt(guide)
    assert guide.labels == ()
    assert bool(list((tmp_path / "x.guide" / "checkpoints" / "pretrain").glob("step-*"))) == bool(pretrain)
    found = evaluate_rows(guide, data, announce=quiet)
    assert found.loss < found.base_loss
    page = guide.report.read_text(encoding="utf-8")
    for shown in (
        "supervised tokens</dt>",
        "What was trained, and what changed",
        "<h3>Loss by step",
        "<h3>Speed",
    ):
        assert shown in page
    picture = data.path(data.of("test")[0])
    answer = load_guide(guide.folder).ask(picture, "What is it?")
    assert (answer.label, answer.scores, answer.error) == ("", (), "")
    for more in ([], ["--json"]):
        said = CliRunner().invoke(app, ["ask", str(guide.folder), str(picture), "What is it?", *more])
        assert said.exit_code == 0, said.output
        text = json.loads(said.output)["text"] if more else said.output.strip()
        assert text == answer.text.strip()


def test_a_guide_without_labels_cannot_choose_among_them(tmp_path: Path) -> None:
    data = captioned(tmp_path)
    guide = train_guide(data, tmp_path / "x.guide", recipe(tmp_path, epochs=1), announce=quiet)
    picture = data.path(data.of("test")[0])
    with pytest.raises(GuideError, match=r"x\.guide: has no labels to choose among"):
        guide.classify([picture])
    said = CliRunner().invoke(
        app, ["classify", str(guide.folder), str(picture), "-o", str(tmp_path / "t.csv")]
    )
    assert said.exit_code == 2
    assert "fieldguide ask" in said.output
    assert not (tmp_path / "t.csv").exists()


def test_texts_are_learnt(tmp_path: Path) -> None:
    data = texts(tmp_path / "texts")
    guide = train_guide(data, tmp_path / "x.guide", recipe(tmp_path, "llama"), announce=quiet)
    assert learnt(guide)
    assert guide.info["training"]["learns"] == "messages"
    assert set(guide.info["training"]["changes"]) == {"language model: LoRA adapter"}


def test_labels_are_learnt_and_evaluated_and_the_template_is_kept(tmp_path: Path) -> None:
    data = labelled(tmp_path)
    guide = train_guide(data, tmp_path / "x.guide", recipe(tmp_path, pretrain_epochs=1), announce=quiet)
    assert learnt(guide)
    assert guide.info["template"] == guide.model.prompt.template.to_dict()
    assert guide.info["template"]["open_user"].startswith("<|im_start|>")
    assert evaluate(guide, data).metrics.accuracy > 0.5
    assert guide.report.is_file()


def test_the_first_stage_learns_from_the_captions_that_there_are(tmp_path: Path) -> None:
    """Labels for all, captions for some: the rows without one are left to the second stage."""
    data = labelled(tmp_path)
    some = tuple(replace(e, captions=("A square.",) if i % 2 else ()) for i, e in enumerate(data.examples))
    mixed = replace(data, examples=some)
    guide = train_guide(mixed, tmp_path / "x.guide", recipe(tmp_path, pretrain_epochs=1), announce=quiet)
    assert guide.info["training"]["learns"] == "labels"
    lines = (tmp_path / "x.guide" / "checkpoints" / "log" / "steps.jsonl").read_text().splitlines()
    rows = sum(
        round(entry["rows a second"] * entry["seconds"])
        for entry in map(json.loads, lines)
        if entry["kind"] == "step"
    )
    assert rows == sum(bool(e.captions) for e in mixed.of("train"))


class Killed(Exception):
    """As if the process had been killed."""


def train_and_stop(data: Dataset, out: Path, wanted: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until the first checkpoint."""

    def stop(*arguments: Any) -> None:
        if checkpoints(out / "checkpoints"):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loops.StepLog, "saved", stop)
        with pytest.raises(Killed):
            train_guide(data, out, wanted, announce=quiet)


def test_other_data_are_refused_at_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = recipe(tmp_path, "llama")
    train_and_stop(texts(tmp_path / "texts"), tmp_path / "x", wanted, monkeypatch)
    with pytest.raises(ResumeError, match="data set: was"):
        train_guide(texts(tmp_path / "texts", "boats"), tmp_path / "x", wanted, resume=True, announce=quiet)


def test_another_guide_to_begin_with_is_refused_at_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, begun = texts(tmp_path / "texts"), tmp_path / "begun"
    train_guide(data, begun, recipe(tmp_path, "llama", epochs=1), announce=quiet)
    wanted = recipe(tmp_path, "llama", start_from=str(begun))
    train_and_stop(data, tmp_path / "x", wanted, monkeypatch)
    begun.rename(tmp_path / "away")
    train_guide(data, begun, recipe(tmp_path, "llama", epochs=1, seed=1), announce=quiet)
    with pytest.raises(ResumeError, match="begun from: was"):
        train_guide(data, tmp_path / "x", wanted, resume=True, announce=quiet)
