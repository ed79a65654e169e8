"""Unknown pictures look novel, known ones do not, and the p-values of the latter are what they claim."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from scipy.stats import binom
from sklearn.metrics import roc_auc_score

from fieldguide.answer import crossfit, novelty
from fieldguide.answer.crossfit import fit_novelty, spread_over_labels
from fieldguide.answer.novelty import Novelty, fit_map, p_values
from fieldguide.errors import GuideError

POOLED = 15  # of the features, the last ones


def clusters(labels: int, each: int, seed: int = 0, features: int = 40, noise: float = 1.0) -> tuple:
    """(n, F) features around `labels` centres that depend on nothing but their number; (n,) targets."""
    centres = 2 * np.random.default_rng(99).normal(size=(12, features))[:labels]
    targets = np.repeat(np.arange(labels), each)
    random = np.random.default_rng(seed)
    drawn = centres[targets] + noise * random.normal(size=(len(targets), features))
    return drawn.astype(np.float32), targets


def fitted(labels: int = 5, each: int = 20) -> tuple[Novelty, dict]:
    features, targets = clusters(labels, each)
    found = fit_novelty(
        features, targets, labels, np.arange(len(targets)), clusters(labels, 4, seed=1)[0], POOLED
    )
    assert found is not None
    return found


def test_a_label_never_seen_is_told_from_those_known() -> None:
    model, record = fitted()
    usual, strange = clusters(5, 40, seed=2)[0], clusters(6, 40, seed=3)[0][-40:]
    scores = model.score(np.concatenate([strange, usual]))
    assert roc_auc_score(np.arange(len(scores)) < 40, scores) > 0.95
    assert (model.familiarity(strange) <= 0.05).mean() > 0.5
    assert record["auroc"] > 0.9
    assert record["held_out_labels"] == 5
    assert record["known"] == 5 * 20 + 5 * 4


@pytest.mark.parametrize("part", range(4))
def test_each_measure_alone_ranks_unknown_above_known(part: int) -> None:
    model, _ = fitted()
    usual, strange = clusters(5, 40, seed=2)[0], clusters(6, 40, seed=3)[0][-40:]
    measures = model.map.components(np.concatenate([strange, usual]))[:, part]
    assert roc_auc_score(np.arange(len(measures)) < 40, measures) > 0.8


def test_pictures_of_quite_another_kind_are_refused() -> None:
    random = np.random.default_rng(0)
    features, targets = clusters(4, 30)
    features[:, -POOLED:] = np.abs(random.normal(5, 0.5, (120, POOLED)))
    features[:, -3:] = 0
    nothing = np.zeros((0, 40), np.float32)
    model, _ = fit_novelty(features, targets, 4, np.arange(120), nothing, POOLED)
    far = features[:40].copy()
    far[:, -POOLED:-3], far[:, -3:] = 0.2, 5
    assert (model.familiarity(far) <= 0.05).all()
    assert (model.familiarity(features[:40]) <= 0.05).mean() < 0.1


def test_the_distance_counts_only_beyond_its_usual_spread() -> None:
    measures = np.array([[1, 1, 1, 0.9], [1, 1, 1, -5], [1, 1, 1, 3]], float)
    assert novelty.combine(measures, np.zeros(4), np.ones(4)).tolist() == [3, 3, 3 + 2 * 2]


def test_of_known_pictures_about_five_in_a_hundred_are_refused() -> None:
    """Cross-fitted scores come from smaller maps, so this is no exact promise: from 2% to 9%."""
    shares = []
    for seed in range(8):
        features, targets = clusters(4, 25, seed=seed)
        model, _ = fit_novelty(features, targets, 4, np.arange(100), np.zeros((0, 40), np.float32), POOLED)
        shares.append((model.familiarity(clusters(4, 100, seed=100 + seed)[0]) <= 0.05).mean())
    assert 0.02 <= np.mean(shares) <= 0.09


@settings(max_examples=200)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40), st.floats(-6, 6))
def test_p_values_count_the_known_that_are_at_least_as_novel(known: list[float], score: float) -> None:
    [p] = p_values(np.array([score]), np.sort(known))
    assert p == pytest.approx((1 + sum(k >= score for k in known)) / (1 + len(known)))
    assert 0 < p <= 1


@pytest.mark.parametrize("n", [19, 50])
def test_p_values_of_exchangeable_scores_are_valid(n: int) -> None:
    random = np.random.default_rng(n)
    draws = random.normal(size=(4000, n + 1))
    found = np.array([p_values(row[n:], np.sort(row[:n]))[0] for row in draws])
    for alpha in (0.05, 0.2, 0.5):
        assert (found <= alpha).sum() <= binom.ppf(1 - 1e-4, 4000, alpha)
        assert (found <= alpha).sum() >= binom.ppf(1e-4, 4000, alpha - 1 / (n + 1))


def test_the_file_gives_the_same_answers(tmp_path: Path) -> None:
    model, _ = fitted()
    model.save(tmp_path / "novelty.safetensors")
    asked = clusters(6, 10, seed=5)[0]
    back = Novelty.load(tmp_path / "novelty.safetensors")
    np.testing.assert_allclose(back.score(asked), model.score(asked), atol=0.02)
    np.testing.assert_array_equal(back.known, model.known)


def test_another_file_and_other_features_are_refused(tmp_path: Path) -> None:
    save_file({"mean": np.zeros(3, np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(GuideError, match="not the novelty of a guide"):
        Novelty.load(tmp_path / "x.safetensors")
    with pytest.raises(GuideError, match="told from 40 numbers"):
        fitted()[0].score(np.zeros((2, 39), np.float32))


def test_answers_do_not_depend_on_what_is_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = fitted()
    asked = clusters(6, 10, seed=5)[0]
    whole = model.score(asked)
    monkeypatch.setattr(novelty, "ROWS_AT_ONCE", 7)
    np.testing.assert_allclose(model.score(asked), whole, atol=1e-4)
    np.testing.assert_allclose(np.concatenate([model.score(row[None]) for row in asked]), whole, atol=1e-4)
    assert model.score(asked[:0]).shape == (0,)


def test_dead_features_and_strength_say_nothing() -> None:
    features, targets = clusters(4, 20)
    dead = np.concatenate([np.full((len(features), 3), 7, np.float32), features], axis=1)
    asked = np.concatenate([np.full((20, 3), 7 + 1e-4, np.float32), clusters(4, 5, seed=4)[0]], axis=1)
    groups = np.arange(len(targets))
    plain = fit_map(features, targets, 4, groups, POOLED).components(asked[:, 3:])
    np.testing.assert_allclose(
        fit_map(dead, targets, 4, groups, POOLED).components(asked), plain, rtol=0.05, atol=0.05
    )


def test_near_duplicates_do_not_vouch_for_each_other() -> None:
    """Every picture five times over: left out together, they are as novel as a single picture."""
    single, targets = clusters(4, 12)
    random = np.random.default_rng(3)
    copies = np.repeat(single, 5, axis=0) + 0.01 * random.normal(size=(240, 40)).astype(np.float32)
    many, groups = np.repeat(targets, 5), np.repeat(np.arange(48), 5)
    nothing = np.zeros((0, 40), np.float32)
    together, _ = fit_novelty(copies, many, 4, groups, nothing, POOLED)
    apart, _ = fit_novelty(copies, many, 4, np.arange(240), nothing, POOLED)
    fresh = clusters(4, 100, seed=8)[0]
    assert (together.familiarity(fresh) <= 0.05).mean() < 0.12
    assert (apart.familiarity(fresh) <= 0.05).mean() > 0.5


@pytest.mark.parametrize(
    ("labels", "each", "groups"), [(1, 40, None), (2, 5, None), (3, 10, 1)], ids=["one", "few", "one group"]
)
def test_too_little_to_tell_by_gives_nothing(labels: int, each: int, groups: int | None) -> None:
    features, targets = clusters(labels, each)
    numbers = np.arange(len(targets)) if groups is None else np.zeros(len(targets), np.int64)
    assert fit_novelty(features, targets, labels, numbers, np.zeros((0, 40), np.float32), POOLED) is None


def test_two_labels_are_enough_and_labels_of_one_picture_are_no_hindrance() -> None:
    features, targets = clusters(2, 15)
    found = fit_novelty(features, targets, 2, np.arange(30), np.zeros((0, 40), np.float32), POOLED)
    assert found is not None
    assert found[1]["auroc"] is None
    assert found[1]["validation_kept"] is None
    features, targets = clusters(5, 10)
    kept = np.flatnonzero((targets != 4) | (np.arange(50) == 49))  # one picture of the last label
    found = fit_novelty(
        features[kept], targets[kept], 5, np.arange(len(kept)), np.zeros((0, 40), np.float32), POOLED
    )
    assert found is not None
    assert found[1]["known"] == 40  # that picture has no score: without it its label is not known


@settings(max_examples=50)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 40))
def test_a_bounded_number_of_pictures_is_spread_over_the_labels(labels: list[int], most: int) -> None:
    targets = np.array(labels)
    chosen = spread_over_labels(targets, most)
    assert len(chosen) == min(most, len(targets)) == len(set(chosen.tolist()))
    counts = np.bincount(targets[chosen], minlength=5)
    for label in range(5):
        there = int((targets == label).sum())
        assert counts[label] == there or counts[label] >= counts.max() - 1


def test_many_pictures_take_fewer_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crossfit, "MANY", 50)
    targets = np.repeat(np.arange(3), 30)
    assert crossfit._folds(targets, np.arange(90)).max() + 1 == crossfit.FEW_FOLDS
    monkeypatch.setattr(crossfit, "MANY", 1000)
    assert crossfit._folds(targets, np.arange(90)).max() + 1 == crossfit.FOLDS
