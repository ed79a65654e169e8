"""Files of conversations, read with their pictures.

    read_conversations(Path("llava_instruct_150k.json"), ImportSettings(), images=Path("coco/train2017"))

Nothing is decoded and nothing is written; a row that cannot be used becomes a problem that names it.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from fieldguide.data.columns import PictureFinder
from fieldguide.data.llava import PICTURE_KEYS, TURN_KEYS, Faulty, Told, holds_conversation, read_conversation
from fieldguide.data.rows import clean_label, printable, row_name, split_of
from fieldguide.data.stream import STREAMED, stream_records
from fieldguide.data.tables import cell_list, cell_text
from fieldguide.errors import DataError
from fieldguide.records import Problem, Turn
from fieldguide.settings import ImportSettings

_LOOKED_AT = 20  # records that decide whether a file holds conversations
_USED = frozenset((
    *TURN_KEYS, *PICTURE_KEYS, "id", "system", "labels", "text", "captions", "split", "source", "licence",
    "license", "meta",
))  # fmt: skip  # keys that play a part of their own


@dataclass(frozen=True, slots=True)
class Conversation:
    """One row of a file of conversations."""

    name: str  # the example's id: the row's own, made unique
    where: str  # "chats.json row 7"
    own_id: str  # as the file gives it, "" for none
    pictures: tuple[Path, ...]  # absolute, in the order in which they stand before the first turn
    messages: tuple[Turn, ...]
    label: str = ""
    labels: tuple[str, ...] = ()
    text: str = ""
    captions: tuple[str, ...] = ()
    split: str = ""  # given by the source
    group: str = ""
    source: str = ""
    licence: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """How problems name the row: file, row and id."""
        return printable(f"{self.where}: {self.name}")


@dataclass(frozen=True)
class Conversations:
    """All rows of a file, what was inferred to read them, and what could not be used."""

    root: Path  # absolute folder of the pictures
    rows: tuple[Conversation, ...]
    inferred: dict[str, str]
    problems: tuple[Problem, ...]
    total: int  # rows of the file, those that could not be used included


def holds_conversations(path: Path) -> bool:
    """Whether a file is a list of conversations, by its first records."""
    if path.suffix.lower() not in STREAMED or not path.is_file():
        return False
    try:
        return any(holds_conversation(record) for _, record in islice(stream_records(path), _LOOKED_AT))
    except DataError:  # no list of records, or broken: who reads it as a table says what is wrong
        return False


def read_conversations(path: Path, settings: ImportSettings, images: Path | None = None) -> Conversations:
    """Read a file of conversations; no picture is decoded.

    Args:
        images: the folder of the pictures, else that of the file.

    Raises:
        DataError: when the file is broken, or no row of it can be used.
    """
    reader = _Reader(path, settings, images or path.parent)
    for number, record in stream_records(path):
        reader.add(number, record)
    return reader.result()


class _Reader:
    def __init__(self, path: Path, settings: ImportSettings, root: Path) -> None:
        self.path, self.settings, self.root = path, settings, root
        self.finder = PictureFinder(root)
        self.total = 0
        self.rows: list[Conversation] = []
        self.problems: list[Problem] = []
        self.bare: set[str] = set()  # names of rows with pictures and without placeholder
        self.placeholders = False  # whether any row writes some
        self.unknown_splits: set[str] = set()
        self._found: dict[str, Path | None] = {}
        self._names: set[str] = set()
        self._next: Counter[str] = Counter()

    def add(self, number: int, record: Any) -> None:
        """Take over one record, or say what is wrong with it."""
        self.total += 1
        where = f"{self.path.name} row {number}"
        own_id = cell_text(record.get("id")) if isinstance(record, Mapping) else ""
        title = printable(f"{where}: {own_id}" if own_id else where)
        try:
            told = read_conversation(record, self.settings.image_column)
        except Faulty as fault:
            self.problems.append(Problem(title, printable(str(fault)), "left out", "row"))
            return
        self.placeholders = self.placeholders or told.placeholders > 0
        if told.placeholders not in (len(told.pictures), 0) or (told.placeholders and not told.pictures):
            reason = f"{told.placeholders} <image> in the text, but {len(told.pictures)} pictures"
            self.problems.append(Problem(title, reason, "left out", "placeholder"))
            return
        pictures = self.find_all(told.pictures, where)
        if pictures is None:
            return
        if told.moved:
            reason = "an <image> within the text or in a later turn: pictures stand before the first turn"
            self.problems.append(Problem(title, reason, "kept", "placeholder"))
        row = self.row(record, told, pictures, where, own_id or f"{self.path.stem}-{number}", own_id)
        if pictures and not told.placeholders:
            self.bare.add(row.name)
        self.rows.append(row)

    def row(
        self,
        record: Mapping[str, Any],
        told: Told,
        pictures: tuple[Path, ...],
        where: str,
        name: str,
        own: str,
    ) -> Conversation:
        """The row of a sound record; keys that play no part go to `meta`."""

        def cell(key: str) -> str:
            value = record.get(key)
            return "" if value is None else cell_text(value)

        by = self.settings.group_by
        label_key = self.settings.label_column or "label"
        group_key = by if by and by != "parent" else "group"
        group = printable(row_name(pictures[0].parent, self.root)) if by == "parent" and pictures else ""
        split = cell("split")
        if split and not split_of(split):
            self.unknown_splits.add(split)
        used = (*_USED, label_key, group_key, self.settings.image_column)
        meta = {key: value for key, value in record.items() if key not in used and value not in (None, "")}
        labels, captions = record.get("labels"), record.get("captions")
        return Conversation(
            name=self.unique(printable(name)),
            where=where,
            own_id=own,
            pictures=pictures,
            messages=told.messages,
            label=clean_label(cell(label_key)),
            labels=tuple(clean_label(part) for part in cell_list(labels)) if labels else (),
            text=cell("text"),
            captions=cell_list(captions, separators="\n") if captions else (),
            split=split_of(split) if split else "",
            group=group or clean_label(cell(group_key)),
            source=cell("source"),
            licence=cell("licence") or cell("license"),
            meta={**_own_meta(record.get("meta")), **meta},
        )

    def unique(self, name: str) -> str:
        """The name, with a number where it was given before (files repeat the picture's)."""
        wanted = name
        while wanted in self._names:
            self._next[name] += 1
            wanted = f"{name}#{self._next[name] + 1}"
        self._names.add(wanted)
        return wanted

    def find_all(self, named: Sequence[Any], where: str) -> tuple[Path, ...] | None:
        """The files of a row's pictures; None, and a problem, when one is missing."""
        files = []
        for value in named:
            text = cell_text(value.get("path") if isinstance(value, Mapping) else value).replace("\\", "/")
            if text not in self._found:
                self._found[text] = self.find(text)
            file = self._found[text]
            if file is None:
                inside = isinstance(value, Mapping) and value.get("bytes")
                reason = "lies within the table: save it as a file" if inside else self.finder.why_not(text)
                short = text if len(text) <= 200 else f"{text[:200]}…"
                name = printable(f"{where}: {short}" if text else where)
                self.problems.append(Problem(name, reason, "left out", "missing"))
                return None
            files.append(file)
        return tuple(files)

    def find(self, text: str) -> Path | None:
        """A picture's file. One of another folder that only has the same name is another picture."""
        file = self.finder.find(text)
        if file is None or "/" not in text:
            return file
        if file in [Path(os.path.normpath(place / text)) for place in (self.root, self.root / "images")]:
            return file
        wanted, below = Path(text).parts, Path(row_name(file, self.root)).parts
        agree = wanted[-len(below) :] == below or below[-len(wanted) :] == wanted
        return file if agree else None

    def result(self) -> Conversations:
        """All that was read, once it is known whether the file writes placeholders."""
        self.problems += self.split_problems()
        inferred = {"conversations": ""}
        rows = self.rows
        if self.bare and self.placeholders:
            rows = [row for row in rows if row.name not in self.bare]
            reason = "pictures, but no <image> in the text, which other rows have"
            left_out = (row for row in self.rows if row.name in self.bare)
            self.problems += [Problem(row.title, reason, "left out", "placeholder") for row in left_out]
        elif self.bare:
            inferred["placeholders"] = "no <image> in any row: the pictures stand before the first turn"
        if not rows:
            raise self.nothing_left()
        without = sum(not row.pictures for row in rows)
        inferred["conversations"] = f"{len(rows)} in {self.path.name}, {without} of them without a picture"
        if splits := sorted({row.split for row in rows if row.split}):
            inferred["splits"] = f"given by rows: {', '.join(splits)}"
        if groups := {row.group for row in rows if row.group}:
            inferred["groups"] = f"{len(groups)} values, each kept on one side"
        return Conversations(self.root, tuple(rows), inferred, tuple(self.problems), self.total)

    def split_problems(self) -> list[Problem]:
        reason = "split {!r} is not train, val or test"
        return [
            Problem(self.path.name, printable(reason.format(split)), "split chosen for its rows", "row")
            for split in sorted(self.unknown_splits)
        ]

    def nothing_left(self) -> DataError:
        reasons = "; ".join(f"{problem.file}: {problem.reason}" for problem in self.problems[:3])
        missing = any(problem.kind == "missing" for problem in self.problems)
        hint = "give the folder of the pictures: --images FOLDER" if missing else "repair its rows"
        return DataError(f"{self.path}: no row can be used ({reasons})", hint)


def _own_meta(value: Any) -> dict[str, Any]:
    """What an export of a data set keeps under `meta`: an object, in Parquet as JSON text."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = json.loads(value)
        except ValueError:
            return {"meta": value}
    if isinstance(value, Mapping):
        return dict(value)
    return {} if value in (None, "") else {"meta": value}
