"""The data set folder: round trip, other readers, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldguide.data.dataset import (
    Dataset,
    check_free,
    content_fingerprint,
    load_dataset,
    read_problems,
    write_dataset,
)
from fieldguide.data.notes import join_notes
from fieldguide.errors import DataError
from fieldguide.records import Example, Note, Problem, Turn

EXAMPLE = Example(
    "cat/1.jpg", "../p/cat/1.jpg", "ab" * 32, 640, 480, "0f" * 8, 'Zürich, "猫"', ("cat", "tabby"), "A text.",
    ("one", "two"), (Turn("user", "What?"), Turn("assistant", "A cat.")), "g1", "train", 2, "web", "CC0",
    {"n": [1]},
)  # fmt: skip
PLAIN = Example("dog/2.jpg", "../p/dog/2.jpg", "cd" * 32, label="dog", group="g2", split="test")
NOTE = Note('Zürich, "猫"', synonyms=("kitty",), description="Line one.\nLine two, with commas.")
PROBLEM = Problem("a, b.jpg", 'says "no"', "left out", "unreadable")


def write(folder: Path, *examples: Example, notes: tuple[Note, ...] = (NOTE,)) -> Dataset:
    return write_dataset(
        folder, examples or (EXAMPLE, PLAIN), notes, {"val": 0.1}, [PROBLEM], {"labels": "2 sub-folders"}
    )


def test_round_trip(tmp_path: Path) -> None:
    written = write(tmp_path / "set")
    loaded = load_dataset(tmp_path / "set")
    assert loaded == written
    assert loaded.examples == (EXAMPLE, PLAIN)
    assert loaded.notes == (NOTE,)
    assert loaded.labels == ('Zürich, "猫"', "dog")
    assert loaded.of("test") == (PLAIN,)
    assert loaded.path(PLAIN) == tmp_path / "p" / "dog" / "2.jpg"
    assert loaded.note('zürich, "猫"') == NOTE
    assert loaded.note("dog") is None
    assert read_problems(tmp_path / "set") == (PROBLEM,)
    info = json.loads((tmp_path / "set" / "dataset.json").read_text())
    assert info["counts"]["splits"] == {"train": 1, "val": 0, "test": 1}
    assert info["counts"]["labels"]["dog"] == {"train": 0, "val": 0, "test": 1}
    assert info["inferred"] == {"labels": "2 sub-folders"}
    assert info["problems"] == {"unreadable": 1}
    with pytest.raises(DataError, match="no split 'dev'"):
        loaded.of("dev")


def test_other_readers(tmp_path: Path) -> None:
    import pandas as pd
    import polars as pl

    write(tmp_path / "set")
    path = tmp_path / "set" / "examples.parquet"
    frame = pl.read_parquet(path)
    assert frame["labels"].to_list() == [["cat", "tabby"], []]
    assert frame["messages"].to_list()[0][1] == {"role": "assistant", "text": "A cat."}
    assert json.loads(frame["meta"][0]) == {"n": [1]}
    assert frame.schema["messages"] == pl.List(pl.Struct({"role": pl.String, "text": pl.String}))
    assert list(pd.read_parquet(path)["label"]) == ['Zürich, "猫"', "dog"]


def test_hugging_face_datasets_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    write(tmp_path / "set")
    rows = datasets.load_dataset(
        "parquet",
        data_files=str(tmp_path / "set" / "examples.parquet"),
        split="train",
        cache_dir=str(tmp_path / "c"),
    )
    assert rows["captions"][0] == ["one", "two"]


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    base = content_fingerprint((EXAMPLE, PLAIN), (NOTE,))
    assert content_fingerprint((PLAIN, EXAMPLE), (NOTE,)) == base
    moved = dataclasses.replace(EXAMPLE, image="/elsewhere/1.jpg")
    assert content_fingerprint((moved, PLAIN), (NOTE,)) == base
    for change in (
        {"id": "x"},
        {"sha256": "x"},
        {"label": "x"},
        {"split": "val"},
        {"text": "x"},
        {"captions": ()},
    ):
        changed = dataclasses.replace(EXAMPLE, **change)  # type: ignore[arg-type]
        assert content_fingerprint((changed, PLAIN), (NOTE,)) != base
    assert content_fingerprint((EXAMPLE, PLAIN), ()) != base
    write(tmp_path / "set")
    shutil.move(tmp_path / "set", tmp_path / "other place")
    assert load_dataset(tmp_path / "other place").fingerprint == base


def test_what_is_not_a_whole_data_set_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    with pytest.raises(DataError, match="no such data set folder"):
        load_dataset(folder)
    folder.mkdir()
    with pytest.raises(DataError, match="is not a data set"):
        load_dataset(folder)
    write(folder)
    info = (folder / "dataset.json").read_text()
    (folder / "dataset.json").unlink()
    with pytest.raises(DataError, match="half written"):
        load_dataset(folder)
    for broken in ("{", "[]", "{}", info.replace('"schema": 1', '"schema": "x"')):
        (folder / "dataset.json").write_text(broken)
        with pytest.raises(DataError, match="damaged"):
            load_dataset(folder)
    (folder / "dataset.json").write_text(info.replace('"schema": 1', '"schema": 99'))
    with pytest.raises(DataError, match="newer fieldguide"):
        load_dataset(folder)
    (folder / "dataset.json").write_text(info.replace('"examples": 2', '"examples": 3'))
    with pytest.raises(DataError, match=r"2 rows where dataset.json counts 3"):
        load_dataset(folder)
    (folder / "dataset.json").write_text(info)
    notes = (folder / "notes.csv").read_text()
    (folder / "notes.csv").write_text(notes.replace("kitty", "puss"))
    with pytest.raises(DataError, match="changed after the import"):
        load_dataset(folder)
    (folder / "notes.csv").unlink()
    with pytest.raises(DataError, match=r"notes\.csv"):
        load_dataset(folder)
    (folder / "notes.csv").write_text(notes)
    assert len(load_dataset(folder).examples) == 2
    (folder / "examples.parquet").write_bytes((folder / "examples.parquet").read_bytes()[:100])
    with pytest.raises(DataError, match="cannot be read"):
        load_dataset(folder)


def test_a_folder_of_other_files_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="holds other files"):
        write(tmp_path / "photos")
    with pytest.raises(DataError, match="is a file"):
        write(tmp_path / "photos" / "1.jpg")
    assert [path.name for path in tmp_path.rglob("*")] == ["photos", "1.jpg"]


def test_a_failure_leaves_nothing_or_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "set"
    with pytest.raises(KeyboardInterrupt):
        write_dataset(folder, [PLAIN], [], {}, [], {}, pictures=Interrupting())  # type: ignore[arg-type]
    assert not folder.exists()
    old = write(folder)
    (folder / "my fixes.csv").write_text("mine")
    with pytest.raises(KeyboardInterrupt):
        write_dataset(folder, [PLAIN], [], {}, [], {}, pictures=Interrupting())  # type: ignore[arg-type]
    assert load_dataset(folder) == old
    write(folder, PLAIN)
    assert load_dataset(folder).examples == (PLAIN,)
    assert sorted(path.name for path in folder.iterdir()) == [
        "dataset.json", "examples.parquet", "my fixes.csv", "notes.csv", "problems.csv",
    ]  # fmt: skip


class Interrupting(dict):  # type: ignore[type-arg]
    """Pictures to copy, during which the user presses Ctrl-C."""

    def __bool__(self) -> bool:
        return True

    def items(self) -> object:  # type: ignore[override]
        raise KeyboardInterrupt


def test_copied_pictures_replace_older_copies(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    for name in ("1.jpg", "2.jpg"):
        example = dataclasses.replace(PLAIN, image=f"images/{name}")
        write_dataset(
            tmp_path / "set", [example], [], {}, [], {}, pictures={f"images/{name}": tmp_path / "a.jpg"}
        )
        assert [path.name for path in (tmp_path / "set" / "images").iterdir()] == [name]
        assert load_dataset(tmp_path / "set").path(example).read_bytes() == b"a"
    assert not list((tmp_path / "set").glob(".*"))


def test_doubled_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two examples have the id"):
        write(tmp_path / "set", PLAIN, PLAIN)


texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)


@given(
    texts, texts, st.lists(texts, max_size=3), st.dictionaries(texts, texts | st.integers(0, 9), max_size=3)
)
def test_any_text_survives(
    tmp_path_factory: pytest.TempPathFactory,
    label: str,
    text: str,
    captions: list[str],
    meta: dict[str, object],
) -> None:
    folder = tmp_path_factory.mktemp("any") / "set"
    example = dataclasses.replace(PLAIN, label=label, text=text, captions=tuple(captions), meta=meta)
    problem = Problem(text, label, text)
    write_dataset(folder, [example], [], {}, [problem], {})
    assert load_dataset(folder).examples == (example,)


def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        check_free(tmp_path / "file" / "deep" / "dataset")


def test_labels_that_differ_in_case_share_no_note(tmp_path: Path) -> None:
    examples = [dataclasses.replace(PLAIN, id=label, label=label) for label in ("Case", "case")]
    made = write_dataset(tmp_path / "d", examples, [Note(label="case")], {}, [], {})
    assert (made.note("Case"), made.note("case")) == (None, Note(label="case"))
    assert join_notes(["Case", "case"], [Note(label="case")])[1] == ("Case",)
