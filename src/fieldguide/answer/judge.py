"""From the scores of a picture's labels to an answer that says how far it can be believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fieldguide.answer.conformal import labels_needed, least_probability, prediction_set
from fieldguide.answer.novelty import NOVELTY_FILE, Novelty
from fieldguide.records import Answer, LabelScore
from fieldguide.settings import AnswerSettings


@dataclass(frozen=True)
class Judge:
    """What a guide says beside the label: whether the picture is in it at all, and the set of labels."""

    novelty: Novelty | None  # None: made by an older version, too few pictures, or not wanted
    keep: float
    coverage: float  # 0: the best few instead of a set
    least: float  # probability from which on a label is in the set
    count: int  # labels of the guide

    @classmethod
    def of(cls, folder: Path, info: Mapping[str, Any], settings: AnswerSettings, count: int) -> Judge:
        """What a guide keeps, and what its settings ask of it."""
        told = settings.abstain and NOVELTY_FILE in info["files"]
        coverage = settings.coverage if count else 0.0
        scores = info["calibration"].get("conformal_scores", ())  # none: all labels are in every set
        return cls(
            Novelty.load(folder / NOVELTY_FILE) if told else None,
            settings.keep,
            coverage,
            least_probability(scores, coverage) if coverage else 0.0,
            count,
        )

    def labels_read(self, top_k: int) -> int:
        """How many labels must be scored: for a set all that can be in it."""
        return labels_needed(self.least, self.count) if self.coverage else top_k

    def answer(self, image: str, scores: Sequence[LabelScore], familiarity: float | None) -> Answer:
        """The answer to one picture.

        Args:
            scores: best first, as many as `labels_read`.
            familiarity: share of known pictures that look at least as novel; None where it is not told.
        """
        return Answer(
            image,
            scores[0].label,
            scores[0].probability,
            prediction_set(scores, self.least) if self.coverage else tuple(scores),
            familiarity=familiarity,
            # Of known pictures at most 1 − keep are this unfamiliar; the slack is for 1 − 0.95 > 0.05.
            in_guide=None if familiarity is None else familiarity > 1 - self.keep + 1e-9,
            coverage=self.coverage or None,
        )
