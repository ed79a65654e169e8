"""What ties pictures together so that they must share a split: a column's values, bursts of one camera."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Tie:
    """Pictures (by index) that must share a side, and why."""

    members: tuple[int, ...]
    reason: str


def group_ties(groups: Sequence[str]) -> list[Tie]:
    """Ties of pictures with the same non-empty group value."""
    members: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        if group:
            members[group].append(index)
    return [Tie(tuple(found), "same group") for found in members.values() if len(found) > 1]


def shared_ties(names: Sequence[tuple[str, ...]], reason: str) -> list[Tie]:
    """Ties of those that share a name; each may have several, or none."""
    members: dict[str, list[int]] = defaultdict(list)
    for index, found in enumerate(names):
        for name in found:
            members[name].append(index)
    return [Tie(tuple(found), reason) for found in members.values() if len(found) > 1]


def burst_ties(taken: Sequence[str], cameras: Sequence[str], seconds: float) -> list[Tie]:
    """Ties of pictures by one camera, each taken at most `seconds` after the one before.

    Args:
        taken: ISO date and time of each picture, "" where unknown (never tied).
        cameras: camera of each picture; pictures that name none count as one camera.
    """
    if seconds <= 0:
        return []
    by_camera: dict[str, list[tuple[datetime, int]]] = defaultdict(list)
    for index, text in enumerate(taken):
        moment = _moment(text)
        if moment is not None:
            by_camera[cameras[index]].append((moment, index))
    ties = []
    for shots in by_camera.values():
        shots.sort()
        run = [shots[0]]
        for shot in [*shots[1:], None]:
            if shot is not None and (shot[0] - run[-1][0]).total_seconds() <= seconds:
                run.append(shot)
                continue
            if len(run) > 1:
                ties.append(Tie(tuple(index for _, index in run), "same burst"))
            run = [shot] if shot is not None else []
    return ties


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text).replace(tzinfo=None) if text else None  # one camera, one clock
    except ValueError:
        return None
