"""Long lists of records, read one by one: JSON, JSON lines and Parquet in little more memory than a record.

for row, record in stream_records(Path("llava_instruct_150k.json")): ...
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from fieldguide.errors import DataError

STREAMED = frozenset((".json", ".jsonl", ".ndjson", ".parquet"))
_CHUNK = 1 << 22  # characters read at once
_BATCH = 512  # Parquet rows read at once
_BLANK = " \t\r\n"
_AFTER = tuple(" \t\r\n,]")  # what may follow a value
_NEVER_ENDS = "Unterminated string"  # the JSON error that names where a text begins, not where it broke


def stream_records(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (row number from 1, record) of a JSON list, JSON lines (the line's number) or Parquet.

    Records are whatever the file holds, also such as are no objects. Halves of characters ("\\ud83d", of an
    emoji that was cut) are replaced by "?": UTF-8 cannot hold them.

    Raises:
        DataError: when the file is missing, no such list, or broken, naming the line.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file", "check its spelling, or give the full path")
    kind = path.suffix.lower()
    if kind == ".parquet":
        yield from _parquet(path)
        return
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as file:  # a bare "\r" ends no line
            yield from _lines(path, file) if kind in (".jsonl", ".ndjson") else _list(path, file)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not valid JSON ({error})", "save it as UTF-8") from error


def _lines(path: Path, file: IO[str]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            yield number, _whole(json.loads(line), line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path} line {number}: not valid JSON ({error})", "repair or delete that line"
            ) from error


def _list(path: Path, file: IO[str]) -> Iterator[tuple[int, Any]]:
    window = _Window(path, file)
    if window.next_sign() != "[":
        raise DataError(f"{path}: holds no list of records", "give [{...}, {...}], one object a row")
    window.place += 1
    if window.next_sign() == "]":
        return
    number = 0
    while True:
        number += 1
        yield number, window.value()
        sign = window.next_sign()
        if sign == "]":
            return
        if sign != ",":
            raise window.broken("Expecting ',' delimiter", window.place)
        window.place += 1
        window.next_sign()


class _Window:
    """The part of a JSON text that is being read."""

    def __init__(self, path: Path, file: IO[str]) -> None:
        self.path, self.file = path, file
        self.text, self.place = "", 0
        self.ended = False
        self.lines_before = 0  # lines that have left the window …
        self.columns_before = 0  # … and characters of the line that its text begins in
        self.decoder = json.JSONDecoder()

    def read(self) -> None:
        """Let go of what is behind, and read at least as much as is still held."""
        gone = self.text[: self.place]
        self.lines_before += (breaks := gone.count("\n"))
        self.columns_before = len(gone) - gone.rfind("\n") - 1 + (0 if breaks else self.columns_before)
        more = self.file.read(max(_CHUNK, len(self.text) - self.place))
        self.text, self.place, self.ended = self.text[self.place :] + more, 0, not more

    def next_sign(self) -> str:
        """The next character that is no blank, "" at the end; the place is moved to it."""
        while True:
            while self.place < len(self.text) and self.text[self.place] in _BLANK:
                self.place += 1
            if self.place < len(self.text) or self.ended:
                return self.text[self.place : self.place + 1]
            self.read()

    def value(self) -> Any:
        """The value that begins here; the place is moved behind it."""
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.place)
            except json.JSONDecodeError as error:
                cut = error.pos > len(self.text) - 16 or error.msg.startswith(_NEVER_ENDS)
                if self.ended or not cut:
                    raise self.broken(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:  # endless numbers, nested without end
                raise self.broken(str(error), self.place) from error
            else:
                cut = end > len(self.text) - 16 and self.text[end : end + 1] not in _AFTER
                if self.ended or not cut:  # else a number may go on: "1" of "1.5e3"
                    raw, self.place = self.text[self.place : end], end
                    return _whole(value, raw)
            self.read()

    def broken(self, reason: str, place: int) -> DataError:
        before = self.text[:place]
        line = self.lines_before + before.count("\n") + 1
        column = len(before) - before.rfind("\n") + (0 if "\n" in before else self.columns_before)
        reason = f"not valid JSON ({reason}: line {line} column {column})"
        return DataError(f"{self.path}: {reason}", "repair the file at that place")


def _whole(value: Any, raw: str) -> Any:
    """The value without halves of characters; only where its text has any is it looked through."""
    if "\\ud" not in raw and "\\uD" not in raw:
        return value
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.loads(text.encode("utf-8", "replace"))
    return value


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error})", "write it again") from error
