"""Rows in their groups, splits and folds: what looks alike, or was shot in one burst, stays together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fieldguide.data.clean import Examined, near_duplicates
from fieldguide.data.rows import Row, printable
from fieldguide.data.split import Clash, Placement, number_folds, place_groups
from fieldguide.data.ties import Tie, burst_ties, group_ties, shared_ties
from fieldguide.records import Problem
from fieldguide.settings import ImportSettings


@dataclass(frozen=True)
class Arrangement:
    """The rows that stay, with group, split and fold of each, and what was found on the way."""

    rows: tuple[Row, ...]
    groups: tuple[str, ...]
    splits: tuple[str, ...]
    folds: tuple[int, ...]  # -1 where no folds were asked for
    problems: tuple[Problem, ...]


def arrange(
    rows: Sequence[Row],
    examined: Mapping[Path, Examined],
    settings: ImportSettings,
    previous: Mapping[str, str] | None = None,
) -> Arrangement:
    """Group and split rows, one a picture content.

    Args:
        examined: what is known of each row's picture, by path; a row without picture has a path that is its
            alone, and there the hash of its text.
        previous: {sha256: split} that must not change.
    """
    rows = list(rows)
    problems: list[Problem] = []
    while True:
        signatures = [examined[row.image].phash for row in rows]
        near = near_duplicates(signatures, settings.near_duplicate_distance)
        placement = _place(rows, examined, near, settings, previous)
        if not placement.left_out:
            break
        # The links name no more pairs than connect a group: with some pictures gone, others must be looked
        # for, or two pictures linked through one that is left out could come to lie on two sides.
        problems += [_clash(rows, index, clash) for index, clash in sorted(placement.left_out.items())]
        rows = [row for index, row in enumerate(rows) if index not in placement.left_out]
    problems += [_look_alike(rows, placement, left, right) for left, right in near]
    labels = [row.label for row in rows]
    if settings.folds > 1:
        folds = number_folds(placement.groups, labels, settings.folds, settings.seed)
    else:
        folds = (-1,) * len(rows)
    return Arrangement(tuple(rows), placement.groups, placement.splits, folds, tuple(problems))


def _place(
    rows: Sequence[Row],
    examined: Mapping[Path, Examined],
    near: Sequence[tuple[int, int]],
    settings: ImportSettings,
    previous: Mapping[str, str] | None,
) -> Placement:
    found = [examined[row.image] for row in rows]
    groups = [row.group for row in rows]
    shared = shared_ties([row.ties for row in rows], "in one conversation")
    bursts = burst_ties([e.taken for e in found], [e.camera for e in found], settings.burst_seconds)
    return place_groups(
        [e.sha256 for e in found],
        [row.label for row in rows],
        [*(Tie(pair, "near-duplicate") for pair in near), *group_ties(groups), *shared, *bursts],
        val=settings.val,
        test=settings.test,
        seed=settings.seed,
        given=[row.split for row in rows],
        previous=previous,
        user_groups=groups,
    )


def _clash(rows: Sequence[Row], index: int, clash: Clash) -> Problem:
    other = printable(rows[clash.other].name)
    reason = f"{clash.reason} of {other}, which lies in {clash.split}: it would leak"
    kind = "near_duplicate" if clash.reason == "near-duplicate" else "leak"
    return Problem(printable(rows[index].name), reason, "left out", kind, other)


def _look_alike(rows: Sequence[Row], placement: Placement, left: int, right: int) -> Problem:
    one, two = rows[left], rows[right]
    reason = f"looks like {printable(one.name)}"
    if one.label != two.label:
        reason += f", but is labelled {two.label!r} and that one {one.label!r}"
    done = f"kept, both in {placement.splits[right]}"
    return Problem(printable(two.name), reason, done, "near_duplicate", printable(one.name))
