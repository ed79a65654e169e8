"""A data set as other trainers read it: LLaVA JSON, ShareGPT JSON, or Parquet of messages and pictures.

    export_examples(load_dataset("fish.dataset"), "llava", Path("fish.json"))

Pictures stay where they are: JSON names them relative to the file written, Parquet by absolute path. Rows
keep id, split, group, label and the rest under keys that other trainers pass over, so that importing the file
again gives the same examples.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from fieldguide.data.dataset import Dataset
from fieldguide.data.examples import IMAGES, IMAGES_SHA256, images_of
from fieldguide.data.llava import PLACEHOLDER, escaped
from fieldguide.errors import DataError
from fieldguide.files import atomic_path
from fieldguide.records import Example, Note, Turn
from fieldguide.settings import AnswerSettings

FORMATS: Mapping[str, tuple[str, ...]] = {  # and the extensions of their files
    "llava": (".json", ".jsonl"),
    "sharegpt": (".json", ".jsonl"),
    "parquet": (".parquet",),
}
DESCRIBE = "Describe this picture."  # the question to which a caption is the answer
_SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}
_KEPT = ("split", "group", "label", "labels", "text", "captions", "source", "licence")
_BATCH = 2_000  # Parquet rows written at once
_PARTS = pa.list_(pa.struct([("type", pa.string()), ("text", pa.string())]))
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", _PARTS)]))),
        *((name, pa.list_(pa.string()) if name in ("labels", "captions") else pa.string()) for name in _KEPT),
        ("meta", pa.string()),  # JSON
    ]
)


@dataclass(frozen=True)
class _Line:
    """One conversation to be written."""

    id: str
    messages: tuple[Turn, ...]
    images: tuple[Path, ...]  # absolute
    example: Example


def export_examples(
    dataset: Dataset,
    to: str,
    out: Path | str,
    *,
    split: str = "",
    announce: Callable[[str], None] = print,
) -> int:
    """Write a data set's rows as one file of another format, whole or not at all.

    An example without messages becomes a conversation: its label, and what the notes say of the label; a
    caption or text becomes one of its own.

    Args:
        to: "llava" or "sharegpt" (out: .json or .jsonl), or "parquet".
        out: the file; an older one is replaced.
        split: only the rows of "train", "val" or "test"; "" for all, each saying which.
        announce: called with what was left out.

    Returns:
        How many conversations were written.

    Raises:
        DataError: for an unknown format, a wrong extension, a file that may not be replaced, or no rows.
    """
    out = Path(os.path.abspath(out))
    _check(dataset, to, out)
    examples = dataset.of(split) if split else dataset.examples
    lines = _lines(dataset, examples)
    silent = len(examples) - len({line.example.id for line in lines})
    if silent:
        announce(f"left out: {silent} examples without label, caption or conversation")
    if not lines:
        raise DataError(f"{dataset.folder}: nothing to export", "import labels, captions or conversations")
    with atomic_path(out) as temporary:
        if to == "parquet":
            _write_parquet(temporary, lines)
        else:
            with open(temporary, "w", encoding="utf-8", newline="\n") as file:
                names = _names(lines, out.parent)
                _write_json(file, (_json_row(line, to, names) for line in lines), out.suffix.lower())
    return len(lines)


def _check(dataset: Dataset, to: str, out: Path) -> None:
    if to not in FORMATS:
        raise DataError(f"no format {to!r} for a data set", f"one of {', '.join(FORMATS)}")
    if out.suffix.lower() not in FORMATS[to]:
        names = " or ".join(f"{out.stem}{suffix}" for suffix in FORMATS[to])
        raise DataError(f"{out}: not a name for a {to} file", f"give -o {names}")
    if out.is_dir():
        raise DataError(f"{out}: is a folder", "give the name of a file")
    if out in (Path(str(dataset.info.get("source"))), dataset.folder / "examples.parquet"):
        raise DataError(f"{out}: is what the data set is made of", "give another name")


# ---- what is said


def _lines(dataset: Dataset, examples: Iterable[Example]) -> list[_Line]:
    taken = {example.id for example in dataset.examples}
    lines = []
    paths: dict[tuple[str, ...], tuple[Path, ...]] = {}  # many rows may be about one picture
    for example in examples:
        named = images_of(example)
        images = paths[named] = paths.get(named) or dataset.paths(example)
        note = dataset.note(example.label) if example.label else None
        for number, messages in enumerate(conversations_of(example, note), 1):
            name, repeat = example.id, number
            while number > 1 and name in taken:
                name = f"{example.id}#{repeat}"
                repeat += 1
            taken.add(name)
            lines.append(_Line(name, messages, images, example))
    return lines


def conversations_of(example: Example, note: Note | None) -> list[tuple[Turn, ...]]:
    """The conversations that an example stands for: its own, else those made of its labels and captions."""
    if example.messages:
        return [example.messages]
    usual = AnswerSettings()
    found = []
    label = example.label or ", ".join(example.labels)
    if label:
        pairs = [(usual.question, label), *(_replies(note, usual) if note else ())]
        found.append(tuple(turn for pair in pairs for turn in _pair(*pair)))
    captions = dict.fromkeys((*example.captions, example.text))
    found += [_pair(DESCRIBE, caption) for caption in captions if caption]
    return found


def _pair(question: str, answer: str) -> tuple[Turn, Turn]:
    return Turn("user", question), Turn("assistant", answer)


def _replies(note: Note, usual: AnswerSettings) -> Iterator[tuple[str, str]]:
    """What the notes answer to the usual follow-up questions."""
    if note.field_marks:
        yield usual.why, f"Typical of {note.label}: {'; '.join(note.field_marks)}."
    alike = f"Most easily confused with {' and '.join(note.look_alikes)}." if note.look_alikes else ""
    if apart := f"{alike} {note.how_to_tell_apart}".strip():
        yield usual.confused, apart
    if note.description.strip():
        yield usual.more, note.description.strip()


# ---- how it is written


def _own_keys(example: Example) -> dict[str, Any]:
    """What the example knows besides its conversation, without what is empty."""
    kept = {name: getattr(example, name) for name in _KEPT}
    kept = {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items() if value}
    meta = {key: value for key, value in example.meta.items() if not _several(key, example)}
    return {**kept, **({"meta": meta} if meta else {})}


def _several(key: str, example: Example) -> bool:
    return IMAGES_SHA256 in example.meta and key in (IMAGES, IMAGES_SHA256)


def _json_row(line: _Line, to: str, names_of: Mapping[Path, str]) -> dict[str, Any]:
    """A record of LLaVA's or ShareGPT's; LLaVA knows no system turns, so they get a key of their own."""
    row: dict[str, Any] = {"id": line.id}
    names = [names_of[path] for path in line.images]
    if to == "sharegpt" and names:
        row["images"] = names
    elif names:
        row["image"] = names if len(names) > 1 else names[0]
    turns, marks = [], f"{PLACEHOLDER}\n" * len(names)
    for turn in line.messages:
        text = escaped(turn.text)
        if to == "llava" and turn.role == "system":
            row["system"] = text
            continue
        if turn.role == "user":
            text, marks = marks + text, ""
        turns.append({"from": _SPEAKERS[turn.role], "value": text})
    return {**row, "conversations": turns, **_own_keys(line.example)}


def _names(lines: Iterable[_Line], folder: Path) -> dict[Path, str]:
    """How each picture is named from the folder."""
    real = Path(os.path.realpath(folder))  # ".." after a link leads elsewhere
    return {path: _relative(path, real) for path in {path for line in lines for path in line.images}}


def _relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive
        return path.as_posix()


def _write_json(file: IO[str], rows: Iterable[dict[str, Any]], suffix: str) -> None:
    """One row a line, in a list for .json."""
    opening, between, closing = ("[\n", ",\n", "\n]\n") if suffix == ".json" else ("", "\n", "\n")
    for number, row in enumerate(rows):
        file.write(between if number else opening)
        file.write(json.dumps(row, ensure_ascii=False))
    file.write(closing)


def _write_parquet(path: Path, lines: list[_Line]) -> None:
    schema = _SCHEMA.with_metadata({"huggingface": json.dumps({"info": {"features": _features()}})})
    rest = iter(lines)
    with pq.ParquetWriter(path, schema) as writer:
        while batch := list(islice(rest, _BATCH)):
            writer.write_table(pa.Table.from_pylist([_parquet_row(line) for line in batch], schema=schema))


def _parquet_row(line: _Line) -> dict[str, Any]:
    shown: list[dict[str, str | None]] = [{"type": "image", "text": None}] * len(line.images)
    messages = []
    for turn in line.messages:
        parts: list[dict[str, str | None]] = [{"type": "text", "text": escaped(turn.text)}]
        if turn.role == "user":
            parts, shown = shown + parts, []
        messages.append({"role": turn.role, "content": parts})
    own = _own_keys(line.example)
    if "meta" in own:
        own["meta"] = json.dumps(own["meta"], ensure_ascii=False)
    images = [{"bytes": None, "path": str(path)} for path in line.images]
    return {"id": line.id, "images": images, "messages": messages, **own}


def _features() -> dict[str, Any]:
    """The columns in the words of `datasets`, which then opens the pictures itself."""

    def text() -> dict[str, str]:
        return {"dtype": "string", "_type": "Value"}

    return {
        "id": text(),
        "images": [{"_type": "Image"}],
        "messages": [{"role": text(), "content": [{"type": text(), "text": text()}]}],
        **{name: [text()] if name in ("labels", "captions") else text() for name in _KEPT},
        "meta": text(),
    }
