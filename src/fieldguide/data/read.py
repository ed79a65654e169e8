"""Read a source of labelled pictures: a folder, a table, or a JSON mapping of picture ids to captions.

    read_source(Path("photos"), ImportSettings()) -> Source

Nothing is decoded and nothing is written: the result is rows, what was inferred, and what could not be used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fieldguide.data.columns import Columns, PictureFinder, find_columns, record_row
from fieldguide.data.folders import NO_LABEL_HINT, folder_rows, labels_by_pattern, labels_in_names, listing
from fieldguide.data.rows import (
    TABLE_SUFFIXES,
    Found,
    Row,
    Source,
    ignored,
    printable,
    row_name,
    split_of,
    utf8_name,
    walk,
)
from fieldguide.data.tables import Table, read_json_source, read_table, records_table
from fieldguide.errors import DataError
from fieldguide.records import Problem
from fieldguide.settings import ImportSettings

_METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet", "metadata.tsv")


def read_source(
    source: Path | str, settings: ImportSettings | None = None, images: Path | None = None
) -> Source:
    """Read a folder or table of pictures.

    Args:
        images: where a table's pictures lie, if not beside it.

    Raises:
        DataError: when there is no picture, no way to tell the labels, or a table cannot be read.
        SettingsError: when `label_pattern` is no regular expression with a group.
    """
    settings = settings or ImportSettings()
    source = Path(source).absolute()
    if (source / "dataset.json").is_file():
        raise DataError(f"{source}: is a data set already", f"fieldguide train {source} --out X.guide")
    if source.is_dir() and images is not None:
        raise DataError(f"{source}: is a folder of pictures itself", "--images goes with a table of them")
    if source.is_dir():
        result = _read_folder(source, settings)
    elif source.suffix.lower() in TABLE_SUFFIXES:
        result = _read_table_source(source, settings, images)
    elif source.exists():
        raise DataError(
            f"{source}: neither a folder nor a table", "give a folder, or a CSV, JSON or Parquet file"
        )
    else:
        raise DataError(f"{source}: no such file or folder", "check its spelling, or give the full path")
    result = _without_unwritable_names(result)
    if not result.rows:
        reasons = "; ".join(f"{problem.file}: {problem.reason}" for problem in result.problems[:3])
        raise DataError(
            f"{source}: no picture to import" + (f" ({reasons})" if reasons else ""),
            "give the folder that holds the pictures, or a table that names them",
        )
    return result


# ---- folders


def _read_folder(root: Path, settings: ImportSettings) -> Source:
    found = walk(root)
    if not found.pictures:
        raise DataError(f"{root}: holds no picture", _table_hint(found))
    rows, inferred, problems = folder_rows(found, root)
    problems = found.problems + problems
    metadata = [path for path in found.others if path.name.lower() in _METADATA_NAMES]
    problems += ignored((path for path in found.others if path not in metadata), root)
    if metadata:
        rows, more = _join_metadata(rows, metadata, root, settings, inferred)
        problems += more
    elif settings.label_pattern:
        labels = labels_by_pattern([row.name for row in rows], settings.label_pattern)
        rows = [dataclasses.replace(row, label=label) for row, label in zip(rows, labels, strict=True)]
        inferred["labels"] = f"{len(set(labels) - {''})} by pattern {settings.label_pattern}"
    elif not any(row.label for row in rows):
        rows = _label_by_file_name(rows, found, root, inferred)
    if not metadata:
        rows, more = _leave_out_unlabelled(rows, settings)
        problems += more
    rows = _group_rows(rows, settings, inferred)
    return Source(root, tuple(rows), inferred, tuple(problems))


def _label_by_file_name(rows: list[Row], found: Found, root: Path, inferred: dict[str, str]) -> list[Row]:
    guessed = labels_in_names([row.name for row in rows])
    if guessed is None:
        names = f"{printable(rows[0].name)!r}"
        raise DataError(
            f"{root}: cannot tell the labels: no sub-folders, and file names such as {names} show none",
            _table_hint(found),
        )
    labels, rule = guessed
    distinct = sorted(set(labels) - {""})
    inferred["labels"] = f"{len(distinct)} from file names ({rule}): {listing(distinct)}"
    return [dataclasses.replace(row, label=label) for row, label in zip(rows, labels, strict=True)]


def _table_hint(found: Found) -> str:
    tables = [path for path in found.others if path.suffix.lower() in TABLE_SUFFIXES]
    if not tables:
        return NO_LABEL_HINT
    return f"a table lies in it: fieldguide import '{printable(tables[0])}'; else {NO_LABEL_HINT}"


def _leave_out_unlabelled(rows: list[Row], settings: ImportSettings) -> tuple[list[Row], list[Problem]]:
    problems = []
    for row in rows:
        if row.label:
            continue
        folder = Path(row.name).parent.name
        if settings.label_pattern:
            reason = "no label: its name does not match label_pattern"
        elif split_of(folder):
            reason = f"no label: {folder!r} is read as a split (rename the folder if it is a label)"
        else:
            reason = "no label: it lies outside every label folder, or its name shows none"
        problems.append(Problem(printable(row.name), reason, "left out", "no_label"))
    return [row for row in rows if row.label], problems


def _join_metadata(
    rows: list[Row], tables: Iterable[Path], root: Path, settings: ImportSettings, inferred: dict[str, str]
) -> tuple[list[Row], list[Problem]]:
    """Lay the records of imagefolder metadata files over the folder's rows; a record's word goes first."""
    by_path = {row.image: row for row in rows}
    joined: list[Row] = []
    problems: list[Problem] = []
    described: set[Path] = set()
    for path in tables:
        table = read_table(path)
        finder = PictureFinder(path.parent)
        columns = find_columns(table, finder, settings, label_needed=False)
        problems += table.problems
        for index, record in enumerate(table.records):
            image = finder.find(record.get(columns.image))
            base = by_path.get(image) if image else None
            if image is None or base is None:
                problems.append(_missing(table, index, columns, finder))
                continue
            described.add(image)
            row = record_row(record, columns, image, base.name)
            meta = {**base.meta, **row.meta}
            joined.append(
                dataclasses.replace(
                    row, label=row.label or base.label, split=row.split or base.split, meta=meta
                )
            )
        inferred[f"metadata {row_name(path, root)}"] = columns.sentence()
    useful = any(row.label for row in joined) or not any(row.captions or row.text for row in joined)
    for row in rows:
        if row.image in described:
            continue
        if row.label:
            joined.append(row)
        else:
            reason = "no label: no row of the metadata names it"
            problems.append(Problem(printable(row.name), reason, "left out", "no_label"))
    if useful:
        kept, more = _leave_out_unlabelled(joined, settings)
        return kept, problems + more
    return joined, problems


# ---- tables


def _read_table_source(path: Path, settings: ImportSettings, images: Path | None) -> Source:
    table = _load_table(path)
    root = images or path.parent
    finder = PictureFinder(root)
    columns = find_columns(table, finder, settings)
    rows: list[Row] = []
    problems = list(table.problems)
    for index, record in enumerate(table.records):
        image = finder.find(record.get(columns.image))
        if image is None:
            problems.append(_missing(table, index, columns, finder))
            continue
        row = record_row(record, columns, image, row_name(image, root))
        if columns.label and not row.label:
            problems.append(Problem(f"{table.where(index)}: {row.name}", "no label", "left out", "no_label"))
            continue
        if not (row.label or row.labels or row.captions or row.text or row.messages):
            problems.append(
                Problem(f"{table.where(index)}: {row.name}", "no caption", "left out", "no_label")
            )
            continue
        rows.append(row)
    inferred = {"table": f"{path.name}, {len(table.records)} rows", "columns": columns.sentence()}
    labels = sorted({row.label for row in rows if row.label})
    if labels:
        inferred["labels"] = f"{len(labels)} in column {columns.label or columns.labels}: {listing(labels)}"
    splits = sorted({row.split for row in rows if row.split})
    if splits:
        inferred["splits"] = f"column {columns.split}: {', '.join(splits)}"
    problems += _unknown_splits(table, columns)
    rows = _group_rows(rows, settings, inferred)
    return Source(root, tuple(rows), inferred, tuple(problems))


def _load_table(path: Path) -> Table:
    if path.suffix.lower() != ".json":
        return read_table(path)
    value = read_json_source(path)
    if isinstance(value, dict):
        return _mapping_table(path, value)
    return records_table(path, value)


def _mapping_table(path: Path, value: dict[str, Any]) -> Table:
    """Records from {picture id: caption, list of captions, or record}."""
    if isinstance(value.get("images"), list) and isinstance(value.get("annotations"), list):
        raise DataError(
            f"{path}: an annotation file in COCO's format", "give a table with image and caption columns"
        )
    records: list[dict[str, Any]] = []
    for key, entry in value.items():
        if isinstance(entry, dict):
            records.append({"image": key, **entry})
        elif isinstance(entry, str) or (
            isinstance(entry, list) and all(isinstance(part, str) for part in entry)
        ):
            records.append({"image": key, "captions": [entry] if isinstance(entry, str) else entry})
        else:
            raise DataError(
                f"{path}: the entry {key!r} is neither a caption nor a list of captions",
                "repair or delete that entry",
            )
    return records_table(path, records)


def _missing(table: Table, index: int, columns: Columns, finder: PictureFinder) -> Problem:
    text = str(table.records[index].get(columns.image) or "")
    where = f"{table.where(index)}: {text}" if text else table.where(index)
    return Problem(printable(where), finder.why_not(text), "left out", "missing")


def _unknown_splits(table: Table, columns: Columns) -> list[Problem]:
    if not columns.split:
        return []
    values = {str(record.get(columns.split) or "").strip() for record in table.records}
    unknown = sorted(value for value in values if value and not split_of(value))
    reason = "split {!r} is not train, val or test"
    return [
        Problem(table.path.name, reason.format(value), "split chosen for its rows", "row")
        for value in unknown
    ]


# ---- both


def _group_rows(rows: list[Row], settings: ImportSettings, inferred: dict[str, str]) -> list[Row]:
    """Fill `group` from the column the user named, or from the pictures' folder."""
    by = settings.group_by
    if not by:
        groups = {row.group for row in rows if row.group}
        if groups and len(groups) <= len({row.label for row in rows}):
            # a "group" with so few values is a property of the label (its family), not a subject
            inferred["groups"] = (
                f"column group is not used ({len(groups)} values): give --group-by group to use it"
            )
            return [dataclasses.replace(row, group="", meta={**row.meta, "group": row.group}) for row in rows]
        if groups:
            inferred["groups"] = f"column group: {len(groups)} values, each kept on one side"
        return rows
    if by == "parent":
        rows = [dataclasses.replace(row, group=printable(Path(row.name).parent.as_posix())) for row in rows]
    elif not any(row.group for row in rows):
        raise DataError(
            f"group_by={by!r}: no such column, or nothing in it", "give a column of the table, or parent"
        )
    inferred["groups"] = f"by {by}: {len({row.group for row in rows})} values, each kept on one side"
    return rows


def _without_unwritable_names(source: Source) -> Source:
    bad = [row for row in source.rows if not utf8_name(row.image)]
    if not bad:
        return source
    reason = "its name is not valid UTF-8: rename it"
    problems = [Problem(printable(row.name), reason, "left out", "unreadable") for row in bad]
    rows = tuple(row for row in source.rows if utf8_name(row.image))
    return dataclasses.replace(source, rows=rows, problems=source.problems + tuple(problems))
