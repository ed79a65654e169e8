"""Conversations settled: bad pictures and repeated rows out, the rest grouped and split without leaks.

Each row stays an example of its own. What is split is not rows but what they are about: pictures, and the
questions of rows without picture. Several conversations about one picture therefore lie on one side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fieldguide.data.arrange import arrange
from fieldguide.data.clean import Examined
from fieldguide.data.conversations import Conversation, Conversations
from fieldguide.data.duplicates import SPLIT_RANK
from fieldguide.data.fixes import Fix, apply_fixes
from fieldguide.data.rows import Row, printable, row_name
from fieldguide.errors import DataError
from fieldguide.records import Problem, Turn
from fieldguide.settings import ImportSettings


@dataclass(frozen=True)
class Settled:
    """The rows that stay, with group, split and fold of each, and what was found on the way."""

    rows: tuple[Conversation, ...]
    groups: tuple[str, ...]
    splits: tuple[str, ...]
    folds: tuple[int, ...]
    problems: tuple[Problem, ...]


@dataclass
class _Subject:
    """What is split as a whole: a picture content, or the questions of rows without picture."""

    image: Path
    name: str
    label: str = ""
    split: str = ""
    groups: dict[str, None] = field(default_factory=dict)  # ordered
    ties: dict[str, None] = field(default_factory=dict)


def content_keys(messages: Sequence[Turn], sha256s: Sequence[str]) -> tuple[str, ...]:
    """What a conversation is about: its pictures' hashes; without picture, the hash of its questions."""
    if sha256s:
        return tuple(sha256s)
    asked = "\n".join(" ".join(turn.text.split()) for turn in messages if turn.role == "user")
    return (hashlib.sha256(f"text:{asked}".encode()).hexdigest(),)


def settle_conversations(
    found: Conversations,
    fixes: Sequence[Fix],
    examined: Mapping[Path, Examined],
    settings: ImportSettings,
    previous: Mapping[str, str],
) -> tuple[Settled, list[Problem]]:
    """Leave out what cannot stay, then group and split the rest.

    Args:
        fixes: the user's decisions.
        examined: what is known of every picture, by path.
        previous: {content key: split} that must not change.

    Returns:
        The rows that stay in their places, and what was done to the others before they were placed.

    Raises:
        DataError: when no row stays.
    """
    root = found.root
    hashes = {path: result.sha256 for path, result in examined.items()}
    rows, certain, problems = _fixed(found.rows, fixes, root, hashes)
    kept, more = _without_bad_pictures(rows, examined, certain, root)
    problems += more
    keys = [content_keys(row.messages, [hashes[path] for path in row.pictures]) for row in kept]
    kept, keys, more = _without_repeats(kept, keys)
    problems += more
    kept, keys, more = _without_conflicts(kept, keys)
    problems += more
    subjects = _subjects(kept, keys, root)
    kept, keys, more = _without_leaks(kept, keys, subjects)
    problems += more
    if not kept:
        raise DataError("no conversation is left to import", "; ".join(p.reason for p in problems[-3:]))
    return _placed(kept, keys, subjects, examined, settings, previous), problems


def _placed(
    rows: Sequence[Conversation],
    keys: Sequence[tuple[str, ...]],
    subjects: Mapping[str, _Subject],
    examined: Mapping[Path, Examined],
    settings: ImportSettings,
    previous: Mapping[str, str],
) -> Settled:
    """Group and split the subjects, one row each, and give every row its subject's place."""
    by_path = dict(examined)
    units = []
    for key, subject in subjects.items():
        by_path.setdefault(subject.image, Examined(subject.image, sha256=key))
        units.append(
            Row(
                subject.image,
                subject.name,
                subject.label,
                split=subject.split,
                group=next(iter(subject.groups), ""),
                ties=(*subject.ties, *(f"group {name}" for name in subject.groups)),
            )
        )
    arranged = arrange(units, by_path, settings, previous)
    place = {by_path[unit.image].sha256: number for number, unit in enumerate(arranged.rows)}
    stay = [index for index, found in enumerate(keys) if all(key in place for key in found)]
    places = [place[keys[index][0]] for index in stay]
    return Settled(
        tuple(rows[index] for index in stay),
        tuple(arranged.groups[number] for number in places),
        tuple(arranged.splits[number] for number in places),
        tuple(arranged.folds[number] for number in places),
        arranged.problems,
    )


def _fixed(
    rows: Sequence[Conversation], fixes: Sequence[Fix], root: Path, sha256s: Mapping[Path, str]
) -> tuple[list[Conversation], set[Path], list[Problem]]:
    """Apply decisions; `file` is a row's id, or its (first) picture, which stands for all rows about it.

    Returns:
        The rows that remain, the pictures to keep whatever the checks say, and what was done.
    """
    if not fixes:
        return list(rows), set(), []
    plain = [Row(_stand_in(row, root), row.name, row.label, row.labels) for row in rows]
    left, certain, problems = apply_fixes(plain, fixes, root, sha256s)
    decided = {row.name: row for row in left}
    kept = [
        replace(row, label=decided[row.name].label, labels=decided[row.name].labels)
        for row in rows
        if row.name in decided
    ]
    return kept, certain, problems


def _stand_in(row: Conversation, root: Path) -> Path:
    """A path of the row's own: its first picture's, else one that names no file."""
    return row.pictures[0] if row.pictures else root / f"{row.where} (no picture)"


def _without_bad_pictures(
    rows: Sequence[Conversation], examined: Mapping[Path, Examined], certain: set[Path], root: Path
) -> tuple[list[Conversation], list[Problem]]:
    """Leave out the rows of unreadable and blank pictures: one problem a picture, which counts its rows."""
    bad = {
        path: (found.error or "blank: all of one colour", "unreadable" if found.error else "blank")
        for path, found in examined.items()
        if found.error or (found.blank and path not in certain)
    }
    kept: list[Conversation] = []
    of: dict[Path, list[Conversation]] = {}
    for row in rows:
        fault = next((path for path in row.pictures if path in bad), None)
        if fault is None:
            kept.append(row)
        else:
            of.setdefault(fault, []).append(row)
    problems = []
    for path, found in of.items():
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        done = f"left out, with {found[0].title}{more}"
        problems.append(Problem(printable(row_name(path, root)), bad[path][0], done, bad[path][1]))
    return kept, problems


def _without_repeats(
    rows: Sequence[Conversation], keys: Sequence[tuple[str, ...]]
) -> tuple[list[Conversation], list[tuple[str, ...]], list[Problem]]:
    """Of rows that say the same of the same pictures the one in the firmest split stays, else the first."""
    first: dict[tuple[tuple[str, ...], tuple[Turn, ...]], int] = {}
    problems: list[Problem] = []
    out: set[int] = set()
    for index, (row, key) in enumerate(zip(rows, keys, strict=True)):
        other = first.setdefault((key, row.messages), index)
        if other == index:
            continue
        stays, goes = other, index
        if SPLIT_RANK[row.split] < SPLIT_RANK[rows[other].split]:
            stays, goes = index, other
            first[key, row.messages] = index
        out.add(goes)
        reason = f"says the same as {rows[stays].title}"
        problems.append(Problem(rows[goes].title, reason, "left out", "duplicate", rows[stays].name))
    return *_chosen(rows, keys, out), problems


def _without_conflicts(
    rows: Sequence[Conversation], keys: Sequence[tuple[str, ...]]
) -> tuple[list[Conversation], list[tuple[str, ...]], list[Problem]]:
    """A picture that has different labels in different rows: none of the rows with a label is believed."""
    labels: dict[str, dict[str, None]] = {}
    for row, key in zip(rows, keys, strict=True):
        if row.label and row.pictures:
            labels.setdefault(key[0], {})[row.label] = None
    torn = {
        key: " and ".join(repr(label) for label in found) for key, found in labels.items() if len(found) > 1
    }
    out = {
        index
        for index, (row, key) in enumerate(zip(rows, keys, strict=True))
        if row.label and row.pictures and key[0] in torn
    }
    problems = [
        Problem(rows[i].title, f"its picture is labelled {torn[keys[i][0]]}", "left out", "conflict")
        for i in sorted(out)
    ]
    return *_chosen(rows, keys, out), problems


def _subjects(
    rows: Sequence[Conversation], keys: Sequence[tuple[str, ...]], root: Path
) -> dict[str, _Subject]:
    """What the rows are about, by content key; what one row brings together is tied."""
    subjects: dict[str, _Subject] = {}
    for row, found in zip(rows, keys, strict=True):
        several = f"row {row.name}" if len(set(found)) > 1 else ""
        for place, key in enumerate(found):
            subject = subjects.get(key)
            if subject is None:
                image = row.pictures[place] if row.pictures else _stand_in(row, root)
                name = row_name(image, root) if row.pictures else row.title
                subject = subjects[key] = _Subject(image, name)
            subject.label = subject.label or row.label
            if row.split and (not subject.split or SPLIT_RANK[row.split] < SPLIT_RANK[subject.split]):
                subject.split = row.split
            if row.group:
                subject.groups[row.group] = None
            if several:
                subject.ties[several] = None
            if row.own_id and not row.pictures:  # the pieces of one long chat
                subject.ties[f"id {row.own_id}"] = None
    return subjects


def _without_leaks(
    rows: Sequence[Conversation], keys: Sequence[tuple[str, ...]], subjects: Mapping[str, _Subject]
) -> tuple[list[Conversation], list[tuple[str, ...]], list[Problem]]:
    """Rows that the source puts into another split than other rows about the same thing."""
    out: dict[int, Problem] = {}
    for index, (row, found) in enumerate(zip(rows, keys, strict=True)):
        elsewhere = next((subjects[key] for key in found if subjects[key].split != row.split), None)
        if row.split and elsewhere is not None:
            reason = f"other rows about {printable(elsewhere.name)} lie in {elsewhere.split}: it would leak"
            out[index] = Problem(row.title, reason, "left out", "leak", printable(elsewhere.name))
    return *_chosen(rows, keys, out), list(out.values())


def _chosen(
    rows: Sequence[Conversation], keys: Sequence[tuple[str, ...]], out: Iterable[int]
) -> tuple[list[Conversation], list[tuple[str, ...]]]:
    left_out = set(out)
    stay = [index for index in range(len(rows)) if index not in left_out]
    return [rows[index] for index in stay], [keys[index] for index in stay]
