"""What is gained by answering several pictures of one thing together, on the pictures of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fieldguide.answer.pooling import GroupOf, Member, pool
from fieldguide.report.evaluation import Prediction
from fieldguide.report.intervals import Interval, bootstrap_interval, wilson_interval


@dataclass(frozen=True)
class Grouped:
    """Groups of two pictures and more, all of one true label."""

    groups: int
    pictures: int
    right: int  # groups
    accuracy: float  # of the groups' answers
    interval: Interval  # Wilson, over groups
    single: float  # accuracy of the same pictures one by one
    single_interval: Interval  # bootstrap over groups: pictures of one group are not independent
    gain: float  # accuracy of the groups less the mean accuracy of their pictures
    gain_interval: Interval  # bootstrap over groups
    mixed: int  # groups of several true labels, left out
    alone: int  # groups of one picture, left out

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def grouped(predictions: Sequence[Prediction], group_of: GroupOf) -> Grouped | None:
    """Answer each group as one, and count; None where no group has two pictures of one label.

    Args:
        predictions: with the scores of all labels.
    """
    parts: dict[str, list[Prediction]] = {}
    for p in predictions:
        parts.setdefault(group_of(p.image) or f"\\0{p.image}", []).append(p)
    several = [part for part in parts.values() if len(part) > 1]
    pure = [part for part in several if len({p.label for p in part}) == 1]
    if not pure:
        return None
    together = np.array([_answer(part) == part[0].label for part in pure])
    counts, singles = (
        np.array([len(part) for part in pure]),
        np.array([sum(p.right for p in part) for part in pure]),
    )
    shares = singles / counts
    return Grouped(
        len(pure),
        int(counts.sum()),
        int(together.sum()),
        float(together.mean()),
        wilson_interval(int(together.sum()), len(pure)),
        float(singles.sum() / counts.sum()),
        bootstrap_interval(len(pure), lambda rows: float(singles[rows].sum() / counts[rows].sum())),
        float((together - shares).mean()),
        bootstrap_interval(len(pure), lambda rows: float((together - shares)[rows].mean())),
        len(several) - len(pure),
        len(parts) - len(several),
    )


def _answer(part: Sequence[Prediction]) -> str:
    members = [Member(p.image, p.scores if p.predicted else (), p.error, p.in_guide, p.sha256) for p in part]
    return pool("", members).label
