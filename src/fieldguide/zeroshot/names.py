"""The labels to choose among, and the names that each is known by.

A name that two labels share could count for neither, so it is refused, as is one that is another label.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fieldguide.data.notes import fold_label, read_notes
from fieldguide.data.rows import clean_label
from fieldguide.errors import DataError
from fieldguide.records import Note

TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")


@dataclass(frozen=True)
class LabelNames:
    """Labels in their order, and what is known of each."""

    labels: tuple[str, ...]
    notes: Mapping[str, Note] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.labels) < 2:
            raise DataError(f"{len(self.labels)} label(s) to choose among; two are needed")
        owners: dict[str, str] = {}
        for label in self.labels:
            if (other := owners.setdefault(fold_label(label), label)) != label:
                raise DataError(f"the labels {other!r} and {label!r} are the same name", "rename one of them")
        for label in self.labels:
            for name in self.of(label)[1:]:
                owner = owners.setdefault(fold_label(name), label)
                if owner != label:
                    raise DataError(
                        f"the name {name!r} of {label!r} also stands for {owner!r}",
                        "leave it with one of them",
                    )

    def of(self, label: str) -> tuple[str, ...]:
        """The label in words first, then its synonyms and its scientific name, each once."""
        note = self.notes.get(label)
        others = (*note.synonyms, note.scientific_name) if note is not None else ()
        names = {fold_label(name): in_words(name) for name in reversed((label, *others)) if name.strip()}
        first = names.pop(fold_label(label))
        return (first, *reversed(names.values()))


def in_words(label: str) -> str:
    """A label as people say it: underscores are blanks."""
    return " ".join(label.replace("_", " ").split())


def names_from_notes(notes: Iterable[Note]) -> LabelNames:
    """All labels of a table of notes."""
    found = {note.label: note for note in notes}
    return LabelNames(tuple(found), found)


def read_labels(text: str, notes: Sequence[Note] = ()) -> LabelNames:
    """Labels as the command line takes them: `a,b,c`, a text file of one a line, or a table of notes.

    Args:
        notes: on some of the labels, where `text` is no table.

    Raises:
        DataError: when the file is missing or names one label twice, or there are fewer than two.
    """
    path = Path(text).expanduser()
    if path.suffix.lower() in TABLES and ("," not in text or path.is_file()):
        return names_from_notes(read_notes(path))
    if path.suffix.lower() == ".txt" and ("," not in text or path.is_file()):
        labels = _lines(path)
    else:
        cells = [cell for row in csv.reader([text], skipinitialspace=True) for cell in row]  # "a","b, too",c
        labels = [(clean_label(cell), f"label {number}") for number, cell in enumerate(cells, 1)]
    places: dict[str, str] = {}
    for label, place in labels:
        if not label:
            raise DataError(f"{text}: {place} is empty", "take it out")
        if label in places:
            raise DataError(f"{text}: {place} repeats {label!r} ({places[label]})", "name each label once")
        places[label] = place
    known = {note.label: note for note in notes}
    return LabelNames(tuple(places), {label: known[label] for label in places if label in known})


def _lines(path: Path) -> list[tuple[str, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file of labels", "check its spelling, or give a,b,c") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})", "save it as UTF-8") from error
    lines = ((clean_label(line), f"line {number}") for number, line in enumerate(text.splitlines(), 1))
    return [(label, place) for label, place in lines if label]
