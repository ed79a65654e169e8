"""Several rows about one picture, by path or as exact copies: one row is left that knows what all say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from fieldguide.data.rows import Row, printable
from fieldguide.records import Problem

# Of copies that the source puts into different splits, the one for testing stays, so that none leaks.
SPLIT_RANK = {"test": 0, "val": 1, "train": 2, "": 3}


def settle_duplicates(
    rows: Sequence[Row], sha256s: Mapping[Path, str], certain: frozenset[Path] | set[Path] = frozenset()
) -> tuple[list[Row], list[Problem]]:
    """Leave one row for each picture content.

    Rows of one file (one caption or question each) become one row. Of exact copies with the same label one is
    kept, and takes over the others' captions and questions. Copies with different labels are all left out,
    except that a picture the user is `certain` about wins.

    Args:
        sha256s: hash of each row's picture, by path; all rows must be in it.
    """
    copies: dict[str, list[Row]] = {}
    for row in rows:
        copies.setdefault(sha256s[row.image], []).append(row)
    kept: list[Row] = []
    problems: list[Problem] = []
    for found in copies.values():
        sure = [row for row in found if row.image in certain]
        judges = sure if len({row.label for row in sure if row.label}) == 1 else found
        labels = list(dict.fromkeys(row.label for row in judges if row.label))
        if len(labels) > 1:
            problems += _conflict(found, labels)
            continue
        first = min(judges, key=lambda row: SPLIT_RANK[row.split])  # the first in order among equals
        agreeing = [row for row in found if row.label in ("", *labels)]
        kept.append(_merged(first, agreeing, labels[0] if labels else ""))
        for row in {row.image: row for row in found if row.image != first.image}.values():
            kind = "duplicate" if row in agreeing else "conflict"
            reason = f"exact duplicate of {printable(first.name)}"
            if kind == "conflict":
                reason += f", labelled {row.label!r} here and {labels[0]!r} there"
            elif row.split and row.split != first.split:
                reason += f", which lies in {first.split or 'no split'}"
            problems.append(Problem(printable(row.name), reason, "left out", kind, printable(first.name)))
    return kept, problems


def _conflict(rows: Sequence[Row], labels: Sequence[str]) -> list[Problem]:
    names = " and ".join(repr(label) for label in labels)
    problems = []
    for row in {row.image: row for row in rows}.values():
        other = next((other for other in rows if other.image != row.image), None)
        if other is None:
            reason = f"labelled {names} in different rows"
        else:
            reason = f"the same picture is labelled {names}"
        name = printable(other.name) if other else ""
        problems.append(Problem(printable(row.name), reason, "left out", "conflict", name))
    return problems


def _merged(first: Row, rows: Sequence[Row], label: str) -> Row:
    """`first` with the captions, questions and texts of all `rows`, each once."""
    ordered = [first, *(row for row in rows if row is not first)]
    texts = list(dict.fromkeys(row.text for row in ordered if row.text))
    captions = dict.fromkeys(caption for row in ordered for caption in row.captions)
    messages = dict.fromkeys(row.messages for row in ordered if row.messages)
    return dataclasses.replace(
        first,
        label=label,
        labels=tuple(dict.fromkeys(part for row in ordered for part in row.labels)),
        text="\n".join(texts),
        captions=tuple(captions),
        messages=tuple(turn for turns in messages for turn in turns),
        group=next((row.group for row in ordered if row.group), ""),
    )
