"""Whatever would train on something else than was asked for is refused, or said; nothing changes silently."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from fieldguide.cli import app
from fieldguide.data.dataset import Dataset
from fieldguide.errors import DataError, GuideError, MergeError, ResumeError
from fieldguide.files import read_json
from fieldguide.guide import load_guide
from fieldguide.merging import check_merged_from, export_guide, merge_guide
from fieldguide.model.opening import model_sha256
from fieldguide.rowtest import evaluate_rows
from fieldguide.train.part import different_epochs
from fieldguide.training import train_guide
from test_tune import stop_after
from test_tune_words import (  # noqa: F401
    _cache,
    captioned,
    conversed,
    imported,
    labelled,
    pictures,
    quiet,
    recipe,
    texts,
)


def mixed(folder: Path) -> Dataset:
    """Conversations about pictures, and some without."""
    rows = []
    for number, path in enumerate(pictures(folder / "photos")):
        name = path.relative_to(folder / "photos").as_posix()
        shown = number % 3 > 0
        said = [
            ("human", ("<image>\n" if shown else "") + f"What is {number}?"),
            ("gpt", f"It is {path.parent.name}."),
        ]
        row: dict[str, Any] = {"id": name, "conversations": [{"from": a, "value": b} for a, b in said]}
        rows.append({**row, "image": name} if shown else row)
    (folder / "rows.json").write_text(json.dumps(rows))
    return imported(folder / "rows.json", folder / "data", images=folder / "photos")


@pytest.mark.parametrize(
    "settings", [{"language_part": "frozen", "epochs": 1}, {"pretrain_epochs": 1, "epochs": 1}]
)
def test_rows_of_words_only_are_left_out_where_the_language_part_is_frozen(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    said: list[str] = []
    data = mixed(tmp_path)
    wanted = recipe(tmp_path, batch_size=1, **settings)
    guide = train_guide(data, tmp_path / "x.guide", wanted, announce=said.append)
    assert any("rows without a picture, which teach only a language part" in line for line in said)
    alone = sum(not e.image for e in data.of("train"))
    assert 0 < alone < len(data.of("train"))
    kept = len(data.of("train")) - (alone if settings.get("language_part") == "frozen" else 0)
    assert guide.info["training"]["training_pictures"] == kept
    only = replace(data, examples=tuple(e for e in data.examples if not e.image))
    with pytest.raises(DataError, match="no training example has a picture"):
        train_guide(only, tmp_path / "y.guide", recipe(tmp_path, language_part="frozen"), announce=quiet)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_first_batch_of_words_only_proves_nothing_about_the_projector(tmp_path: Path, seed: int) -> None:
    data = mixed(tmp_path)
    guide = train_guide(
        data, tmp_path / "x.guide", recipe(tmp_path, batch_size=1, epochs=1, seed=seed), announce=quiet
    )
    assert {change["changed"] > 0 for change in guide.info["training"]["changes"].values()} == {True}


def test_what_another_guides_tower_learnt_is_what_the_stored_outputs_show(tmp_path: Path) -> None:
    data = labelled(tmp_path)
    one = recipe(tmp_path, vision_part="full", language_part="frozen", learning_rate=5e-2, epochs=2)
    first = train_guide(data, tmp_path / "one.guide", one, announce=quiet)
    slow = {"learning_rate": 1e-9, "projector_learning_rate": 1e-9, "epochs": 1}
    still = recipe(tmp_path, start_from=str(first.folder), language_part="frozen", **slow)
    second = train_guide(data, tmp_path / "two.guide", still, announce=quiet)
    [entry] = second.info["training"]["history"]
    best = min(e["validation_loss"] for e in first.info["training"]["history"])
    assert entry["validation_loss"] == pytest.approx(best, abs=1e-4)
    shown = [data.path(e) for e in data.of("val")]
    for answer, other in zip(first.classify(shown), second.classify(shown), strict=True):
        assert answer.label == other.label
    assert (
        first.encoder.key
        != train_guide(data, tmp_path / "three.guide", recipe(tmp_path, epochs=1), announce=quiet).encoder.key
    )  # a trained tower's features are not those of the base


def test_pictures_that_changed_since_they_were_imported_are_left_out_and_never_stored(tmp_path: Path) -> None:
    data, wanted = labelled(tmp_path), recipe(tmp_path, epochs=1)
    paths = [data.path(e) for e in data.of("train")[:3]]
    before = [path.read_bytes() for path in paths]
    for path in paths:
        Image.new("RGB", (30, 30), (255, 0, 0)).save(path)
    said: list[str] = []
    guide = train_guide(data, tmp_path / "x.guide", wanted, announce=said.append)
    assert sum("changed since it was imported" in line for line in said) == 3
    assert guide.info["training"]["training_pictures"] == len(data.of("train")) - 3
    for path, content in zip(paths, before, strict=True):
        path.write_bytes(content)
    found = train_guide(data, tmp_path / "y.guide", wanted, announce=quiet)
    shutil.rmtree(tmp_path / "cache")
    anew = train_guide(data, tmp_path / "z.guide", wanted, announce=quiet)
    losses = [g.info["training"]["history"][0]["validation_loss"] for g in (found, anew)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ({}, {"lora_alpha": 64}, "lora_alpha=32, not with 64"),
        ({}, {"lora_rank": 2}, "lora_rank=4, not with 2"),
        ({}, {"language_part": "frozen"}, "its language part has an adapter, and train.language_part=frozen"),
        ({"vision_part": "lora"}, {}, "its vision part has an adapter, and train.vision_part=frozen"),
        ({}, {"quantise": "nf4"}, "belongs to weights with quantise=''"),
    ],
)
def test_an_adapter_that_would_become_another_is_not_begun_from(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], said: str
) -> None:
    if second.get("quantise"):
        pytest.importorskip("bitsandbytes")
    data = labelled(tmp_path)
    guide = train_guide(data, tmp_path / "one.guide", recipe(tmp_path, epochs=1, **first), announce=quiet)
    again = recipe(
        tmp_path, epochs=1, start_from=str(guide.folder), **{**first, **second} if not first else second
    )
    with pytest.raises(GuideError) as caught:
        train_guide(data, tmp_path / "two.guide", again, announce=quiet)
    assert said in str(caught.value)


def test_an_adapter_of_the_tower_alone_is_begun_from(tmp_path: Path) -> None:
    data, parts = labelled(tmp_path), {"vision_part": "lora", "language_part": "frozen", "epochs": 1}
    first = train_guide(data, tmp_path / "one.guide", recipe(tmp_path, **parts), announce=quiet)
    still = recipe(
        tmp_path, start_from=str(first.folder), learning_rate=1e-9, projector_learning_rate=1e-9, **parts
    )
    second = train_guide(data, tmp_path / "two.guide", still, announce=quiet)
    losses = [g.info["training"]["history"][0]["validation_loss"] for g in (first, second)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def test_pictures_that_vanished_are_noticed_at_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, wanted = labelled(tmp_path), recipe(tmp_path, vision_part="lora")
    stop_after(monkeypatch, 8)
    with pytest.raises(KeyboardInterrupt):
        train_guide(data, tmp_path / "x.guide", wanted, announce=quiet)
    gone = data.path(data.of("train")[0])
    kept = gone.read_bytes()
    gone.unlink()
    with pytest.raises(ResumeError, match="examples: was"):
        train_guide(data, tmp_path / "x.guide", wanted, resume=True, announce=quiet)
    gone.write_bytes(kept)
    train_guide(data, tmp_path / "x.guide", wanted, resume=True, announce=quiet)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", lambda c: c["text_config"].update(rms_norm_eps=0.5)),
        ("config.json", lambda c: c.update(vision_feature_layer=-3)),
        ("processor_config.json", lambda c: c["image_processor"].update(image_mean=[0, 0, 0])),
        ("tokenizer.json", lambda c: c.update(normalizer={"type": "Lowercase"})),
    ],
)
def test_another_configuration_is_another_model(tmp_path: Path, file: str, change: Any) -> None:
    data, wanted = labelled(tmp_path), recipe(tmp_path, epochs=1)
    guide = train_guide(data, tmp_path / "x.guide", wanted, announce=quiet)
    path = Path(wanted.train.model) / file
    before, content = model_sha256(path.parent), read_json(path)
    change(content)
    path.write_text(json.dumps(content))
    assert model_sha256(path.parent) != before
    with pytest.raises(GuideError, match="not the model that the guide was trained on"):
        load_guide(guide.folder).classify([data.path(data.of("test")[0])])


def test_rows_that_come_in_a_later_epoch_are_measured_too(tmp_path: Path) -> None:
    data = captioned(tmp_path)
    long = " ".join(["word"] * 3000)
    grown = tuple(
        replace(e, captions=("One.", "Two.", "Three.", long)) if e.id == data.of("train")[0].id else e
        for e in data.examples
    )
    assert different_epochs(grown, "captions", 9) == 4
    assert different_epochs(grown, "labels", 9) == 3
    with pytest.raises(DataError, match="longer than the language model's context"):
        train_guide(
            replace(data, examples=grown), tmp_path / "x.guide", recipe(tmp_path, epochs=4), announce=quiet
        )
    later = tuple(replace(e, captions=(long,)) if e.split == "val" else e for e in data.examples)
    with pytest.raises(DataError, match="longer than the language model's context"):
        train_guide(
            replace(data, examples=later), tmp_path / "x.guide", recipe(tmp_path, epochs=1), announce=quiet
        )
    guide = train_guide(data, tmp_path / "y.guide", recipe(tmp_path, epochs=1), announce=quiet)
    tested = tuple(replace(e, captions=(long,)) if e.split == "test" else e for e in data.examples)
    with pytest.raises(DataError, match="longer than the language model's context"):
        evaluate_rows(guide, replace(data, examples=tested), announce=quiet)
    with pytest.raises(DataError, match="ask a shorter one"):
        load_guide(guide.folder).ask(data.path(data.of("test")[0]), long)


def test_a_first_stage_is_resumed_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, wanted = labelled(tmp_path), recipe(tmp_path, pretrain_epochs=2)
    stop_after(monkeypatch, 6)
    with pytest.raises(KeyboardInterrupt):
        train_guide(data, tmp_path / "x.guide", wanted, announce=quiet)
    assert list((tmp_path / "x.guide" / "checkpoints" / "pretrain").glob("step-*"))
    with pytest.raises(ResumeError, match="continue it with --resume"):
        train_guide(data, tmp_path / "x.guide", wanted, announce=quiet)
    train_guide(data, tmp_path / "x.guide", wanted, resume=True, announce=quiet)


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return done.output


def test_a_guide_that_reads_text_only_is_asked_in_words(tmp_path: Path) -> None:
    data = texts(tmp_path / "texts")
    guide = train_guide(data, tmp_path / "x.guide", recipe(tmp_path, "llama", epochs=1), announce=quiet)
    answer = load_guide(guide.folder).ask("", "3 cars, 4 trees")
    assert run("ask", str(guide.folder), "3 cars, 4 trees").strip() == answer.text.strip()
    assert run("ask", str(guide.folder), "nothing.jpg", "3 cars, 4 trees").strip() == answer.text.strip()


def test_guides_that_answer_in_words_have_a_model_card(tmp_path: Path) -> None:
    data = conversed(tmp_path)
    guide = train_guide(data, tmp_path / "x.guide", recipe(tmp_path, epochs=1), announce=quiet)
    found = evaluate_rows(guide, data, announce=quiet)
    export_guide(guide, tmp_path / "hub", to="hub", dataset=data, repo_id="me/x", announce=quiet)
    card = (tmp_path / "hub" / "README.md").read_text(encoding="utf-8")
    assert f"its loss is {found.loss:.3f} nats a token" in card
    assert f"The base model's is {found.base_loss:.3f}" in card
    assert "Answers about pictures in words" in card
    assert "by 0 labels" not in card


def test_a_merged_folder_of_another_guide_is_not_exported(tmp_path: Path) -> None:
    data = texts(tmp_path / "texts")
    guides = [
        train_guide(
            data, tmp_path / f"{seed}.guide", recipe(tmp_path, "llama", epochs=1, seed=seed), announce=quiet
        )
        for seed in (0, 1)
    ]
    merge_guide(guides[0], tmp_path / "merged", data, announce=quiet)
    check_merged_from(guides[0], tmp_path / "merged")
    for to in ("hub", "transformers", "ollama"):
        with pytest.raises(MergeError, match="was merged from another guide"):
            export_guide(
                guides[1], tmp_path / to, to=to, merged=tmp_path / "merged", repo_id="me/x", announce=quiet
            )
        assert not (tmp_path / to).exists()
    export_guide(guides[0], tmp_path / "ollama", to="ollama", merged=tmp_path / "merged", announce=quiet)
    text = (tmp_path / "ollama" / "Modelfile").read_text(encoding="utf-8")
    assert text.startswith(f"FROM {tmp_path / 'merged'}\n")
    assert "ADAPTER" not in text


def test_an_evaluation_without_a_readable_picture_is_no_evaluation(tmp_path: Path) -> None:
    from fieldguide.build import evaluate

    data = labelled(tmp_path)
    guide = train_guide(data, tmp_path / "x.guide", recipe(tmp_path, epochs=1), announce=quiet)
    for example in data.of("test"):
        data.path(example).unlink()
    with pytest.raises(DataError, match=r"none of the .* pictures of the test split can be read"):
        evaluate(guide, data)
    assert not guide.report.exists()
