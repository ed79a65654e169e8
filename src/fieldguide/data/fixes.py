"""The user's decisions about single pictures: fixes.csv with the columns file, action, label.

    file,action,label
    koi/000012.jpg,drop,
    boal/000003.jpg,relabel,pabda
    baim/000044.jpg,keep,

`file` is a path (relative to the source, or absolute) or a sha256. "keep" keeps a picture that a check would
leave out: a blank one, or the right one of several copies with different labels.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fieldguide.data.rows import Row, clean_label, printable
from fieldguide.data.tables import cell_text, column_named, read_table
from fieldguide.errors import DataError
from fieldguide.records import Problem

ACTIONS = ("drop", "relabel", "keep")


@dataclass(frozen=True)
class Fix:
    """One decision."""

    file: str
    action: str  # one of ACTIONS
    label: str = ""  # for "relabel"
    where: str = ""  # "fixes.csv row 3"


def read_fixes(path: Path | str) -> tuple[Fix, ...]:
    """Read a table of decisions; rows without an action are undecided and skipped.

    Raises:
        DataError: when a column is missing, an action unknown, or a new label not given, naming the row.
    """
    table = read_table(Path(path))
    columns = {name: column_named(table.columns, (name,)) for name in ("file", "action", "label")}
    for name in ("file", "action"):
        if not columns[name]:
            raise DataError(
                f"{path}: no column {name!r}", "a fixes table has the columns file, action, label"
            )
    fixes = []
    for index, record in enumerate(table.records):
        file, action = (
            cell_text(record.get(columns["file"])),
            cell_text(record.get(columns["action"])).lower(),
        )
        label = clean_label(cell_text(record.get(columns["label"]))) if columns["label"] else ""
        where = table.where(index)
        if not file or not action:
            continue
        if action not in ACTIONS:
            raise DataError(f"{path}: {where}: unknown action {action!r}", f"one of {', '.join(ACTIONS)}")
        if action == "relabel" and not label:
            raise DataError(f"{path}: {where}: relabel needs a label", "fill in the column label of that row")
        fixes.append(Fix(file, action, label, where))
    return tuple(fixes)


def apply_fixes(
    rows: Sequence[Row], fixes: Sequence[Fix], root: Path, sha256s: Mapping[Path, str]
) -> tuple[list[Row], set[Path], list[Problem]]:
    """Apply decisions to rows; of several about one picture the last counts.

    Args:
        sha256s: hash of each readable picture, by path.

    Returns:
        The rows that remain, the pictures to keep whatever the checks say, and what was done.
    """
    by_path: dict[str, list[int]] = {}
    by_hash: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        for path in {row.image, row.image.resolve(), root / row.name}:
            by_path.setdefault(str(path), []).append(index)
        if row.image in sha256s:
            by_hash.setdefault(sha256s[row.image], []).append(index)
    chosen: dict[int, Fix] = {}
    problems: list[Problem] = []
    for fix in fixes:
        if re.fullmatch(r"[0-9a-fA-F]{64}", fix.file):
            found = by_hash.get(fix.file.lower(), [])
        else:
            found = next((by_path[key] for key in _spellings(fix.file, root) if key in by_path), [])
        if not found:
            problems.append(Problem(f"{fix.where}: {fix.file}", "no such picture", "ignored", "fix"))
        for index in found:
            chosen[index] = fix
    kept, certain = [], set()
    for index, row in enumerate(rows):
        decision = chosen.get(index)
        if decision is None:
            kept.append(row)
            continue
        reason, name = f"decided in {decision.where}", printable(row.name)
        if decision.action == "drop":
            problems.append(Problem(name, reason, "left out", "fix"))
        elif decision.action == "keep":
            certain.add(row.image)
            kept.append(row)
        else:
            done = f"relabelled from {row.label!r} to {decision.label!r}"
            problems.append(Problem(name, reason, done, "fix"))
            certain.add(row.image)
            # a list of one label says the same as the label, and must not go on saying the old one
            labels = row.labels if len(row.labels) > 1 else ()
            kept.append(dataclasses.replace(row, label=decision.label, labels=labels))
    return kept, certain, problems


def _spellings(file: str, root: Path) -> list[str]:
    path = file.replace("\\", "/")
    return [str(root / path), str((root / path).resolve()), str(Path(path).resolve())]
