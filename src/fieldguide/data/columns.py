"""Which column of a table is which, and from a record to a row.

Columns are found by their names; the image column also by whether its values are existing pictures.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fieldguide.data.rows import Row, clean_label, looks_like_picture, split_of, utf8_name, walk
from fieldguide.data.tables import Table, cell_list, cell_text, column_named
from fieldguide.errors import DataError
from fieldguide.records import Turn
from fieldguide.settings import ImportSettings

_NAMES: dict[str, tuple[str, ...]] = {
    "image": (
        "image", "file_name", "file", "image_path", "image_file", "path", "file_path", "img", "img_path",
        "picture", "photo", "image_name", "image_id", "img_name", "name", "id",
    ),
    "label": ("label", "class", "class_name", "label_name", "category", "species", "target"),
    "labels": ("labels", "tags"),
    "text": ("text", "description"),
    "captions": ("captions", "caption"),
    "split": ("split", "subset", "fold_name"),
    "group": ("group", "group_id"),
    "source": ("source",),
    "licence": ("licence", "license"),
    "question": ("question",),
    "answer": ("answer",),
}  # fmt: skip
_LOOKED_AT = 200  # values of a column that decide whether it holds pictures


@dataclass(frozen=True)
class Columns:
    """The column that plays each part; "" where there is none."""

    image: str
    label: str = ""
    labels: str = ""
    text: str = ""
    captions: str = ""
    split: str = ""
    group: str = ""
    source: str = ""
    licence: str = ""
    question: str = ""
    answer: str = ""

    def sentence(self) -> str:
        """What was found, in words: "file → image, class → label"."""
        return ", ".join(f"{column} → {part}" for part, column in vars(self).items() if column)


class PictureFinder:
    """Finds the picture a table means: by path, in images/, or anywhere below by name or bare stem."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, value: Any) -> Path | None:
        """The absolute path of an existing picture, or None when there is none or several could be meant."""
        text = cell_text(value).replace("\\", "/")
        if not text or "\0" in text or "://" in text:
            return None
        for place in (self.folder, self.folder / "images"):
            path = place / text  # an absolute text replaces the folder
            try:
                if path.is_file() and looks_like_picture(path):
                    return Path(os.path.normpath(path))
            except OSError:  # longer than a file name can be: a sentence, not a path
                return None
        matches = (
            self._index.get(_key(text)) or (self._index.get(_number(text)) if text.isdigit() else None) or []
        )
        return matches[0] if len(matches) == 1 else None

    def why_not(self, value: Any) -> str:
        """Why `find` gave None, for a table of problems."""
        text = cell_text(value).replace("\\", "/")
        if not text:
            return "no picture named"
        if "://" in text:
            return "an address, not a file: fetch the pictures first"
        if len(self._index.get(_key(text), [])) > 1:
            return "several pictures have this name: give the path"
        return "no such picture"

    @cached_property
    def _index(self) -> dict[str, list[Path]]:
        """All pictures below the folder by file name, by name without extension, and by bare number."""
        index: dict[str, list[Path]] = {}
        for path in walk(self.folder).pictures:
            if not utf8_name(path):
                continue
            keys = {_key(path.name), _key(path.stem)}
            if path.stem.isdigit():
                keys.add(_number(path.stem))
            for key in keys:
                index.setdefault(key, []).append(path)
        return index


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name.rsplit("/", 1)[-1]).casefold()


def _number(text: str) -> str:
    return f"#{int(text)}"  # image 6723 is 000000006723.jpg


def find_columns(
    table: Table, finder: PictureFinder, settings: ImportSettings, label_needed: bool = True
) -> Columns:
    """Find the columns of a table of pictures.

    Args:
        label_needed: whether a table with neither label nor text is an error.

    Raises:
        DataError: when a column named in the settings is missing, no column holds existing pictures, or
            there is neither a label nor a text; always listing the columns there are.
    """
    known = f"its columns: {', '.join(table.columns)}"
    found = {part: column_named(table.columns, names) for part, names in _NAMES.items() if part != "image"}
    for part, wanted in (("image", settings.image_column), ("label", settings.label_column)):
        if wanted and wanted not in table.columns:
            raise DataError(f"{table.path.name}: no column {wanted!r} for the {part}", known)
    if settings.group_by and settings.group_by != "parent":
        if settings.group_by not in table.columns:
            raise DataError(f"{table.path.name}: no column {settings.group_by!r} to group by", known)
        found["group"] = settings.group_by
    found["image"] = settings.image_column or _image_column(table, finder)
    found["label"] = settings.label_column or _label_column(table, found)
    if found["label"] == found["labels"]:
        found["labels"] = ""
    if not (found["question"] and found["answer"]):
        found["question"] = found["answer"] = ""
    texts = [found[part] for part in ("label", "labels", "text", "captions", "question")]
    if label_needed and not any(texts):
        raise DataError(
            f"{table.path.name}: no column with labels or captions", f"give --label-column; {known}"
        )
    return Columns(**found)


def _image_column(table: Table, finder: PictureFinder) -> str:
    named = [column for name in _NAMES["image"] if (column := column_named(table.columns, (name,)))]
    candidates = list(dict.fromkeys([*named, *table.columns]))
    best, best_share = "", 0.0
    for column in candidates:
        values = [
            cell_text(r.get(column)) for r in table.records if not isinstance(r.get(column), (dict, bytes))
        ]
        values = [value for value in values if value][:_LOOKED_AT]
        share = sum(finder.find(value) is not None for value in values) / max(len(values), 1)
        if share > best_share:
            best, best_share = column, share
        if column in named and share >= 0.5:
            return column  # a good name and mostly existing pictures
    if best_share >= 0.5 or (best and best in named):
        return best
    if any(
        isinstance(r.get(column), dict) and "bytes" in r[column] for r in table.records[:1] for column in r
    ):
        raise DataError(
            f"{table.path.name}: holds the pictures themselves", "save them as files beside a table"
        )
    raise DataError(
        f"{table.path}: no column names existing pictures (looked beside the table and in images/)",
        f"give --image-column, or move the table to its pictures; its columns: {', '.join(table.columns)}",
    )


def _label_column(table: Table, found: Mapping[str, str]) -> str:
    label = column_named(table.columns, _NAMES["label"])
    if label and all(cell_text(record.get(label)).isdigit() for record in table.records):
        # numbers for machines; the words may stand beside them
        return column_named(table.columns, ("class_name", "label_name", "label_text", "species")) or label
    if not label and found["labels"]:
        several = any(len(cell_list(record.get(found["labels"]))) > 1 for record in table.records)
        return "" if several else found["labels"]
    return label


def record_row(record: Mapping[str, Any], columns: Columns, image: Path, name: str) -> Row:
    """A row from a table's record; columns that play no part go to `meta`."""

    def cell(column: str) -> str:
        return cell_text(record.get(column)) if column else ""

    labels = (
        tuple(clean_label(part) for part in cell_list(record.get(columns.labels))) if columns.labels else ()
    )
    label = _one_label(record.get(columns.label)) if columns.label else ""
    used = {column for column in vars(columns).values() if column}
    meta = {
        key: value for key, value in record.items() if key and key not in used and value not in (None, "")
    }
    question, answer = cell(columns.question), cell(columns.answer)
    return Row(
        image=image,
        name=name,
        label=label or (labels[0] if len(labels) == 1 else ""),
        labels=labels,
        text=cell(columns.text),
        captions=cell_list(record.get(columns.captions), separators="\n") if columns.captions else (),
        messages=(Turn("user", question), Turn("assistant", answer)) if question and answer else (),
        split=split_of(cell(columns.split)),
        group=clean_label(cell(columns.group)),
        source=cell(columns.source),
        licence=cell(columns.licence),
        meta=meta,
    )


def _one_label(value: Any) -> str:
    if isinstance(value, (list, tuple)):  # a list of one, as JSON exports have it
        value = value[0] if len(value) == 1 else None
    return clean_label(cell_text(value))
