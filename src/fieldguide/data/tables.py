"""Tables of any common kind, read as records that know their row numbers.

CSV, TSV, JSON, JSON lines and Parquet all become a `Table`; both picture lists and notes are read through it.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fieldguide.errors import DataError
from fieldguide.records import Problem


@dataclass(frozen=True)
class Table:
    """Records with the row of the file each came from (as a spreadsheet or editor counts them)."""

    path: Path
    columns: tuple[str, ...]
    records: tuple[dict[str, Any], ...]
    rows: tuple[int, ...]
    problems: tuple[Problem, ...] = ()

    def where(self, index: int) -> str:
        """How messages name record `index`: "labels.csv row 7"."""
        return f"{self.path.name} row {self.rows[index]}"


def read_table(path: Path) -> Table:
    """Read a table by its extension: .csv, .tsv, .jsonl, .ndjson, .parquet, or .json (a list of records).

    A row with too few or too many fields is left out and becomes a problem naming it.

    Raises:
        DataError: when the file is missing, empty, or not what its extension says, naming the row.
    """
    kind = path.suffix.lower()
    if not path.is_file():
        raise DataError(f"{path}: no such file", "check its spelling, or give the full path")
    if kind in (".csv", ".tsv"):
        return _read_csv(path)
    if kind in (".jsonl", ".ndjson"):
        return _read_json_lines(path)
    if kind == ".parquet":
        return _read_parquet(path)
    if kind == ".json":
        return records_table(path, read_json_source(path))
    raise DataError(f"{path}: not a table", "give a .csv, .tsv, .jsonl, .parquet or .json file")


def read_json_source(path: Path) -> Any:
    """Read a JSON file of the user's.

    Raises:
        DataError: naming the file, and line and column of the fault.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file", "check its spelling, or give the full path")
    try:
        return _parse_json(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error})", "repair the file at that place") from error


def _parse_json(text: str) -> Any:
    """JSON, with halves of characters ("\\ud83d", of an emoji that was cut) replaced: UTF-8 cannot hold them.

    Raises:
        ValueError, RecursionError: when it is no JSON, holds endless numbers, or is nested without end.
    """
    value = json.loads(text)
    if "\\ud" in text or "\\uD" in text:
        value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    return value


def records_table(path: Path, value: Any) -> Table:
    """A table from a parsed JSON list of objects."""
    if not isinstance(value, list) or not value:
        raise DataError(f"{path}: holds no list of records", "give [{...}, {...}], one object a picture")
    for number, record in enumerate(value, 1):
        if not isinstance(record, dict):
            raise DataError(
                f"{path} record {number}: not an object with named values", "repair or delete that record"
            )
    return Table(path, _columns_of(value), tuple(value), tuple(range(1, len(value) + 1)))


def column_named(columns: Sequence[str], names: Iterable[str]) -> str:
    """The first of `columns` whose name is one of `names`, which are tried in order, or ""."""
    folded = {fold_name(column): column for column in reversed(columns)}
    return next((folded[fold_name(name)] for name in names if fold_name(name) in folded), "")


def fold_name(name: str) -> str:
    """A column name without case, blanks and signs: "Image Name" and "#image_name" are the same."""
    return re.sub(r"[\W_]+", "", name.casefold())


def cell_text(value: Any) -> str:
    """A cell as text: "" for nothing, 7 for 7.0 (tables turn whole numbers with gaps into floats)."""
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def cell_list(value: Any, separators: str = ";|") -> tuple[str, ...]:
    """A cell as several texts: a list as it is, a text split at any of `separators`."""
    if isinstance(value, (list, tuple)):
        parts = [cell_text(part) for part in value]
    else:
        parts = [part.strip() for part in re.split(f"[{re.escape(separators)}]", cell_text(value))]
    return tuple(dict.fromkeys(part for part in parts if part))


def _columns_of(records: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(key) for record in records for key in record))


def decode_text(path: Path) -> tuple[str, list[Problem]]:
    """The text of a user's file, UTF-8, UTF-16 or, with a problem that says so, Windows-1252.

    Raises:
        DataError: when it is none of them, naming the line.
    """
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):  # what Excel calls "Unicode text"
        try:
            return data.decode("utf-16"), []
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not valid UTF-16 ({error.reason})", "save it as UTF-8") from None
    try:
        return data.decode("utf-8-sig"), []
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        try:
            text = data.decode("cp1252")
        except UnicodeDecodeError:
            raise DataError(
                f"{path} line {line}: neither UTF-8 nor Windows-1252", "save it as UTF-8"
            ) from None
        reason = f"not UTF-8 (first in line {line}); read as Windows-1252: check accented letters"
        return text, [Problem(path.name, reason, "kept", "encoding")]


def _delimiter(path: Path, text: str) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    header = re.sub(r'"[^"]*"', "", text.split("\n", 1)[0])
    return max(",;\t", key=header.count)  # a comma when there is none of them


def _read_csv(path: Path) -> Table:
    text, problems = decode_text(path)
    csv.field_size_limit(2**31 - 1)  # a long description is no fault
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(path, text), strict=False)
    records: list[dict[str, Any]] = []
    rows: list[int] = []
    columns: list[str] = []
    try:
        for number, cells in enumerate(reader, 1):
            if not any(cell.strip() for cell in cells):
                continue
            if not columns:
                columns = [cell.strip() for cell in cells]
                _check_header(path, columns)
            elif len(cells) != len(columns):
                reason = f"{len(cells)} fields where the header names {len(columns)}"
                problems.append(Problem(f"{path.name} row {number}", reason, "left out", "row"))
            else:
                records.append(dict(zip(columns, cells, strict=True)))
                rows.append(number)
    except csv.Error as error:
        raise DataError(
            f"{path} line {reader.line_num}: not readable as a table ({error})",
            "repair the file at that place",
        ) from error
    if not columns:
        raise DataError(f"{path}: the table is empty", "give a table with a header and rows")
    return Table(path, tuple(columns), tuple(records), tuple(rows), tuple(problems))


def _check_header(path: Path, columns: Sequence[str]) -> None:
    doubled = sorted({column for column in columns if column and columns.count(column) > 1})
    if doubled:
        raise DataError(f"{path} row 1: the column {doubled[0]!r} is named twice", "rename one of them")


def _read_json_lines(path: Path) -> Table:
    records, rows = [], []
    text, problems = decode_text(path)
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = _parse_json(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path} line {number}: not valid JSON ({error})", "repair or delete that line"
            ) from error
        if not isinstance(record, dict):
            raise DataError(
                f"{path} line {number}: not an object with named values", "repair or delete that line"
            )
        records.append(record)
        rows.append(number)
    if not records:
        raise DataError(f"{path}: the table is empty", "give a table with a header and rows")
    return Table(path, _columns_of(records), tuple(records), tuple(rows), tuple(problems))


def _read_parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, partitioning=None)  # a folder called "a=b" adds no column
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path}: not a readable Parquet file ({error})", "write it again, or give a CSV"
        ) from error
    records = table.to_pylist()
    return Table(path, tuple(table.column_names), tuple(records), tuple(range(1, len(records) + 1)))
