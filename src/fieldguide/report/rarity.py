"""How well rare labels are found beside common ones: the mean over pictures hides them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fieldguide.report.evaluation import Prediction
from fieldguide.report.intervals import Interval, wilson_interval

BANDS = ((1, 10), (11, 30), (31, 100), (101, None))  # training pictures of a label, both ends included


@dataclass(frozen=True)
class Band:
    """Labels with about as many training pictures."""

    low: int
    high: int | None
    labels: int
    pictures: int  # evaluated
    right: int
    recall: float  # share of these pictures that were named right
    interval: Interval  # Wilson, over pictures

    @property
    def name(self) -> str:
        return f"{self.low} to {self.high}" if self.high is not None else f"{self.low} or more"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def by_rarity(predictions: Sequence[Prediction], taught: Mapping[str, int]) -> tuple[Band, ...]:
    """Recall by the number of training pictures; () where all labels fall into one band.

    Args:
        predictions: of labels never taught are left out.
        taught: training pictures of each label.
    """
    found = []
    for low, high in BANDS:
        inside = [p for p in predictions if low <= taught.get(p.label, 0) <= (high or taught.get(p.label, 0))]
        if not inside:
            continue
        right = sum(p.right for p in inside)
        labels = len({p.label for p in inside})
        found.append(
            Band(
                low,
                high,
                labels,
                len(inside),
                right,
                right / len(inside),
                wilson_interval(right, len(inside)),
            )
        )
    return tuple(found) if len(found) > 1 else ()


def counts_of(rows: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """Training pictures of each label, from what a guide has seen."""
    return Counter(str(row["label"]) for row in rows if row.get("split") == "train" and row.get("label"))
