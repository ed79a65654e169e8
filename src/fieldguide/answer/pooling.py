"""Several pictures of one thing (frames of one fish, a burst) answered as one.

The evidence of a group's pictures is their log-probabilities, added and weighted. Pictures of one thing are
not independent: full weight would be as sure of ten frames of a film as of ten encounters. So n pictures
count as `n ** (1 - DEPENDENCE)`: as one of them for 1, as n independent ones for 0. The weight has no
influence on which label is the likeliest, only on how likely.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from fieldguide.errors import DataError, SettingsError
from fieldguide.records import LabelScore

DEPENDENCE = 0.5
FLOOR = 1e-9  # of a probability: one picture alone does not rule a label out
HOWS = "parent, a regular expression with one group in brackets, or a table of image and group"

GroupOf = Callable[[str], str]  # a picture's path → its group, "" where it has none


@dataclass(frozen=True)
class Member:
    """One picture of a group."""

    image: str
    scores: tuple[
        LabelScore, ...
    ]  # of all labels where probabilities are told, best first; () without an answer
    error: str = ""
    in_guide: bool | None = None
    content: str = ""  # hash of the bytes: the same picture twice is no more evidence; "" where not known


@dataclass(frozen=True)
class Pooled:
    """One answer to a group."""

    group: str
    scores: tuple[LabelScore, ...]  # best first; () where no picture has an answer
    pictures: int  # that the answer rests on: each content once
    repeated: int  # pictures left out since they are others' bytes once more
    unanswered: int  # unreadable, or off the list
    in_guide: bool | None  # False: more than half of its pictures are not in the guide; None: not told
    voted: bool = False  # no probabilities are told: each picture has one vote

    @property
    def label(self) -> str:
        return self.scores[0].label if self.scores else ""

    @property
    def probability(self) -> float | None:
        return self.scores[0].probability if self.scores else None


def pool(group: str, members: Sequence[Member], dependence: float = DEPENDENCE) -> Pooled:
    """Combine the pictures of one group; their order plays no part."""
    seen: dict[str, Member] = {}
    for member in sorted(members, key=lambda one: one.image):
        seen.setdefault(member.content or f"\\0{member.image}", member)
    answered = [one for one in seen.values() if one.scores]
    unanswered = sum(not one.scores for one in seen.values())
    told = [one.in_guide for one in answered if one.in_guide is not None]
    inside = None if not told else sum(told) * 2 >= len(told)
    repeated = len(members) - len(seen)
    if not answered:
        return Pooled(group, (), 0, repeated, unanswered, None)
    voted = any(score.probability is None for one in answered for score in one.scores)
    scores = _votes(answered) if voted else _combined(answered, dependence)
    return Pooled(group, scores, len(answered), repeated, unanswered, inside, voted)


def _combined(answered: Sequence[Member], dependence: float) -> tuple[LabelScore, ...]:
    labels = sorted({score.label for one in answered for score in one.scores})
    place = {label: number for number, label in enumerate(labels)}
    logs = np.empty((len(answered), len(labels)))
    for row, one in enumerate(answered):
        # Labels that a picture does not list (a server tells only some) share what is missing to 1.
        missing = 1 - sum(float(score.probability or 0.0) for score in one.scores)
        logs[row] = np.log(max(missing / max(len(labels) - len(one.scores), 1), FLOOR))
        for score in one.scores:
            logs[row, place[score.label]] = np.log(max(float(score.probability or 0.0), FLOOR))
    logs -= np.logaddexp.reduce(logs, axis=1, keepdims=True)
    total = logs.mean(0) * len(answered) ** (1 - dependence)
    total -= np.logaddexp.reduce(total)
    order = np.argsort(-total, kind="stable")
    return tuple(LabelScore(labels[i], float(np.exp(total[i])), float(total[i])) for i in order)


def _votes(answered: Sequence[Member]) -> tuple[LabelScore, ...]:
    """Labels by the number of pictures that named them first; a tie goes to the name that sorts first."""
    counts: dict[str, int] = {}
    for one in answered:
        counts[one.scores[0].label] = counts.get(one.scores[0].label, 0) + 1
    return tuple(
        LabelScore(label, None) for label in sorted(counts, key=lambda label: (-counts[label], label))
    )


def grouping(how: str, groups: Mapping[str, str] | None = None) -> GroupOf:
    """How pictures are put together.

    Args:
        how: "parent", a table (.csv: columns image, group), or a regular expression with one group.
        groups: of a data set, image → group, for `how` "group".

    Raises:
        SettingsError: when it is none of them.
        DataError: when the table cannot be used.
    """
    if how == "parent":
        return lambda image: str(PurePath(image).parent)
    if how == "group" and groups is not None:
        return lambda image: groups.get(image, "")
    if how.lower().endswith(".csv"):
        return _from_table(Path(how))
    try:
        pattern = re.compile(how)
    except re.error as error:
        raise SettingsError(f"--group-by {how}: {error}", f"give {HOWS}") from None
    if pattern.groups != 1:
        raise SettingsError(f"--group-by {how}: has {pattern.groups} groups in brackets", f"give {HOWS}")

    def found(image: str) -> str:
        match = pattern.search(PurePath(image).name)
        return (match[1] or "") if match else ""

    return found


def _from_table(path: Path) -> GroupOf:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path}: cannot be read ({error})", "give a CSV with columns image and group"
        ) from None
    if not rows or not {"image", "group"} <= set(rows[0]):
        raise DataError(
            f"{path}: needs columns image and group", f"it has {', '.join(rows[0]) if rows else 'no rows'}"
        )
    found: dict[str, str] = {}
    for number, row in enumerate(rows, start=2):
        name = PurePath((row["image"] or "").replace("\\", "/")).name
        group = (row["group"] or "").strip()
        if found.setdefault(name, group) != group:
            raise DataError(
                f"{path}, row {number}: {name!r} is in two groups", "a picture belongs to one thing"
            )
    return lambda image: found.get(PurePath(image).name, "")


def pool_all(members: Sequence[Member], group_of: GroupOf, dependence: float = DEPENDENCE) -> list[Pooled]:
    """One answer a group, in the order in which they first occur; a picture without a group stands alone."""
    parts: dict[str, list[Member]] = {}
    for member in members:
        parts.setdefault(group_of(member.image) or member.image, []).append(member)
    return [pool(group, part, dependence) for group, part in parts.items()]
