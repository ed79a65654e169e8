"""Notes: what the owner knows about each label, read from a table and joined to the labels of the pictures.

Only the column `label` is required; `synonyms`, `field_marks` and `look_alikes` hold several texts split
at ";".
"""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fieldguide.data.rows import clean_label
from fieldguide.data.tables import (
    Table,
    cell_list,
    cell_text,
    column_named,
    read_json_source,
    read_table,
    records_table,
)
from fieldguide.errors import DataError
from fieldguide.files import natural_key, write_text
from fieldguide.records import Note, Problem

NOTE_COLUMNS = (
    "label", "scientific_name", "synonyms", "field_marks", "look_alikes", "how_to_tell_apart", "description",
)  # fmt: skip
_LISTS = ("synonyms", "field_marks", "look_alikes")
_ALSO_CALLED = {
    "label": ("name", "class"),
    "scientific_name": ("latin_name", "scientific"),
    "synonyms": ("synonym", "aliases", "other_names"),
    "field_marks": ("field_mark", "marks"),
    "look_alikes": ("look_alike", "similar", "confused_with"),
    "how_to_tell_apart": ("tell_apart", "differences"),
    "description": ("text",),
}


def read_notes(path: Path | str) -> tuple[Note, ...]:
    """Read a notes table (.csv, .tsv, .json, .jsonl or .parquet).

    Raises:
        DataError: when it is missing or unreadable, has no label column, or two rows claim the same name.
    """
    return read_notes_table(path)[0]


def read_notes_table(path: Path | str) -> tuple[tuple[Note, ...], tuple[Problem, ...]]:
    """As `read_notes`, and the problems met: another encoding, ragged rows, unknown columns."""
    table = _load(Path(path))
    columns = {name: column_named(table.columns, (name, *_ALSO_CALLED[name])) for name in NOTE_COLUMNS}
    if not columns["label"]:
        raise DataError(f"{path}: no column 'label'", f"its columns: {', '.join(table.columns)}")
    problems = list(table.problems)
    unknown = [column for column in table.columns if column and column not in columns.values()]
    if unknown:
        reason = f"unknown columns {', '.join(unknown)} (known: {', '.join(NOTE_COLUMNS)})"
        problems.append(Problem(table.path.name, reason, "not used", "notes"))
    notes: list[Note] = []
    owners: dict[str, int] = {}  # folded label -> index of its note
    for index, record in enumerate(table.records):
        note = _note(record, columns)
        if not note.label:
            raise DataError(f"{path}: {table.where(index)} has no label", "fill it in, or delete that row")
        first = owners.setdefault(fold_label(note.label), index)
        if first != index:
            reason = f"{table.where(index)} repeats the label {note.label!r} of row {table.rows[first]}"
            raise DataError(f"{path}: {reason}", "keep one row a label")
        notes.append(note)
    _check_synonyms(path, notes)
    return tuple(notes), tuple(problems)


def _load(path: Path) -> Table:
    if path.suffix.lower() != ".json" or not path.is_file():
        return read_table(path)
    value = read_json_source(path)
    if isinstance(value, dict):  # {label: description} or {label: {column: value}}
        value = [
            {"label": key, **entry} if isinstance(entry, dict) else {"label": key, "description": entry}
            for key, entry in value.items()
        ]
    return records_table(path, value)


def _note(record: dict[str, Any], columns: dict[str, str]) -> Note:
    values: dict[str, Any] = {}
    for name, column in columns.items():
        value = record.get(column) if column else None
        values[name] = _several(value) if name in _LISTS else cell_text(value)
    values["label"] = clean_label(values["label"])
    return Note(**values)


def _several(value: Any) -> tuple[str, ...]:
    """Texts of a cell; ";" parts them in notes.csv, so it must not stand within one of a JSON list."""
    if isinstance(value, list):
        value = [cell_text(part).replace(";", ",") for part in value]
    return cell_list(value, ";")


def _check_synonyms(path: Path | str, notes: Sequence[Note]) -> None:
    owners = {fold_label(note.label): note.label for note in notes}
    for note in notes:
        for synonym in note.synonyms:
            owner = owners.setdefault(fold_label(synonym), note.label)
            if owner != note.label:
                reason = f"the synonym {synonym!r} of {note.label!r} also stands for {owner!r}"
                raise DataError(f"{path}: {reason}", "leave it with one of them")


def fold_label(text: str) -> str:
    """A name as it is compared: NFC, without case; underscores and hyphens are blanks."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().replace("_", " ").replace("-", " ").split())


def join_notes(
    labels: Iterable[str], notes: Iterable[Note]
) -> tuple[dict[str, Note], tuple[str, ...], tuple[Note, ...]]:
    """Find the note of each label: by label, else by synonym, else by scientific name.

    A note serves one label only: that of its own name first.

    Returns:
        {label: its note, renamed to that label}, the labels without a note, the notes without pictures.
        A note's own name, where it differs, becomes a synonym, so nothing the owner wrote is lost.
    """
    labels, notes = sorted(set(labels), key=natural_key), list(notes)
    joined: dict[str, Note] = {}
    free = dict(enumerate(notes))
    for index, note in enumerate(notes):  # as it is written first: "Case" and "case" may both be labels
        if note.label in labels and note.label not in joined:
            joined[note.label] = free.pop(index)
    for names_of in (
        lambda note: (note.label,),
        lambda note: note.synonyms,
        lambda note: (note.scientific_name,) if note.scientific_name else (),
    ):
        names: dict[str, list[int]] = {}
        for index, note in free.items():
            for name in {fold_label(name) for name in names_of(note)}:
                names.setdefault(name, []).append(index)
        for label in labels:
            matches = [index for index in names.get(fold_label(label), []) if index in free]
            if label not in joined and len(matches) == 1:  # one species may have several notes: none fits
                joined[label] = _renamed(free.pop(matches[0]), label)
    taken = {fold_label(label) for label in labels}
    joined = {label: _without_synonyms(note, taken - {fold_label(label)}) for label, note in joined.items()}
    missing = tuple(label for label in labels if label not in joined)
    return {label: joined[label] for label in labels if label in joined}, missing, tuple(free.values())


def _renamed(note: Note, label: str) -> Note:
    if note.label == label:
        return note
    synonyms = tuple(name for name in (note.label, *note.synonyms) if fold_label(name) != fold_label(label))
    values = {name: getattr(note, name) for name in NOTE_COLUMNS}
    return Note(**{**values, "label": label, "synonyms": synonyms})


def _without_synonyms(note: Note, taken: set[str]) -> Note:
    """The note without synonyms that are themselves labels of the pictures."""
    synonyms = tuple(name for name in note.synonyms if fold_label(name) not in taken)
    values = {name: getattr(note, name) for name in NOTE_COLUMNS}
    return Note(**{**values, "synonyms": synonyms})


def write_notes(path: Path | str, notes: Iterable[Note]) -> None:
    """Write notes as CSV, in the column order of the format, for `read_notes` to read back unchanged."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(NOTE_COLUMNS)
    for note in notes:
        values = [getattr(note, name) for name in NOTE_COLUMNS]
        writer.writerow([";".join(value) if isinstance(value, tuple) else value for value in values])
    write_text(path, text.getvalue())
