"""`examples.parquet`: one row an example, with an explicit schema."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fieldguide.errors import DataError
from fieldguide.records import Example, Turn

# In `meta` of examples with several pictures: all their paths (`image` is the first), and their hashes.
IMAGES, IMAGES_SHA256 = "images", "images_sha256"
_BATCH = 4_000  # rows read at once
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


def images_of(example: Example) -> tuple[str, ...]:
    """All pictures of an example, in order, as `image` names one; () for a text-only row."""
    if IMAGES_SHA256 in example.meta:
        return tuple(example.meta[IMAGES])
    return (example.image,) if example.image else ()


def sha256s_of(example: Example) -> tuple[str, ...]:
    """The hashes of the pictures that `images_of` names."""
    if IMAGES_SHA256 in example.meta:
        return tuple(example.meta[IMAGES_SHA256])
    return (example.sha256,) if example.sha256 else ()


def write_examples(path: Path, examples: Sequence[Example]) -> None:
    """Write the rows of a data set; `meta` as JSON text."""
    columns: dict[str, Any] = {
        name: [getattr(example, name) for example in examples] for name in EXAMPLE_SCHEMA.names
    }
    columns["labels"] = [list(example.labels) for example in examples]
    columns["captions"] = [list(example.captions) for example in examples]
    columns["messages"] = _messages(examples)
    columns["meta"] = [json.dumps(dict(e.meta), ensure_ascii=False, default=str) for e in examples]
    pq.write_table(pa.table(columns, schema=EXAMPLE_SCHEMA), path)


def _messages(examples: Sequence[Example]) -> pa.ListArray:
    """All turns one after the other, and where each example's begin: a million dicts would take long."""
    ends = itertools.accumulate((len(example.messages) for example in examples), initial=0)
    turns = [turn for example in examples for turn in example.messages]
    fields = [
        pa.array([turn.role for turn in turns], pa.string()),
        pa.array([t.text for t in turns], pa.string()),
    ]
    return pa.ListArray.from_arrays(
        pa.array(ends, pa.int32()), pa.StructArray.from_arrays(fields, fields=list(_MESSAGE))
    )


def read_examples(path: Path) -> tuple[Example, ...]:
    """Read `examples.parquet`.

    Raises:
        DataError: when the file is missing, damaged, or lacks columns.
    """
    try:
        table = pq.read_table(path, partitioning=None).select(EXAMPLE_SCHEMA.names)
    except (OSError, pa.ArrowException, KeyError) as error:
        raise DataError(f"{path}: cannot be read ({error})", "import the pictures again") from error
    examples: list[Example] = []
    for batch in table.to_batches(max_chunksize=_BATCH):  # a row takes ten times its size while it is a dict
        for record in batch.to_pylist():
            record["labels"] = tuple(record["labels"] or ())
            record["captions"] = tuple(record["captions"] or ())
            record["messages"] = tuple(Turn(turn["role"], turn["text"]) for turn in record["messages"] or ())
            record["meta"] = json.loads(record["meta"] or "{}")
            examples.append(Example(**record))
    return tuple(examples)
