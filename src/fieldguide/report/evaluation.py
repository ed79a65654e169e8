"""What an evaluation found: the record behind the report page, `metrics.json` and `predictions.parquet`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fieldguide.records import LabelScore
from fieldguide.report.audit import Audit
from fieldguide.report.baselines import BaselineResult
from fieldguide.report.deletion import DeletionTest
from fieldguide.report.leaks import Overlap
from fieldguide.report.metrics import McNemar, Metrics
from fieldguide.report.selective import Selective


@dataclass(frozen=True)
class Prediction:
    """One evaluated picture: the truth and the guide's answer."""

    id: str  # the example's: its path in the source, which is how reports name it
    image: str  # its path relative to the data set folder
    path: Path  # where it lies
    sha256: str
    label: str  # the truth
    predicted: str  # "" when there is no answer
    probability: float | None  # None where the model tells none
    scores: tuple[LabelScore, ...]  # best first
    text: str  # the sentence that says why, if one was asked for
    error: str  # why there is no answer
    source: str
    off_list: bool = False  # answered with none of the labels, or with several
    familiarity: float | None = None  # None: the guide does not tell
    in_guide: bool | None = None

    @property
    def right(self) -> bool:
        return self.predicted == self.label

    def to_dict(self) -> dict[str, Any]:
        """One row of predictions.parquet."""
        return {
            "id": self.id,
            "image": self.image,
            "sha256": self.sha256,
            "label": self.label,
            "predicted": self.predicted,
            "probability": self.probability,
            "right": self.right,
            "top_labels": [score.label for score in self.scores],
            "top_probabilities": [score.probability for score in self.scores],
            "text": self.text,
            "error": self.error,
            "source": self.source,
            "off_list": self.off_list,
            "familiarity": self.familiarity,
            "in_guide": self.in_guide,
        }


@dataclass(frozen=True)
class Timing:
    """How long answering took: everything from file to label, except features that were cached."""

    seconds: float
    pictures: int
    machine: str

    @property
    def pictures_per_second(self) -> float:
        return self.pictures / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class Evaluation:
    """One guide on one split of one data set."""

    title: str
    split: str
    labels: tuple[str, ...]  # those the guide can answer
    metrics: Metrics
    baselines: tuple[BaselineResult, ...]
    comparison: McNemar | None  # the guide (first) against the best baseline (second)
    predictions: tuple[Prediction, ...]
    timing: Timing
    unlabelled: int  # pictures of the split without a label, not evaluated
    unknown_labels: dict[str, int]  # true labels the guide was never taught, and their pictures
    overlap: tuple[Overlap, ...]  # evaluated pictures the guide has seen; empty unless forced
    guide_info: dict[str, Any]  # guide.json
    dataset_info: dict[str, Any]  # dataset.json
    facts: dict[str, Any]  # counts by split, problems by kind, versions, date
    folder: Path | None = None  # where the report lies
    steps: tuple[dict[str, Any], ...] = ()  # the log of the training, if it is there
    selective: Selective | None = None  # how far single answers can be believed
    grouped: Any = (
        None  # `report.grouped.Grouped`: pictures of one thing answered as one; None: not asked for
    )
    rarity: tuple[Any, ...] = ()  # `report.rarity.Band`: recall by the number of training pictures
    audit: Audit | None = None  # what answers depend on besides the picture; None: not asked for
    deletion: DeletionTest | None = None  # whether heat maps mean something; None: not tried

    @property
    def best_baseline(self) -> BaselineResult | None:
        """The most accurate baseline; the first of equals."""
        return max(self.baselines, key=lambda result: result.metrics.accuracy, default=None)

    @property
    def baseline_wins(self) -> bool:
        best = self.best_baseline
        return best is not None and best.metrics.accuracy > self.metrics.accuracy

    def to_dict(self) -> dict[str, Any]:
        """The content of metrics.json."""
        best = self.best_baseline
        return {
            "title": self.title,
            "split": self.split,
            "labels": list(self.labels),
            "guide": self.metrics.to_dict(),
            "selective": self.selective.to_dict() if self.selective else None,
            "rarity": [band.to_dict() for band in self.rarity],
            "audit": self.audit.to_dict() if self.audit else None,
            "grouped": self.grouped.to_dict() if self.grouped else None,
            "deletion_test": self.deletion.to_dict() if self.deletion else None,
            "baselines": [result.to_dict() for result in self.baselines],
            "best_baseline": best.name if best else None,
            "baseline_wins": self.baseline_wins,
            "mcnemar": dataclasses.asdict(self.comparison) if self.comparison else None,
            "timing": {
                **dataclasses.asdict(self.timing),
                "pictures_per_second": self.timing.pictures_per_second,
            },
            "unlabelled": self.unlabelled,
            "unknown_labels": self.unknown_labels,
            "overlap": [dataclasses.asdict(found) for found in self.overlap],
            "dataset_fingerprint": self.dataset_info.get("fingerprint", ""),
            "facts": self.facts,
        }
