"""Long files, record by record, at whatever place the chunks are cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldguide.data import stream
from fieldguide.data.stream import stream_records
from fieldguide.errors import DataError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)


def written(folder: Path, text: str | bytes, name: str = "a.json") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(path: Path) -> list[Any]:
    return [record for _, record in stream_records(path)]


@given(
    st.lists(VALUES, max_size=6),
    st.integers(1, 40),
    st.sampled_from([None, 0, 2]),
    st.booleans(),
)
def test_a_list_is_read_as_json_reads_it(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], chunk: int, indent: int | None, ascii: bool
) -> None:
    path = written(tmp_path_factory.mktemp("s"), json.dumps(values, indent=indent, ensure_ascii=ascii))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "_CHUNK", chunk)
        assert read(path) == values


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('[\n{"a": 1},\n{"a": }\n]', "line 3 column 7"),
        ('[\n{"a": 1}\n{"a": 2}\n]', "Expecting ',' delimiter: line 3 column 1"),
        ('[\n{"a": 1},\n', "line 3"),
        ('[\n{"a": 1},\n{"a": "never ends\n', "line 3"),
        ('[{"a": 1}, {"a": 22', "line 1 column"),
        ('[\n{"a": 1}', "line 2"),
        ('{"a": 1}', "no list of records"),
        ("", "no list of records"),
        ('["\\x"]', "Invalid"),
        (b'["\xff\xfe"]', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        (f"[{'9' * 5000}]", "not valid JSON"),
    ],
)
@pytest.mark.parametrize("chunk", [3, 1 << 22])
def test_faults_are_named_by_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | bytes, what: str, chunk: int
) -> None:
    monkeypatch.setattr(stream, "_CHUNK", chunk)
    with pytest.raises(DataError, match=what):
        read(written(tmp_path, text))


def test_the_place_is_that_of_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines and columns that have left memory still count."""
    text = "[" + ",\n".join('{"a": "' + "x" * n + '"}' for n in range(50)) + ',{"b": tru}]'
    with pytest.raises(json.JSONDecodeError) as right:
        json.loads(text)
    monkeypatch.setattr(stream, "_CHUNK", 20)
    with pytest.raises(DataError, match=f"line {right.value.lineno} column {right.value.colno}"):
        read(written(tmp_path, text))


def test_a_byte_order_mark_and_halves_of_characters(tmp_path: Path) -> None:
    assert read(written(tmp_path, "\ufeff[1]")) == [1]
    text = '["\\ud83d\\ude42 \\ud83d", "\\\\ud83d", "\\uDC00", "\U0001f642"]'
    assert read(written(tmp_path, text)) == ["🙂 ?", "\\ud83d", "?", "🙂"]


def test_json_lines_know_their_lines(tmp_path: Path) -> None:
    path = written(tmp_path, '{"a": 1}\n\n{"a": "\u2028"}\r\n[2]', "a.jsonl")
    assert list(stream_records(path)) == [(1, {"a": 1}), (3, {"a": "\u2028"}), (4, [2])]
    with pytest.raises(DataError, match="line 2"):
        read(written(tmp_path, '{"a": 1}\n{"a": \n', "b.jsonl"))


def test_parquet_comes_row_by_row(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"a": list(range(1200)), "b": [[{"c": str(n)}] for n in range(1200)]}),
        tmp_path / "a.parquet",
    )
    found = list(stream_records(tmp_path / "a.parquet"))
    assert found[1199] == (1200, {"a": 1199, "b": [{"c": "1199"}]})
    with pytest.raises(DataError, match="not a readable Parquet"):
        read(written(tmp_path, "text", "b.parquet"))
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "c.json")
