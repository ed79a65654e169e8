"""Conformal sets cover as often as asked, grow with what is asked, and say when they cannot tell."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from fieldguide.answer.conformal import conformal_scores, labels_needed, least_probability, prediction_set
from fieldguide.records import LabelScore

ROUNDS = 2000


def probabilities(random: np.random.Generator, count: int, labels: int, sharp: float) -> np.ndarray:
    raised = np.exp(sharp * random.normal(size=(count, labels)))
    return raised / raised.sum(1, keepdims=True)


def scored(row: np.ndarray) -> list[LabelScore]:
    return [LabelScore(str(label), float(row[label])) for label in np.argsort(-row, kind="stable")]


@pytest.mark.parametrize(("n", "asked"), [(19, 0.9), (40, 0.8), (100, 0.95), (9, 0.9)])
@pytest.mark.parametrize("honest", [True, False])
def test_coverage_is_that_asked(n: int, asked: float, honest: bool) -> None:
    """Each round draws validation pictures and one new one: exactly what the promise is about."""
    random, covered = np.random.default_rng(n), 0
    for _ in range(ROUNDS):
        stated = probabilities(random, n + 1, 4, 2.0)
        true = stated if honest else probabilities(random, n + 1, 4, 0.5)  # worthless probabilities too
        drawn = (true.cumsum(1) < random.random((n + 1, 1))).sum(1).clip(max=3)
        least = least_probability(conformal_scores(stated[np.arange(n), drawn[:n]]), asked)
        members = prediction_set(scored(stated[n]), least)
        covered += str(drawn[n]) in {one.label for one in members}
    assert covered >= binom.ppf(1e-4, ROUNDS, asked)


def test_without_the_top_label_added_coverage_is_not_wasted() -> None:
    """Sets are no larger than they must be: with worthless probabilities they hold about the share asked."""
    random, covered = np.random.default_rng(1), 0
    for _ in range(ROUNDS):
        stated = probabilities(random, 100, 10, 1.0)
        drawn = random.integers(10, size=100)
        least = least_probability(conformal_scores(stated[np.arange(99), drawn[:99]]), 0.8)
        covered += str(drawn[99]) in {one.label for one in prediction_set(scored(stated[99]), least)}
    assert covered <= binom.ppf(1 - 1e-4, ROUNDS, 0.8 + 0.01)


@settings(max_examples=100)
@given(
    st.lists(st.floats(0, 1), max_size=60),
    st.lists(st.floats(0.001, 1), min_size=1, max_size=8),
    st.floats(0.01, 0.99),
    st.floats(0.01, 0.99),
)
def test_sets_grow_with_coverage_and_are_never_empty(
    right: list[float], raw: list[float], one: float, other: float
) -> None:
    row, known = np.array(raw) / sum(raw), conformal_scores(right)
    small, large = (
        {s.label for s in prediction_set(scored(row), least_probability(known, asked))}
        for asked in sorted((one, other))
    )
    assert small
    assert small <= large


@settings(max_examples=100)
@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=30), st.floats(0, 1))
def test_the_labels_needed_hold_the_whole_set(raw: list[float], least: float) -> None:
    row = scored(np.array(raw) / sum(raw))
    assert prediction_set(row[: labels_needed(least, len(row))], least) == prediction_set(row, least)


@pytest.mark.parametrize(("n", "asked"), [(0, 0.5), (8, 0.9), (18, 0.95)])
def test_too_few_pictures_give_all_labels(n: int, asked: float) -> None:
    known = conformal_scores([0.9] * n)
    assert least_probability(known, asked) == 0
    assert labels_needed(0.0, 7) == 7
    assert least_probability(conformal_scores([0.9] * (n + 1)), asked) == pytest.approx(0.9)


def test_the_rank_is_that_of_the_finite_sample() -> None:
    known = conformal_scores(np.linspace(0.01, 0.99, 99))  # scores 0.01 … 0.99
    assert least_probability(known, 0.9) == pytest.approx(1 - 0.90)  # the 90th of 99: (99 + 1) · 0.9
    assert least_probability(known, 0.901) == pytest.approx(1 - 0.91)


def test_a_label_at_the_bound_belongs_to_the_set() -> None:
    known = conformal_scores([0.3] * 20)
    row = [LabelScore("a", 0.7 - 1e-9), LabelScore("b", 0.3 - 1e-9)]
    assert len(prediction_set(row, least_probability(known, 0.9))) == 2


def test_labels_that_share_the_probability_at_the_bound_are_all_read() -> None:
    assert labels_needed(0.25, 9) == 4
    assert labels_needed(0.25 + 1e-9, 9) == 4  # four labels of 0.25 each, one of them the bound by rounding


def test_of_many_scores_a_part_is_kept() -> None:
    kept = conformal_scores(np.linspace(0, 1, 9001))
    assert len(kept) == 2000
    assert kept == sorted(kept)
    assert np.quantile(kept, 0.9) == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize("asked", [0.0, 1.0, -0.1])
def test_impossible_coverages_are_refused(asked: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        least_probability([0.5], asked)
