"""`examples.parquet`: one row an example, with an explicit schema."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fieldguide.errors import DataError
from fieldguide.records import Example, Turn

_MESSAGE = pa.struct([("role", pa.string()), ("text", pa.string())])
EXAMPLE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.string()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("phash", pa.string()),
        ("label", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("text", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("messages", pa.list_(_MESSAGE)),
        ("group", pa.string()),
        ("split", pa.string()),
        ("fold", pa.int32()),
        ("source", pa.string()),
        ("licence", pa.string()),
        ("meta", pa.string()),  # JSON
    ]
)


def write_examples(path: Path, examples: Sequence[Example]) -> None:
    """Write the rows of a data set; `meta` as JSON text."""
    columns: dict[str, list[Any]] = {
        name: [getattr(example, name) for example in examples] for name in EXAMPLE_SCHEMA.names
    }
    columns["labels"] = [list(example.labels) for example in examples]
    columns["captions"] = [list(example.captions) for example in examples]
    columns["messages"] = [
        [{"role": t.role, "text": t.text} for t in example.messages] for example in examples
    ]
    columns["meta"] = [json.dumps(dict(e.meta), ensure_ascii=False, default=str) for e in examples]
    pq.write_table(pa.table(columns, schema=EXAMPLE_SCHEMA), path)


def read_examples(path: Path) -> tuple[Example, ...]:
    """Read `examples.parquet`.

    Raises:
        DataError: when the file is missing, damaged, or lacks columns.
    """
    try:
        table = pq.read_table(path, partitioning=None).select(EXAMPLE_SCHEMA.names)
    except (OSError, pa.ArrowException, KeyError) as error:
        raise DataError(f"{path}: cannot be read ({error})", "import the pictures again") from error
    examples = []
    for record in table.to_pylist():
        record["labels"] = tuple(record["labels"] or ())
        record["captions"] = tuple(record["captions"] or ())
        record["messages"] = tuple(Turn(turn["role"], turn["text"]) for turn in record["messages"] or ())
        record["meta"] = json.loads(record["meta"] or "{}")
        examples.append(Example(**record))
    return tuple(examples)
