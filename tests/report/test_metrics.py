import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

from fieldguide.errors import DataError
from fieldguide.report.metrics import calibrate_check, compute_metrics, mcnemar, wilson_interval

pairs = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from(["a", "b", "c", "d", "zebra", ""])), min_size=1
)


@given(pairs)
def test_agrees_with_scikit_learn_on_any_answers(rows):
    actual, predicted = zip(*rows, strict=True)
    metrics = compute_metrics(actual, predicted, resamples=20)
    labels = sorted(set(actual))
    expected = precision_recall_fscore_support(actual, predicted, labels=labels, zero_division=0)
    for index, score in enumerate(metrics.classes):
        assert score.label == labels[index]
        assert (score.precision, score.recall, score.f1) == pytest.approx(
            [expected[k][index] for k in range(3)]
        )
        assert score.support == expected[3][index]
    for name in ("macro", "weighted"):
        wanted = precision_recall_fscore_support(
            actual, predicted, labels=labels, average=name, zero_division=0
        )
        average = getattr(metrics, name)
        assert (average.precision, average.recall, average.f1) == pytest.approx(wanted[:3])
    size = len(labels)
    inside = np.array(metrics.confusion)[:, :size]
    kept = [(a, p) for a, p in rows if p in labels]
    wanted_matrix = (
        confusion_matrix(*zip(*kept, strict=True), labels=labels) if kept else np.zeros((size, size), int)
    )
    assert (inside == wanted_matrix).all()
    assert np.array(metrics.confusion).sum() == len(rows), "no row may be dropped"


def test_no_answer_and_off_list_count_as_wrong_and_are_listed():
    metrics = compute_metrics(["cat", "cat", "dog", "dog"], ["cat", "", "tiger", "dog"])
    assert (metrics.correct, metrics.count, metrics.accuracy) == (2, 4, 0.5)
    assert metrics.unanswered == 1
    assert metrics.off_list == {"tiger": 1}
    assert metrics.confusion_columns == ("cat", "dog", "(other answer)", "(no answer)")
    assert metrics.confusion == ((1, 0, 0, 1), (0, 1, 1, 0))


def test_known_label_without_pictures_is_a_row_but_not_part_of_the_averages():
    metrics = compute_metrics(["cat", "dog"], ["cat", "fox"], labels=["cat", "dog", "fox"])
    assert [score.label for score in metrics.classes] == ["cat", "dog", "fox"]
    assert metrics.off_list == {}
    assert metrics.macro.recall == pytest.approx(0.5)


def test_wilson_interval_is_the_textbook_one():
    interval = wilson_interval(8, 10)  # R: binom::binom.wilson(8, 10)
    assert (interval.low, interval.high) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert wilson_interval(0, 20).low == 0.0
    assert wilson_interval(20, 20).high == 1.0


def test_bootstrap_interval_agrees_with_resampling_the_rows():
    random = np.random.default_rng(1)
    actual = random.choice(list("abc"), 150)
    predicted = np.where(random.random(150) < 0.7, actual, random.choice(list("abc"), 150))
    metrics = compute_metrics(list(actual), list(predicted), resamples=2000)
    drawn = []
    for _ in range(2000):
        rows = random.integers(0, 150, 150)
        drawn.append(f1_score(actual[rows], predicted[rows], average="macro"))
    low, high = np.quantile(drawn, (0.025, 0.975))
    assert metrics.macro_f1_interval.low == pytest.approx(low, abs=0.015)
    assert metrics.macro_f1_interval.high == pytest.approx(high, abs=0.015)
    assert metrics.macro_f1_interval.low < metrics.macro.f1 < metrics.macro_f1_interval.high


def test_calibration_of_known_cases():
    sure_and_right = calibrate_check(np.ones(5), np.ones(5, bool))
    assert (sure_and_right.ece, sure_and_right.brier) == (0, 0)
    sure_and_wrong = calibrate_check(np.ones(5), np.zeros(5, bool))
    assert (sure_and_wrong.ece, sure_and_wrong.brier) == (1, 1)
    half = calibrate_check(np.full(4, 0.75), np.array([True, True, True, False]))
    assert half.ece == pytest.approx(0)
    assert half.brier == pytest.approx((3 * 0.0625 + 0.5625) / 4)
    assert sum(b.count for b in half.bins) == 4


def test_confidence_of_unanswered_rows_is_left_out():
    metrics = compute_metrics(["a", "b", "a"], ["a", "", "b"], confidence=[0.9, 0.0, None])
    assert metrics.calibration is not None
    assert metrics.calibration.count == 1
    assert compute_metrics(["a"], ["a"]).calibration is None
    with pytest.raises(DataError, match="0 to 1"):
        compute_metrics(["a"], ["a"], confidence=[1.5])


def test_breakdown_by_source():
    metrics = compute_metrics(["a", "b", "a"], ["a", "a", "a"], sources=["north", "north", "south"])
    assert [(s.source, s.count, s.correct) for s in metrics.sources] == [("north", 2, 1), ("south", 1, 1)]
    assert compute_metrics(["a"], ["a"], sources=["north"]).sources == ()


def test_mcnemar_exact():
    first = [True] * 9 + [False] + [True] * 5
    second = [False] * 9 + [True] + [True] * 5
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == (9, 1)
    assert found.p == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar([True], [True]).p == 1.0


def test_many_labels_stay_within_memory_and_json_is_plain():
    random = np.random.default_rng(0)
    labels = [f"species {i}" for i in range(800)]
    actual = [*labels, *random.choice(labels, 2000)]
    metrics = compute_metrics(actual, [str(x) for x in random.permutation(actual)], resamples=200)
    assert not math.isnan(metrics.macro_f1_interval.low)
    assert json.loads(json.dumps(metrics.to_dict()))["count"] == 2800


@pytest.mark.parametrize(("actual", "predicted"), [([], []), (["a"], ["a", "b"]), ([""], ["a"])])
def test_refuses_what_cannot_be_scored(actual, predicted):
    with pytest.raises(DataError):
        compute_metrics(actual, predicted)
