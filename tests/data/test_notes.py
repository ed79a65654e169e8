"""Notes: reading, refusing what is ambiguous, joining to labels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldguide.data.notes import fold_label, join_notes, read_notes, read_notes_table, write_notes
from fieldguide.errors import DataError
from fieldguide.records import Note

CAT = Note(
    "cat", "Felis catus", ("house cat", "kitten"), ("whiskers",), ("dog",), "A cat meows.", "Small, agile."
)


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "notes.csv"
    path.write_text(
        "Label,Scientific name,synonyms,field_marks,look-alikes,how to tell apart,description\n"
        'cat,Felis catus,house cat; kitten,whiskers,dog,A cat meows.,"Small, agile."\ndog,,,,,,\n'
    )
    assert read_notes(path) == (CAT, Note("dog"))


@pytest.mark.parametrize("name", ["notes.json", "notes.jsonl", "mapping.json"])
def test_json(tmp_path: Path, name: str) -> None:
    record = {"label": "cat", "synonyms": ["house cat", "a; b"], "description": "Small."}
    path = tmp_path / name
    if name == "notes.json":
        path.write_text(json.dumps([record]))
    elif name == "notes.jsonl":
        path.write_text(json.dumps(record) + "\n")
    else:
        path.write_text(
            json.dumps({"cat": {k: v for k, v in record.items() if k != "label"}, "dog": "Loud."})
        )
    notes = read_notes(path)
    assert notes[0] == Note("cat", synonyms=("house cat", "a, b"), description="Small.")
    assert notes[1:] == ((Note("dog", description="Loud."),) if name == "mapping.json" else ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label\ncat\ndog\nCat\n", "row 4 repeats the label 'Cat' of row 2"),
        ("label,synonyms\ncat,kitty\ndog,Kitty\n", "'Kitty' of 'dog' also stands for 'cat'"),
        ("label,synonyms\ncat,\ndog,cat\n", "'cat' of 'dog' also stands for 'cat'"),
        ('label\ncat\n""\n', None),
        ("label,text\n,hello\n", "row 2 has no label"),
        ("species,text\ncat,x\n", "no column 'label'"),
    ],
)
def test_ambiguous_notes_are_refused(tmp_path: Path, text: str, message: str | None) -> None:
    path = tmp_path / "n.csv"
    path.write_text(text)
    if message is None:  # a blank line is no row
        assert len(read_notes(path)) == 1
        return
    with pytest.raises(DataError, match=message):
        read_notes(path)


def test_unknown_columns_are_reported_not_dropped_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "n.csv"
    path.write_text("label,habitat\ncat,houses\n")
    _, problems = read_notes_table(path)
    assert "habitat" in problems[0].reason


def test_join_by_label_synonym_and_scientific_name() -> None:
    notes = [
        CAT, Note("edge-on"), Note("boal", "Wallago attu"), Note("owl"),
        Note("poodle", "Canis lupus"), Note("pug", "Canis lupus"),
    ]  # fmt: skip
    labels = ["House_Cat", "edge_on", "WALLAGO ATTU", "canis lupus", "zebra"]
    joined, without_notes, without_pictures = join_notes(labels, notes)
    assert joined["House_Cat"].label == "House_Cat"
    assert joined["House_Cat"].synonyms == ("cat", "kitten")
    assert joined["edge_on"].label == "edge_on"
    assert joined["WALLAGO ATTU"].synonyms == ("boal",)
    assert without_notes == ("canis lupus", "zebra")  # two notes share that species: none is chosen
    assert [note.label for note in without_pictures] == ["owl", "poodle", "pug"]


def test_a_note_serves_one_label_and_its_own_name_first() -> None:
    joined, missing, left = join_notes(["kitten", "cat"], [CAT])
    assert set(joined) == {"cat"}
    assert joined["cat"].synonyms == ("house cat",)  # "kitten" is a label of its own here
    assert (missing, left) == (("kitten",), ())


names = st.text(
    st.characters(exclude_categories=("Cs", "Cc", "Z"), exclude_characters=";"), min_size=1, max_size=8
)


@given(st.lists(names, unique_by=fold_label, min_size=1, max_size=6), names, st.lists(names, max_size=3))
def test_written_notes_read_back_unchanged(
    tmp_path_factory: pytest.TempPathFactory, labels: list[str], text: str, marks: list[str]
) -> None:
    path = tmp_path_factory.mktemp("notes") / "notes.csv"
    notes = [
        Note(label, description=f'{text},"\n{text}', field_marks=tuple(dict.fromkeys(marks)))
        for label in labels
    ]
    write_notes(path, notes)
    once = read_notes(path)
    write_notes(path, once)
    assert read_notes(path) == once
    assert [note.description for note in once] == [note.description for note in notes]
    assert [note.field_marks for note in once] == [note.field_marks for note in notes]


@pytest.mark.parametrize("name", ["animals", "chess", "digits", "fish", "galaxies"])
def test_real_notes_join_their_pictures(shared_data: Path, name: str) -> None:
    from fieldguide.data.read import read_source

    labels = {row.label for row in read_source(shared_data / name).rows}
    joined, without_notes, _ = join_notes(labels, read_notes(shared_data / "notes" / f"{name}.csv"))
    assert set(joined) == labels
    assert without_notes == ()
