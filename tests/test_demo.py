"""The demonstration's material: the pictures are always the same, and the notes know every digit."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
from pathlib import Path

from fieldguide.demo import write_digits
from fieldguide.records import Note


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_pictures_are_always_the_same_and_one_is_held_out(tmp_path: Path) -> None:
    held_out = write_digits(tmp_path / "a")
    write_digits(tmp_path / "b")
    first = hashes(tmp_path / "a")
    assert first == hashes(tmp_path / "b")
    pictures = [name for name in first if name.startswith("digits")]
    assert len(pictures) == 1796
    assert {Path(name).parent.name for name in pictures} == set("0123456789")
    assert held_out == tmp_path / "a" / "held-out.png"
    assert first["held-out.png"] not in {first[name] for name in pictures}


def test_the_notes_know_every_digit_and_only_digits(tmp_path: Path) -> None:
    write_digits(tmp_path)
    with open(tmp_path / "notes.csv", encoding="utf-8", newline="") as file:
        notes = list(csv.DictReader(file))
    assert [note["label"] for note in notes] == list("0123456789")
    assert set(notes[0]) <= {field.name for field in dataclasses.fields(Note)}
    for note in notes:
        assert all(note.values()), f"an empty cell for {note['label']}"
        alike = set(note["look_alikes"].split(";"))
        assert alike <= set("0123456789") - {note["label"]}
