import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from fieldguide.errors import DataError
from fieldguide.report.baselines import BaselineInputs, baselines, linear_probe, nearest_neighbours


def made_features(count: int, size: int, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Pictures of `classes` labels whose features are noisy copies of the label's own direction."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, size))
    codes = np.arange(count) % classes
    x = centres[codes] + random.normal(scale=4.0, size=(count, size))
    return x.astype(np.float32), [f"label {code}" for code in codes]


@pytest.mark.parametrize("size", [400, 12])  # more features than pictures, and fewer
def test_probe_equals_the_plain_fit(size):
    train_x, train_y = made_features(60, size)
    test_x, _ = made_features(30, size, seed=1)
    train_x[:, 0] = 7  # a constant feature
    test_x[:, 0] = 7
    labels, probabilities = linear_probe(train_x, train_y, test_x)
    mean, scale = train_x.mean(axis=0, dtype=float), train_x.std(axis=0, dtype=float)
    scale[scale < 1e-12] = 1
    plain = LogisticRegression(C=0.01, max_iter=20_000, tol=1e-9).fit((train_x - mean) / scale, train_y)
    assert labels == tuple(plain.classes_)
    assert np.abs(probabilities - plain.predict_proba((test_x - mean) / scale)).max() < 2e-3
    assert np.allclose(probabilities.sum(axis=1), 1)


def test_neighbours_vote_and_the_nearest_settles_ties():
    train = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [-1, 0]])
    labels, shares = nearest_neighbours(train, ["a", "b", "c", "c", "d"], np.array([[1.0, 0.01]]), k=2)
    assert labels[shares[0].argmax()] == "a"
    labels, shares = nearest_neighbours(train, ["a", "b", "c", "c", "d"], np.array([[0.05, 1.0]]), k=3)
    assert labels[shares[0].argmax()] == "c"
    assert shares[0, labels.index("c")] == pytest.approx(2 / 3, abs=1e-5)


def inputs_for(missing: int = 0) -> tuple[BaselineInputs, list[str], list[str]]:
    train_x, train_y = made_features(90, 64)
    test_x, test_y = made_features(45, 64, seed=1)
    keys = [f"key{i}" for i in range(len(test_y))]
    kept = slice(missing, None)
    inputs = BaselineInputs(
        train_grid=train_x.reshape(90, 4, 16),
        train_pooled=train_x,
        train_labels=tuple(train_y),
        test_grid=test_x.reshape(45, 4, 16)[kept],
        test_pooled=test_x[kept],
        test_keys=tuple(keys[kept]),
    )
    return inputs, test_y, keys


def test_the_baselines_with_intervals_on_the_same_pictures():
    inputs, actual, keys = inputs_for()
    found = {result.name: result for result in baselines(inputs, actual, keys)}
    assert list(found) == ["majority class", "k-NN", "linear probe", "linear probe, all features"]
    assert found["majority class"].metrics.accuracy == pytest.approx(1 / 3)
    assert found["k-NN"].metrics.accuracy > 0.6
    assert found["linear probe"].metrics.accuracy > 0.6
    assert found["linear probe, all features"].metrics.accuracy > 0.6
    for result in found.values():
        assert result.metrics.count == 45
        interval = result.metrics.accuracy_interval
        assert interval.low < result.metrics.accuracy <= interval.high
        assert result.metrics.calibration is not None


def test_features_are_matched_by_key_and_not_by_position():
    inputs, actual, keys = inputs_for()
    order = np.random.default_rng(3).permutation(len(keys))
    straight = baselines(inputs, actual, keys)
    mixed = baselines(inputs, [actual[i] for i in order], [keys[i] for i in order])
    for one, other in zip(straight, mixed, strict=True):
        assert [one.predicted[i] for i in order] == list(other.predicted)


def test_a_picture_without_features_counts_as_wrong():
    inputs, actual, keys = inputs_for(missing=5)
    probe = baselines(inputs, actual, keys)[2]
    assert probe.predicted[:5] == ("",) * 5
    assert probe.metrics.unanswered == 5
    assert probe.metrics.count == 45


def test_shuffled_features_fall_to_chance():
    inputs, actual, keys = inputs_for()
    shuffled = [keys[i] for i in np.random.default_rng(0).permutation(len(keys))]
    assert baselines(inputs, actual, shuffled)[2].metrics.accuracy < 0.6


def test_needs_training_pictures():
    empty = BaselineInputs(
        np.zeros((0, 1, 2)), np.zeros((0, 2)), (), np.zeros((1, 1, 2)), np.zeros((1, 2)), ("k",)
    )
    with pytest.raises(DataError, match="no training pictures"):
        baselines(empty, ["a"], ["k"])
