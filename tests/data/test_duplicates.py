"""Rows about one picture become one, and copies with different labels are left out."""

from __future__ import annotations

from pathlib import Path

from fieldguide.data.duplicates import settle_duplicates
from fieldguide.data.rows import Row
from fieldguide.records import Turn


def row(name: str, label: str = "", **more: object) -> Row:
    return Row(Path("/p") / name, name, label=label, **more)  # type: ignore[arg-type]


def settle(*rows: Row, same: str = "", sure: str = "") -> tuple[list[Row], list[tuple[str, str]]]:
    """Pictures whose name is in `same` have one content."""
    hashes = {r.image: "same" if r.name in same.split() else r.name for r in rows}
    kept, problems = settle_duplicates(rows, hashes, {Path("/p") / name for name in sure.split()})
    return kept, [(problem.file, problem.kind) for problem in problems]


def test_captions_and_questions_of_one_file_are_gathered() -> None:
    """Case 27: several questions on one picture are one example, so they cannot be parted."""
    one, two = ((Turn("user", f"{n}?"), Turn("assistant", f"{n}.")) for n in "ab")
    kept, problems = settle(
        row("1", captions=("x",), messages=one, text="t"),
        row("2"),
        row("1", captions=("x", "y"), messages=two),
    )
    assert [(r.name, r.captions, r.messages, r.text) for r in kept] == [
        ("1", ("x", "y"), one + two, "t"), ("2", (), (), "")
    ]  # fmt: skip
    assert problems == []


def test_exact_copies_leave_the_first_with_all_that_is_known() -> None:
    kept, problems = settle(
        row("1", "cat", captions=("x",)), row("2", "cat", captions=("y",)), row("3"), same="1 2 3"
    )
    assert [(r.name, r.label, r.captions) for r in kept] == [("1", "cat", ("x", "y"))]
    assert problems == [("2", "duplicate"), ("3", "duplicate")]


def test_of_copies_in_several_splits_the_test_picture_stays() -> None:
    kept, problems = settle(
        row("1", "cat", split="train"),
        row("2", "cat", split="val"),
        row("3", "cat", split="test"),
        same="1 2 3",
    )
    assert [r.name for r in kept] == ["3"]
    assert problems == [("1", "duplicate"), ("2", "duplicate")]


def test_conflicting_labels_leave_all_out() -> None:
    kept, problems = settle(row("1", "cat"), row("2", "dog"), row("3", "dog"), same="1 2")
    assert [r.name for r in kept] == ["3"]
    assert problems == [("1", "conflict"), ("2", "conflict")]
    kept, problems = settle(row("1", "cat"), row("1", "dog"))
    assert (kept, problems) == ([], [("1", "conflict")])


def test_the_user_s_word_settles_a_conflict() -> None:
    kept, problems = settle(row("1", "cat"), row("2", "dog"), same="1 2", sure="2")
    assert [(r.name, r.label) for r in kept] == [("2", "dog")]
    assert problems == [("1", "conflict")]
