"""Data sets as other trainers read them, and back again without a loss."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fieldguide.data.dataset import Dataset, load_dataset
from fieldguide.data.export import FORMATS, export_examples
from fieldguide.data.importer import import_pictures
from fieldguide.data.llava import escaped
from fieldguide.errors import DataError
from fieldguide.records import Turn
from fieldguide.settings import ImportSettings

Make = Callable[..., Path]
AS_GIVEN = ImportSettings(val=0, test=0)  # all splits come from the file
TEXTS = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("<\\image>\n\r\t\"' ")), max_size=40
) | st.sampled_from(
    ["<image>", "<image>\n", "\n<image>", "<\\image>", "a <image> b", "\\", '"', "\u2028", "🙂"]
)
ANSWERS = TEXTS.filter(str.strip)
CHATS = st.builds(
    lambda system, pairs: (
        ([("system", system)] if system else [])
        + [turn for one, two in pairs for turn in (("user", one), ("assistant", two))]
    ),
    st.none() | ANSWERS,
    st.lists(st.tuples(TEXTS, ANSWERS), min_size=1, max_size=3),
)
FILES = [(to, suffix) for to in FORMATS for suffix in FORMATS[to]]


def quiet(source: Path, out: Path, how: ImportSettings | None = None, **more: Any) -> Dataset:
    return import_pictures(source, out, how, announce=lambda line: None, **more)


def written(to: str, out: Path, dataset: Dataset, **more: Any) -> int:
    return export_examples(dataset, to, out, announce=lambda line: None, **more)


def parts(turns: list[tuple[str, str]], count: int) -> list[dict[str, Any]]:
    """Turns as `messages` of parts, the pictures in the first question; "<image>" in texts is escaped."""
    messages: list[dict[str, Any]] = []
    for role, text in turns:
        shown = [{"type": "image"}] * count if role == "user" else []
        count = 0 if role == "user" else count
        messages.append({"role": role, "content": [*shown, {"type": "text", "text": escaped(text)}]})
    return messages


@settings(max_examples=25)
@given(
    rows=st.lists(st.tuples(CHATS, st.integers(0, 3)), min_size=1, max_size=6), where=st.sampled_from(FILES)
)
def test_what_is_exported_comes_back_equal(
    tmp_path_factory: pytest.TempPathFactory,
    draw: Callable[..., Image.Image],
    rows: list[tuple[list[tuple[str, str]], int]],
    where: tuple[str, str],
) -> None:
    folder = tmp_path_factory.mktemp("round")
    for number in range(3):
        draw(number).save(folder / f"{number}.png")
    records = [
        {
            "id": f"row {number}",
            "images": [f"{(number + place) % 3}.png" for place in range(count)],
            "messages": parts(turns, count),
            "origin": {"page": number},
        }
        for number, (turns, count) in enumerate(rows)
    ]
    (folder / "chats.json").write_text(json.dumps(records))
    first = quiet(folder / "chats.json", folder / "first")
    to, suffix = where
    assert written(to, folder / f"out{suffix}", first) == len(first.examples)
    again = quiet(folder / f"out{suffix}", folder / "again", AS_GIVEN)
    assert again.examples == first.examples
    assert again.fingerprint == first.fingerprint


@pytest.fixture
def chats(tmp_path: Path, make_picture: Make) -> Dataset:
    for number in range(3):
        make_picture(f"p/{number}.jpg", seed=number)
    turns = [{"from": "human", "value": "<image>\nHi <\\image>"}, {"from": "gpt", "value": "Ho"}]
    rows: list[dict[str, Any]] = [
        {"id": "one", "image": "p/0.jpg", "conversations": turns, "system": "Be brief.", "label": "cat",
         "page": 3},
        {"id": "two", "image": ["p/1.jpg", "p/2.jpg"],
         "conversations": [{**turns[0], "value": "<image>" * 2}, turns[1]]},
        {"id": "none", "conversations": [{"from": "human", "value": "Hi"}, turns[1]], "split": "train"},
    ]  # fmt: skip
    (tmp_path / "chats.json").write_text(json.dumps(rows))
    return quiet(tmp_path / "chats.json", tmp_path / "set")


def test_llava_rows(tmp_path: Path, chats: Dataset) -> None:
    """As LLaVA's own trainer reads them: human and gpt only, one placeholder a picture, in front."""
    assert written("llava", tmp_path / "out" / "a.json", chats) == 3
    one, two, none = json.loads((tmp_path / "out" / "a.json").read_text())
    assert one["image"] == "../p/0.jpg"
    assert one["conversations"] == [
        {"from": "human", "value": "<image>\nHi <\\image>"}, {"from": "gpt", "value": "Ho"}
    ]  # fmt: skip
    assert (one["system"], one["label"], one["meta"]) == ("Be brief.", "cat", {"page": 3})
    assert two["image"] == ["../p/1.jpg", "../p/2.jpg"]
    assert two["conversations"][0]["value"] == "<image>\n<image>\n"
    assert "meta" not in two
    assert "image" not in none
    assert [row["split"] for row in (one, two, none)] == [e.split for e in chats.examples]


def test_sharegpt_lines(tmp_path: Path, chats: Dataset) -> None:
    written("sharegpt", tmp_path / "a.jsonl", chats)
    one, two, none = map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())
    assert [turn["from"] for turn in one["conversations"]] == ["system", "human", "gpt"]
    assert (one["images"], two["images"]) == (["p/0.jpg"], ["p/1.jpg", "p/2.jpg"])
    assert "images" not in none


def test_parquet_opens_in_datasets(tmp_path: Path, chats: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    written("parquet", tmp_path / "a.parquet", chats)
    monkeypatch.chdir(tmp_path.parent)
    table = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "a.parquet"), cache_dir=str(tmp_path / "c")
    )["train"]
    assert [[image.size for image in images] for images in table["images"]] == [
        [(64, 48)],
        [(64, 48)] * 2,
        [],
    ]
    assert table[0]["messages"] == [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "image", "text": None},
                                     {"type": "text", "text": "Hi <\\image>"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Ho"}]},
    ]  # fmt: skip
    assert table["label"] == ["cat", None, None]


def test_one_split_alone(tmp_path: Path, chats: Dataset) -> None:
    written("llava", tmp_path / "a.json", chats, split="train")
    assert {row["split"] for row in json.loads((tmp_path / "a.json").read_text())} == {"train"}


def test_labels_and_notes_become_conversations(tmp_path: Path, make_picture: Make) -> None:
    for number in range(12):
        make_picture(f"p/{('cat', 'dog')[number % 2]}/{number}.png", seed=number)
    (tmp_path / "notes.csv").write_text(
        "label,field_marks,look_alikes,how_to_tell_apart,description\n"
        "cat,whiskers;soft paws,dog,Cats are quiet.,It purrs.\n"
    )
    first = quiet(tmp_path / "p", tmp_path / "set", notes=tmp_path / "notes.csv")
    assert written("llava", tmp_path / "a.json", first) == 12
    rows = {row["id"]: row for row in json.loads((tmp_path / "a.json").read_text())}
    assert [turn["value"] for turn in rows["cat/0.png"]["conversations"]] == [
        "<image>\nWhat is in this picture?", "cat",
        "How can you tell?", "Typical of cat: whiskers; soft paws.",
        "What could it be confused with?", "Most easily confused with dog. Cats are quiet.",
        "Tell me about it.", "It purrs.",
    ]  # fmt: skip
    assert [turn["value"] for turn in rows["dog/1.png"]["conversations"]][1:] == ["dog"]
    again = quiet(tmp_path / "a.json", tmp_path / "again", AS_GIVEN)
    same = [dataclasses.replace(e, messages=()) for e in again.examples]
    assert same == [dataclasses.replace(e) for e in first.examples]
    written("llava", tmp_path / "b.json", again)
    assert (tmp_path / "b.json").read_text() == (tmp_path / "a.json").read_text()


def test_captions_become_conversations_of_their_own(tmp_path: Path, make_picture: Make) -> None:
    for number in range(3):
        make_picture(f"{number}.png", seed=number)
    table = {"0": ["A cat.", "A grey cat."], "1": "A dog.", "2": "An owl."}
    (tmp_path / "captions.json").write_text(json.dumps(table))
    first = quiet(tmp_path / "captions.json", tmp_path / "set")
    assert written("sharegpt", tmp_path / "a.json", first) == 4
    rows = json.loads((tmp_path / "a.json").read_text())
    assert [(row["id"], row["conversations"][1]["value"]) for row in rows] == [
        ("0.png", "A cat."), ("0.png#2", "A grey cat."), ("1.png", "A dog."), ("2.png", "An owl.")
    ]  # fmt: skip
    assert {row["conversations"][0]["value"] for row in rows} == {"<image>\nDescribe this picture."}
    again = quiet(tmp_path / "a.json", tmp_path / "again", AS_GIVEN)
    assert [e.split for e in again.examples] == [row["split"] for row in rows]


def test_wishes_that_cannot_be_met(tmp_path: Path, chats: Dataset) -> None:
    for to, out, reason in (
        ("coco", tmp_path / "a.json", "no format 'coco'"),
        ("parquet", tmp_path / "a.json", "not a name for a parquet file"),
        ("llava", tmp_path, "not a name"),
        ("llava", tmp_path / "chats.json", "what the data set is made of"),
        ("parquet", tmp_path / "set" / "examples.parquet", "what the data set is made of"),
    ):
        with pytest.raises(DataError, match=reason):
            export_examples(chats, to, out)
    assert load_dataset(tmp_path / "set") == chats


def test_nothing_half_written_and_an_older_file_replaced(
    tmp_path: Path, chats: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.json").write_text("older")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fieldguide.data.export._json_row", stop)
        with pytest.raises(KeyboardInterrupt):
            written("llava", tmp_path / "a.json", chats)
    assert (tmp_path / "a.json").read_text() == "older"
    written("llava", tmp_path / "a.json", chats)
    assert len(json.loads((tmp_path / "a.json").read_text())) == 3


def test_examples_with_nothing_to_say_are_counted(tmp_path: Path, chats: Dataset) -> None:
    mute = dataclasses.replace(chats.examples[0], messages=(), label="")
    told = dataclasses.replace(mute, id="told", messages=(Turn("user", "Hi"), Turn("assistant", "Ho")))
    said: list[str] = []
    dataset = dataclasses.replace(chats, examples=(mute, told))
    assert export_examples(dataset, "llava", tmp_path / "a.json", announce=said.append) == 1
    assert said == ["left out: 1 examples without label, caption or conversation"]
    with pytest.raises(DataError, match="nothing to export"):
        written("llava", tmp_path / "b.json", dataclasses.replace(chats, examples=(mute,)))
