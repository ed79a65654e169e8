"""Rows that have found their place, as examples: with hashes, and paths as the data set folder sees them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from fieldguide.data.arrange import Arrangement
from fieldguide.data.clean import Examined
from fieldguide.data.conversations import Conversation
from fieldguide.data.examples import IMAGES, IMAGES_SHA256
from fieldguide.data.rows import Row, row_name
from fieldguide.data.settle import Settled
from fieldguide.records import Example


def example_rows(
    arranged: Arrangement | Settled, examined: Mapping[Path, Examined], root: Path, out: Path, copy: bool
) -> tuple[list[Example], dict[str, Path]]:
    """The examples of a data set folder to be, and {path below images/: file} to copy there.

    Args:
        root: the folder that pictures' names are relative to.
        out: the data set folder.
        copy: whether pictures are to be copied into it.
    """
    inside: dict[Path, str] = {}
    examples = []
    rows: Sequence[Row | Conversation] = arranged.rows
    for number, row in enumerate(rows):
        for path in row.pictures:
            if path not in inside:
                name = row.name if isinstance(row, Row) else row_name(path, root)
                inside[path] = (
                    _copied_path(name, path, examined[path].sha256) if copy else _relative_path(path, out)
                )
        found = [examined[path] for path in row.pictures]
        first = found[0] if found else Examined(root)
        examples.append(
            Example(
                id=row.name,
                image=inside[row.pictures[0]] if found else "",
                sha256=first.sha256,
                width=first.width,
                height=first.height,
                phash=first.phash,
                label=row.label,
                labels=row.labels,
                text=row.text,
                captions=row.captions,
                messages=row.messages,
                group=arranged.groups[number],
                split=arranged.splits[number],
                fold=arranged.folds[number],
                source=row.source,
                licence=row.licence,
                meta=_meta(row, inside, found),
            )
        )
    return examples, {name: path for path, name in inside.items()}


def _meta(
    row: Row | Conversation, inside: Mapping[Path, str], found: Sequence[Examined]
) -> Mapping[str, Any]:
    if len(found) < 2:
        return row.meta
    several = {IMAGES: [inside[path] for path in row.pictures], IMAGES_SHA256: [one.sha256 for one in found]}
    return {**row.meta, **several}


def _relative_path(image: Path, out: Path) -> str:
    """Path from the data set folder, true on disk: ".." after a link would lead elsewhere."""
    real = Path(os.path.realpath(image.parent)) / image.name
    try:
        return Path(os.path.relpath(real, os.path.realpath(out))).as_posix()
    except ValueError:  # another drive
        return real.as_posix()


def _copied_path(name: str, image: Path, sha256: str) -> str:
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts:
        inside = PurePosixPath(sha256[:16] + image.suffix.lower())
    return f"images/{inside}"
