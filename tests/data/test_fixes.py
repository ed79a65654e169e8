"""Decisions about single pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from fieldguide.data.fixes import Fix, apply_fixes, read_fixes
from fieldguide.data.rows import Row
from fieldguide.errors import DataError

ROOT = Path("/photos")
ROWS = [Row(ROOT / "cat" / f"{n}.jpg", f"cat/{n}.jpg", label="cat") for n in range(5)]
HASHES = {row.image: f"{n}" * 64 for n, row in enumerate(ROWS)}


def test_reading(tmp_path: Path) -> None:
    path = tmp_path / "fixes.csv"
    path.write_text("file,action,label,why\na.jpg,Drop,,x\nb.jpg,relabel, dog ,\nc.jpg,,dog,undecided\n")
    assert read_fixes(path) == (
        Fix("a.jpg", "drop", "", "fixes.csv row 2"), Fix("b.jpg", "relabel", "dog", "fixes.csv row 3")
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,action\na,delete\n", "row 2: unknown action 'delete'"),
        ("file,action\na,relabel\n", "row 2: relabel needs a label"),
        ("file\na\n", "no column 'action'"),
    ],
)
def test_mistakes_are_refused_by_row(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "f.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_fixes(tmp_path / "f.csv")


def test_files_are_found_by_path_and_by_hash() -> None:
    fixes = [
        Fix("cat/0.jpg", "drop"), Fix("/photos/cat/1.jpg", "relabel", "dog"), Fix("2" * 64, "drop"),
        Fix("cat\\3.jpg", "keep"), Fix("cat/9.jpg", "drop", where="fixes.csv row 6"),
    ]  # fmt: skip
    rows, certain, problems = apply_fixes(ROWS, fixes, ROOT, HASHES)
    assert [(row.name, row.label) for row in rows] == [
        ("cat/1.jpg", "dog"), ("cat/3.jpg", "cat"), ("cat/4.jpg", "cat")
    ]  # fmt: skip
    assert certain == {ROOT / "cat" / "1.jpg", ROOT / "cat" / "3.jpg"}
    assert {(p.file, p.done) for p in problems} == {
        ("cat/0.jpg", "left out"), ("cat/2.jpg", "left out"),
        ("cat/1.jpg", "relabelled from 'cat' to 'dog'"), ("fixes.csv row 6: cat/9.jpg", "ignored"),
    }  # fmt: skip


def test_the_last_decision_counts() -> None:
    rows, _, _ = apply_fixes(ROWS, [Fix("cat/0.jpg", "drop"), Fix("cat/0.jpg", "keep")], ROOT, HASHES)
    assert len(rows) == 5
