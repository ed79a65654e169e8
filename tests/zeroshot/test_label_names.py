"""Labels as the command line takes them, and the names each is known by."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldguide.errors import DataError
from fieldguide.records import Note
from fieldguide.zeroshot.names import LabelNames, read_labels

CAT = Note("cat", scientific_name="Felis catus", synonyms=("house cat", "CAT", "kitten"))


def test_a_list_a_text_file_and_a_table_give_the_same_labels(tmp_path: Path) -> None:
    wanted = ("cat", "sea cucumber", "dog, wild")
    (tmp_path / "labels.txt").write_text("\ufeffcat\n\n sea  cucumber \ndog, wild\n", encoding="utf-8")
    (tmp_path / "notes.csv").write_text('label,synonyms\ncat,kitten\nsea cucumber,\n"dog, wild",\n')
    assert read_labels('cat, sea cucumber,"dog, wild"').labels == wanted
    assert read_labels(str(tmp_path / "labels.txt")).labels == wanted
    table = read_labels(str(tmp_path / "notes.csv"))
    assert table.labels == wanted
    assert table.of("cat") == ("cat", "kitten")


def test_names_come_once_the_label_first() -> None:
    names = LabelNames(("cat", "edge_on"), {"cat": CAT})
    assert names.of("cat") == ("cat", "house cat", "kitten", "Felis catus")
    assert names.of("edge_on") == ("edge on",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cat", "1 label"),
        ("cat,,dog", "label 2 is empty"),
        ("cat,dog,cat", "label 3 repeats 'cat' \\(label 1\\)"),
        ("cat,Cat", "the labels 'cat' and 'Cat' are the same name"),
        ("missing.txt", "no such file of labels"),
        ("missing.csv", "missing.csv"),
    ],
)
def test_what_cannot_be_is_named(text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_labels(text)


def test_a_name_that_two_labels_share_is_refused() -> None:
    other = Note("lynx", synonyms=("House  Cat",))
    with pytest.raises(DataError, match="the name 'House Cat' of 'lynx' also stands for 'cat'"):
        LabelNames(("cat", "lynx"), {"cat": CAT, "lynx": other})
    with pytest.raises(DataError, match="the name 'kitten' of 'cat' also stands for 'kitten'"):
        LabelNames(("cat", "kitten"), {"cat": CAT})


ANY = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Z")), min_size=1)


@given(st.lists(ANY, min_size=2))
def test_any_script_comes_through(labels: list[str]) -> None:
    import csv
    import io

    line = io.StringIO()
    csv.writer(line).writerow(labels)
    try:
        found = read_labels(line.getvalue().rstrip("\r\n"))
    except DataError:
        return  # two are one name, or a name of blanks only
    assert len(found.labels) == len(labels)
