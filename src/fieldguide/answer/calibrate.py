"""Fits the temperature that makes stated probabilities true (Guo et al. 2017), on validation pictures.

Thirty validation pictures hardly tell a temperature. The starter's training pictures count too, as far as
they can: what the language model reads of a picture is its evidence for each label, and in calibration, as in
training, that of a ridge map solved without the picture. On digits and galaxies that came nearer to the best
temperature of the test pictures than the validation pictures alone.

Only the branches on the way to the right label matter for its likelihood, and along them the negative
log-likelihood is convex in 1/temperature: one bounded search finds the best.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from fieldguide.answer.choose import choose, parts, search
from fieldguide.answer.conformal import conformal_scores
from fieldguide.answer.forest import Forest
from fieldguide.answer.trie import LabelTrie
from fieldguide.errors import GuideError
from fieldguide.model.local import LocalModel, Pictures, Started

LOWEST, HIGHEST = 0.25, 10.0
FEWEST = 20  # pictures; fewer cannot tell a temperature
BINS = 10  # of the calibration error


@dataclass(frozen=True)
class Calibration:
    """A temperature, and what it does on the pictures it was fitted on."""

    temperature: float
    pictures: int
    nll_before: float  # mean negative log-likelihood of the right label, in nats
    nll_after: float
    ece_before: float  # expected calibration error of the first answer, in [0, 1]
    ece_after: float
    note: str = ""  # why the temperature was left at 1, "" when it was fitted
    conformal_scores: tuple[float, ...] = ()  # see `answer/conformal.py`
    left_out: int = 0  # training pictures, with left-out evidence, that the temperature was also fitted on

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Decision:
    """One branch on the way to one picture's right label."""

    logits: Tensor  # of the tokens allowed there
    right: int


def calibrate(
    model: LocalModel,
    question: str,
    pictures: Pictures,
    labels: Sequence[str],
    trie: LabelTrie,
    *,
    left_out: tuple[Pictures, Sequence[str]] | None = None,
    batch_size: int = 16,
) -> Calibration:
    """Fit the temperature for `choose` on N validation pictures.

    Args:
        pictures: N of them, none of which trained the model.
        labels: their N right labels, all of them in the trie.
        left_out: further pictures and their labels, as the model would see them had they not trained it. The
            temperature is fitted on these too; all other figures are of the validation pictures alone.

    Raises:
        GuideError: when a label is not in the trie.
    """
    numbers = {label: number for number, label in enumerate(trie.labels)}
    if unknown := sorted({label for label in labels if label not in numbers}):
        raise GuideError(
            f"validation pictures have labels that the guide does not know: {', '.join(unknown)}"
        )

    def decide(shown: Pictures, wanted: Sequence[str]) -> list[_Decision]:
        found: list[_Decision] = []
        for part, names in _batches(shown, wanted, batch_size):
            started = model.start(question, part)
            found += _decisions(model, started, [numbers[name] for name in names], trie)
        return found

    decisions = decide(pictures, labels)
    more = decide(*left_out) if left_out is not None else []
    extra = len(left_out[1]) if left_out is not None else 0
    steps = [len(trie.routes[numbers[label]]) for label in labels]
    count, note = len(labels), ""
    if count + extra < FEWEST:
        temperature = 1.0
        note = f"left as it is: only {count} validation pictures, {FEWEST} are needed"
    elif not decisions and not more:
        temperature, note = 1.0, "there is only one label"
    else:
        temperature = fit_temperature([(decision.logits, decision.right) for decision in (*decisions, *more)])
    before = _calibration_error(model, question, pictures, labels, trie, 1.0, batch_size)
    after = before
    if temperature != 1:
        after = _calibration_error(model, question, pictures, labels, trie, temperature, batch_size)
    return Calibration(
        temperature,
        count,
        _nll(decisions, 1.0) / max(1, count),
        _nll(decisions, temperature) / max(1, count),
        before,
        after,
        note,
        tuple(conformal_scores(_right_probabilities(decisions, steps, temperature))),
        extra,
    )


def measure(
    model: LocalModel,
    question: str,
    pictures: Pictures,
    labels: Sequence[str],
    trie: LabelTrie,
    *,
    batch_size: int = 16,
) -> tuple[float, float]:
    """Mean negative log-likelihood of the right label (nats) and accuracy, at temperature 1.

    Reads only the branches on the way to the right and to the chosen label: quick with many labels too.
    """
    numbers = {label: number for number, label in enumerate(trie.labels)}
    loss, right = 0.0, 0
    for part, names in _batches(pictures, labels, batch_size):
        started = model.start(question, part)
        loss += _nll(list(_decisions(model, started, [numbers[name] for name in names], trie)), 1.0)
        answers = search(model, started, trie, top_k=1)
        right += sum(scores[0].label == name for scores, name in zip(answers, names, strict=True))
    return loss / len(labels), right / len(labels)


def fit_temperature(decisions: Sequence[tuple[Tensor, int]]) -> float:
    """The temperature of the least negative log-likelihood, within [0.25, 10].

    Args:
        decisions: for each decision the logits of what was allowed, and the place of what was right.
    """
    recorded = [_Decision(logits, right) for logits, right in decisions]
    # In terms of 1/temperature the sum is convex: one minimum.
    found = minimize_scalar(
        lambda sharpness: _nll(recorded, 1 / sharpness), bounds=(1 / HIGHEST, 1 / LOWEST), method="bounded",
        options={"xatol": 1e-4},
    )  # fmt: skip
    return float(np.clip(1 / found.x, LOWEST, HIGHEST))


def expected_calibration_error(confidence: Sequence[float], right: Sequence[bool]) -> float:
    """Mean distance between stated probability and share of right answers, over bins of equal width."""
    stated, true = np.asarray(confidence, dtype=float), np.asarray(right, dtype=float)
    if not len(stated):
        return 0.0
    place = np.minimum((stated * BINS).astype(int), BINS - 1)
    gaps = (abs(stated[place == b].sum() - true[place == b].sum()) for b in range(BINS))
    return float(sum(gaps) / len(stated))


def _batches(
    pictures: Pictures, labels: Sequence[str], size: int
) -> Iterator[tuple[Pictures, Sequence[str]]]:
    for first in range(0, len(labels), size):
        rows = slice(first, first + size)
        yield pictures.rows(rows), labels[rows]


@torch.no_grad()
def _decisions(
    model: LocalModel, started: Started, numbers: Sequence[int], trie: LabelTrie
) -> Iterator[_Decision]:
    """The decisions on the way to the right label of each picture of a batch."""
    right = iter(numbers)
    for part in parts(started):
        taken = [(row, *step) for row in range(len(part)) for step in trie.routes[next(right)]]
        branches = [trie.branches[number] for _, number, _ in taken]
        wanted = [(row, branch.path) for (row, _, _), branch in zip(taken, branches, strict=True)]
        logits = Forest(model, part).logits(wanted, [branch.tokens for branch in branches])
        yield from (_Decision(values, place) for values, (_, _, place) in zip(logits, taken, strict=True))


def _nll(decisions: Sequence[_Decision], temperature: float) -> float:
    """Negative log-likelihood, in nats, summed over the decisions."""
    return sum(
        float((one.logits / temperature).logsumexp(0) - one.logits[one.right] / temperature)
        for one in decisions
    )


def _right_probabilities(
    decisions: Sequence[_Decision], steps: Sequence[int], temperature: float
) -> list[float]:
    """Probability of each picture's right label: the product over the decisions that lead to it.

    Args:
        decisions: picture after picture.
        steps: how many of them belong to each picture.
    """
    each = iter(_nll([decision], temperature) for decision in decisions)
    return [math.exp(-sum(next(each) for _ in range(count))) for count in steps]


def _calibration_error(
    model: LocalModel,
    question: str,
    pictures: Pictures,
    labels: Sequence[str],
    trie: LabelTrie,
    temperature: float,
    batch_size: int,
) -> float:
    confidence: list[float] = []
    right: list[bool] = []
    for part, names in _batches(pictures, labels, batch_size):
        answers = choose(model, question, part, trie, top_k=1, temperature=temperature)
        # `choose` gives every label a probability; only models behind servers may tell none.
        confidence += [cast(float, scores[0].probability) for scores in answers]
        right += [scores[0].label == name for scores, name in zip(answers, names, strict=True)]
    return expected_calibration_error(confidence, right)
