"""What answers depend on besides the picture: the order of the labels, the words of the question, habits.

    fieldguide evaluate fish.guide --audit

Order: the labels are given backwards and shuffled. Words: the question is put in other words, and with one of
the labels as an example, which draws answers to itself where a model takes it for a hint (Zhao et al. 2021).
Habits: what pictures without content are called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fieldguide.answer.heat import Answering, small
from fieldguide.errors import DataError, PictureError
from fieldguide.images import load_picture
from fieldguide.progress import progress_bar
from fieldguide.report.intervals import Interval, wilson_interval

PICTURES = 40
AT_ONCE = 16
REPHRASED = (
    "What does this picture show?",
    "Name what you see here.",
    "Which one is it?",
)
SIDE = 224

Ask = Callable[[str], Answering]  # a question → what asks it


@dataclass(frozen=True)
class Changed:
    """How many labels change under something that should change none."""

    what: str
    changed: int
    share: float
    interval: Interval  # Wilson
    difference: float  # largest change of a label's probability
    towards: int = 0  # of the changed, those that now give the label named as an example


@dataclass(frozen=True)
class Blank:
    """What a picture without content is called."""

    what: str
    label: str
    probability: float
    evenness: float  # entropy as a share of the largest there can be: 1 when all labels are alike


@dataclass(frozen=True)
class Audit:
    """All of it."""

    pictures: int
    order: tuple[Changed, ...]
    words: tuple[Changed, ...]  # none: the model is asked no question
    blanks: tuple[Blank, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def in_words(self) -> list[str]:
        """A line each."""
        lines = [
            f"{one.what}: {one.changed} of {self.pictures} labels change"
            for one in (*self.order, *self.words)
        ]
        habits = ", ".join(f"{one.what} {one.label} {one.probability:.0%}" for one in self.blanks)
        return [*lines, f"pictures without content: {habits}"]


def audit(
    answering: Answering,
    labels: Sequence[str],
    pictures: Sequence[Path],
    most: int = PICTURES,
) -> Audit:
    """Try what should change no label.

    Args:
        answering: a guide, or a model that runs here; one that is asked a question has `question`, and
            `asking` to put another.
        labels: all that it chooses among.
        pictures: of which some are drawn, always the same ones; those that cannot be read are passed over.
        most: pictures tried.

    Raises:
        DataError: when there are fewer than two labels or no picture can be read.
    """
    if len(labels) < 2:
        raise DataError("an audit needs at least two labels to choose among")
    question: str = getattr(answering, "question", "")
    ask: Ask | None = getattr(answering, "asking", None)
    images = _some(pictures, most)
    if not images:
        raise DataError(f"none of the {len(pictures)} pictures can be read", "name others")
    with progress_bar() as bar:
        task = bar.add_task("Auditing", total=3 + (len(REPHRASED) + 3 if ask else 0))

        def scores(asked: Answering, order: Sequence[str]) -> np.ndarray:
            """(B, R), the columns always in the order of `labels`."""
            parts = [images[i : i + AT_ONCE] for i in range(0, len(images), AT_ONCE)]
            found = np.concatenate([asked.label_scores(part, order) for part in parts])
            bar.advance(task)
            return found[:, [list(order).index(label) for label in labels]]

        usual = scores(answering, labels)
        shuffled = [labels[i] for i in np.random.default_rng(0).permutation(len(labels))]
        order = tuple(
            _changed(what, usual, scores(answering, way), labels)
            for what, way in (("labels backwards", labels[::-1]), ("labels shuffled", shuffled))
        )
        words: list[Changed] = []
        if ask is not None:
            words += [
                _changed(f"“{other}”", usual, scores(ask(other), labels), labels) for other in REPHRASED
            ]
            for example in dict.fromkeys((labels[0], labels[len(labels) // 2], labels[-1])):
                hinted = ask(f"{question} For example: {example}.")
                words.append(
                    _changed(f"“For example: {example}.”", usual, scores(hinted, labels), labels, example)
                )
    blanks = _blanks(answering, labels)
    return Audit(len(images), order, tuple(words), blanks)


def _some(pictures: Sequence[Path], most: int) -> list[Image.Image]:
    found: list[Image.Image] = []
    for number in np.random.default_rng(0).permutation(len(pictures)):
        if len(found) == most:
            break
        try:
            found.append(small(load_picture(pictures[number]).image))
        except PictureError:
            continue
    return found


def _changed(
    what: str, usual: np.ndarray, now: np.ndarray, labels: Sequence[str], example: str = ""
) -> Changed:
    before, after = usual.argmax(1), now.argmax(1)
    changed = before != after
    towards = changed & (after == list(labels).index(example)) if example else np.zeros(len(changed), bool)
    count = int(changed.sum())
    share = count / len(changed)
    gap = float(np.abs(np.exp(now) - np.exp(usual)).max())
    return Changed(what, count, share, wilson_interval(count, len(changed)), gap, int(towards.sum()))


def _blanks(answering: Answering, labels: Sequence[str]) -> tuple[Blank, ...]:
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    shown = {
        "black": Image.new("RGB", (SIDE, SIDE)),
        "grey": Image.new("RGB", (SIDE, SIDE), (128, 128, 128)),
        "white": Image.new("RGB", (SIDE, SIDE), (255, 255, 255)),
        "noise": Image.fromarray(noise),
    }
    found = []
    for (what, _), row in zip(
        shown.items(), answering.label_scores(list(shown.values()), labels), strict=True
    ):
        p = np.exp(row - np.logaddexp.reduce(row))
        entropy = float(-(p * np.log(np.maximum(p, 1e-300))).sum() / np.log(len(labels)))
        found.append(Blank(what, labels[int(p.argmax())], float(p.max()), entropy))
    return tuple(found)
