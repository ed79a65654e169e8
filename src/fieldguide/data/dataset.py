"""The data set folder: examples.parquet, notes.csv, problems.csv, and dataset.json, which is written last.

    load_dataset("fish.dataset").of("train")

`examples.parquet` is an ordinary table: `datasets.load_dataset("parquet", …)`, polars and pandas read it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import platform
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fieldguide.data.examples import IMAGES_SHA256, images_of, read_examples, write_examples
from fieldguide.data.notes import fold_label, read_notes, write_notes
from fieldguide.data.rows import printable
from fieldguide.errors import DataError, FieldguideError
from fieldguide.files import natural_key, read_json, write_json, write_text
from fieldguide.records import SPLITS, Example, Note, Problem

SCHEMA_VERSION = 1
_PROBLEM_COLUMNS = ("file", "reason", "done", "kind", "other")
_HINT = "fieldguide import PICTURES -o {}"


@dataclass(frozen=True)
class Dataset:
    """A data set folder, loaded."""

    folder: Path  # absolute
    examples: tuple[Example, ...]
    notes: tuple[Note, ...]
    info: dict[str, Any]  # dataset.json

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The labels of the examples, in natural order."""
        return tuple(sorted({example.label for example in self.examples if example.label}, key=natural_key))

    @property
    def fingerprint(self) -> str:
        """Identity of the content: ids, pictures, labels, splits, texts and notes; not of where it lies."""
        return str(self.info["fingerprint"])

    def of(self, split: str) -> tuple[Example, ...]:
        """The examples of one split: "train", "val" or "test"."""
        if split not in SPLITS:
            raise DataError(f"no split {split!r}", f"one of {', '.join(SPLITS)}")
        return tuple(example for example in self.examples if example.split == split)

    def path(self, example: Example) -> Path:
        """Absolute path of an example's picture, of several the first."""
        return Path(os.path.normpath(self._real_folder / example.image))

    def paths(self, example: Example) -> tuple[Path, ...]:
        """Absolute paths of all pictures of an example, in their order; none for a text-only row."""
        return tuple(Path(os.path.normpath(self._real_folder / image)) for image in images_of(example))

    @cached_property
    def _real_folder(self) -> Path:
        return self.folder.resolve()  # ".." after a link leads elsewhere than it reads

    def note(self, label: str) -> Note | None:
        """The note of a label, if the owner wrote one."""
        note = self._note_of.get(fold_label(label))
        # "Case" and "case" may both be labels: the note of one is not the other's
        other = note is not None and note.label != label and {note.label, label} <= set(self.labels)
        return None if other else note

    def notes_of(self, labels: Iterable[str]) -> dict[str, Note]:
        """The notes of those labels that have one."""
        return {label: note for label in labels if (note := self.note(label)) is not None}

    def trained_labels(self) -> tuple[str, ...]:
        """The labels that have training examples: those that a guide can learn.

        Raises:
            DataError: when there are fewer than two.
        """
        trained = {example.label for example in self.of("train") if example.label}
        labels = tuple(label for label in self.labels if label in trained)
        if len(labels) < 2:
            raise DataError(
                f"{self.folder}: {len(labels)} label(s) with training examples; a guide needs at least two",
                f"fieldguide look {self.folder}",
            )
        return labels

    @cached_property
    def _note_of(self) -> dict[str, Note]:
        return {fold_label(note.label): note for note in self.notes}


# ---- writing


def write_dataset(
    folder: Path | str,
    examples: Sequence[Example],
    notes: Sequence[Note],
    settings: Mapping[str, Any],
    problems: Sequence[Problem],
    inferred: Mapping[str, str],
    *,
    source: str = "",
    pictures: Mapping[str, Path] | None = None,
) -> Dataset:
    """Write a data set folder, whole or not at all; an earlier data set in it is replaced.

    Args:
        examples: their `image` is relative to `folder`.
        pictures: {path relative to `folder`, below images/: file to copy there}.

    Raises:
        DataError: when `folder` holds something other than a data set, or two examples share an id.
    """
    folder = Path(os.path.abspath(folder))
    check_free(folder)
    doubled = [name for name, count in Counter(example.id for example in examples).items() if count > 1]
    if doubled:
        raise DataError(f"{folder}: two examples have the id {doubled[0]!r}")
    info: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "source": printable(source),
        "fingerprint": "",
        "counts": _counts(examples),
        "problems": dict(Counter(problem.kind for problem in problems)),
        "inferred": dict(inferred),
        "settings": dict(settings),
        "versions": {
            "fieldguide": version("fieldguide"),
            "pillow": version("pillow"),
            "pyarrow": version("pyarrow"),
            "python": platform.python_version(),
        },
    }
    with _staged(folder) as staging:
        for inside, file in (pictures or {}).items():
            target = staging / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        write_examples(staging / "examples.parquet", examples)
        write_notes(staging / "notes.csv", notes)
        notes = read_notes(staging / "notes.csv")  # as every later reader will see them
        _write_problems(staging / "problems.csv", problems)
        info["fingerprint"] = content_fingerprint(examples, notes)
        write_json(staging / "dataset.json", info)
    return Dataset(folder, tuple(examples), tuple(notes), info)


def check_free(folder: Path) -> None:
    """Refuse to write where something other than a data set lies, or where nothing can be written.

    Raises:
        DataError: naming the folder.
    """
    if folder.is_dir():
        names = {entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")}
        if names and not names & {"dataset.json", "examples.parquet"}:
            raise DataError(
                f"{folder}: holds other files, and is not a data set", "choose a new folder for -o"
            )
    elif folder.exists() or folder.is_symlink():
        raise DataError(f"{folder}: is a file", "choose a new folder for -o")
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        reason = "cannot be written to" if nearest.is_dir() else "is a file"
        raise DataError(f"{folder}: {nearest} {reason}", "choose another folder for -o")


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """Yield a hidden folder inside `folder`; on success its content takes the place of the old files.

    The user's own files in the folder stay. `dataset.json` goes first and comes last, so a kill in between
    leaves a folder that `load_dataset` refuses.
    """
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".writing-*"):  # of an import that was killed
        shutil.rmtree(left, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
    try:
        yield staging
        for file in staging.rglob("*"):
            if file.is_file():
                with open(file, "rb") as written:
                    os.fsync(written.fileno())
        (folder / "dataset.json").unlink(missing_ok=True)
        if (staging / "images").exists() and (folder / "images").exists():
            os.replace(folder / "images", staging / ".old-images")
        for entry in sorted(staging.iterdir(), key=lambda path: path.name == "dataset.json"):
            if entry.name != ".old-images":
                os.replace(entry, folder / entry.name)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        if new and not any(folder.iterdir()):
            folder.rmdir()
        raise
    shutil.rmtree(staging, ignore_errors=True)


def _write_problems(path: Path, problems: Sequence[Problem]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_PROBLEM_COLUMNS)
    for problem in problems:
        writer.writerow([printable(getattr(problem, column)) for column in _PROBLEM_COLUMNS])
    write_text(path, text.getvalue())


def _counts(examples: Sequence[Example]) -> dict[str, Any]:
    splits = Counter(example.split for example in examples)
    by_label: dict[str, Counter[str]] = {}
    for example in examples:
        by_label.setdefault(example.label, Counter())[example.split] += 1
    return {
        "examples": len(examples),
        "groups": len({example.group for example in examples}),
        "splits": {split: splits[split] for split in SPLITS},
        "labels": {
            label: {split: by_label[label][split] for split in SPLITS}
            for label in sorted(by_label, key=natural_key)
        },
    }


def content_fingerprint(examples: Sequence[Example], notes: Sequence[Note]) -> str:
    """SHA-256 over what a model can learn from a data set: pictures, labels, splits, texts, notes.

    Paths are not part of it, so a moved folder keeps its fingerprint; nor is the order of the rows.
    """
    lines = [
        json.dumps(
            [
                e.id, e.sha256, e.label, list(e.labels), e.split, e.fold, e.text, list(e.captions),
                [[turn.role, turn.text] for turn in e.messages],
                *([e.meta[IMAGES_SHA256]] if IMAGES_SHA256 in e.meta else []),
            ],
            ensure_ascii=False,
        )
        for e in examples
    ]  # fmt: skip
    lines.sort()
    lines += sorted(
        json.dumps([list(value) if isinstance(value, tuple) else value for value in vars(note).values()])
        for note in notes
    )
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "backslashreplace") + b"\n")
    return digest.hexdigest()


# ---- reading


def load_dataset(folder: Path | str) -> Dataset:
    """Load a data set folder.

    Raises:
        DataError: when it is missing, half written, of a newer version, or its parts do not belong together.
    """
    folder = Path(os.path.abspath(folder))
    hint = _HINT.format(folder.name)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such data set folder", hint)
    if not (folder / "dataset.json").is_file():
        state = "is half written" if (folder / "examples.parquet").exists() else "is not a data set"
        raise DataError(f"{folder}: {state} (no dataset.json)", hint)
    try:
        info = read_json(folder / "dataset.json")
        schema, fingerprint = int(info["schema"]), str(info["fingerprint"])
        expected = int(info["counts"]["examples"])
    except (FieldguideError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder / 'dataset.json'}: damaged ({error})", hint) from error
    if schema > SCHEMA_VERSION:
        raise DataError(f"{folder}: written by a newer fieldguide (schema {schema})", "update fieldguide")
    examples = read_examples(folder / "examples.parquet")
    if len(examples) != expected:
        reason = f"examples.parquet has {len(examples)} rows where dataset.json counts {expected}"
        raise DataError(f"{folder}: {reason}", hint)
    notes = read_notes(folder / "notes.csv")
    if content_fingerprint(examples, notes) != fingerprint:
        reason = "examples.parquet or notes.csv was changed after the import"
        raise DataError(f"{folder}: {reason}", "change the source (or use --fixes) and import again")
    return Dataset(folder, examples, notes, info)


def read_problems(folder: Path | str) -> tuple[Problem, ...]:
    """The rows of `problems.csv`."""
    with open(Path(folder) / "problems.csv", encoding="utf-8", newline="") as file:
        return tuple(Problem(**record) for record in csv.DictReader(file))
