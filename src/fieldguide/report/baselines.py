"""What simple classifiers reach on the same features and the same split: the bar a guide has to clear.

Four of them: always the commonest label, the five nearest training pictures, and a linear probe on the grid
features and on all features that the guide itself reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fieldguide.errors import DataError
from fieldguide.files import natural_key
from fieldguide.report.metrics import Metrics, compute_metrics

PROBE_C = 0.01  # inverse penalty of the probe; the value the project's known figures were measured with
NEIGHBOURS = 5


@dataclass(frozen=True)
class BaselineInputs:
    """Frozen-encoder features of the guide's training pictures and of the evaluated ones."""

    train_grid: np.ndarray  # (n, patches, channels)
    train_pooled: np.ndarray  # (n, d)
    train_labels: tuple[str, ...]
    test_grid: np.ndarray  # (m, patches, channels)
    test_pooled: np.ndarray  # (m, d)
    test_keys: tuple[str, ...]  # sha256 of each evaluated picture's file


@dataclass(frozen=True)
class BaselineResult:
    """One baseline's answers and figures."""

    name: str  # "majority class", "k-NN", "linear probe"
    how: str  # one phrase for the report
    predicted: tuple[str, ...]  # "" where there are no features of the picture
    confidence: tuple[float, ...]
    metrics: Metrics

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "how": self.how, **self.metrics.to_dict()}


def linear_probe(
    train_x: np.ndarray, train_y: Sequence[str], test_x: np.ndarray, c: float = PROBE_C
) -> tuple[tuple[str, ...], np.ndarray]:
    """Logistic regression with an L2 penalty on standardised features.

    With fewer pictures than features it is fitted in the space the training pictures span. The
    optimum lies in that space and the penalty does not change under rotation, so the result is the
    plain fit's, many times sooner.

    Args:
        train_x: (n, d); each picture's features are flattened first when there are more axes.
        train_y: n labels.
        test_x: (m, d).

    Returns:
        The labels, and (m, labels) probabilities in their order.
    """
    from sklearn.linear_model import LogisticRegression

    train, test = _standardise(_flat(train_x), _flat(test_x))
    labels = tuple(sorted(set(train_y), key=natural_key))
    if len(labels) == 1:
        return labels, np.ones((len(test), 1))
    if train.shape[0] < train.shape[1]:
        train, test = _rotate(train, test)
    place = {label: index for index, label in enumerate(labels)}
    probe = LogisticRegression(C=c, max_iter=2000)
    probe.fit(train, [place[label] for label in train_y])
    return labels, probe.predict_proba(test)


def nearest_neighbours(
    train_x: np.ndarray, train_y: Sequence[str], test_x: np.ndarray, k: int = NEIGHBOURS
) -> tuple[tuple[str, ...], np.ndarray]:
    """Votes of the k nearest training pictures by cosine; ties go to the label of the nearest.

    Returns:
        The labels, and (m, labels) shares of the votes in their order.
    """
    from sklearn.neighbors import NearestNeighbors

    labels = tuple(sorted(set(train_y), key=natural_key))
    place = {label: index for index, label in enumerate(labels)}
    codes = np.array([place[label] for label in train_y])
    search = NearestNeighbors(n_neighbors=min(k, len(codes)), metric="cosine").fit(train_x)
    _, nearest = search.kneighbors(test_x)
    votes = np.zeros((len(test_x), len(labels)))
    # A nearer neighbour weighs a hair more: it settles ties and can outvote nobody.
    for rank in range(nearest.shape[1]):
        np.add.at(votes, (np.arange(len(test_x)), codes[nearest[:, rank]]), 1.0 + 1e-6 * 0.5**rank)
    return labels, votes / votes.sum(axis=1, keepdims=True)


def baselines(
    inputs: BaselineInputs,
    actual: Sequence[str],
    keys: Sequence[str],
    *,
    labels: Sequence[str] = (),
    sources: Sequence[str] | None = None,
) -> list[BaselineResult]:
    """Run the three baselines on the evaluated pictures.

    Args:
        inputs: features; evaluated pictures are found in it by `keys`.
        actual: true label of each evaluated picture.
        keys: sha256 of each evaluated picture; one without features gets no answer from k-NN and
            probe, and so counts as wrong there as an unreadable picture does for the guide.
        labels: all labels the guide knows, for the tables.

    Raises:
        DataError: when there are no training features.
    """
    if not inputs.train_labels:
        raise DataError("no training pictures with features: the baselines cannot be fitted")
    place = {key: row for row, key in enumerate(inputs.test_keys)}
    rows = [place.get(key, -1) for key in keys]
    present = [row for row in rows if row >= 0]
    counts = Counter(inputs.train_labels)
    common = min(counts, key=lambda label: (-counts[label], natural_key(label)))
    share = counts[common] / len(inputs.train_labels)
    found = [
        ("majority class", f"always “{common}”", [common] * len(rows), [share] * len(rows)),
    ]
    if present:
        for name, how, (names, probabilities) in (
            (
                "k-NN",
                f"the {NEIGHBOURS} nearest training pictures vote (cosine, pooled features)",
                nearest_neighbours(inputs.train_pooled, inputs.train_labels, inputs.test_pooled[present]),
            ),
            (
                "linear probe",
                f"logistic regression on the grid features (C={PROBE_C:g})",
                linear_probe(inputs.train_grid, inputs.train_labels, inputs.test_grid[present]),
            ),
            (
                "linear probe, all features",
                f"logistic regression on the grid and pooled features (C={PROBE_C:g})",
                linear_probe(
                    _joined(inputs.train_grid, inputs.train_pooled),
                    inputs.train_labels,
                    _joined(inputs.test_grid, inputs.test_pooled)[present],
                ),
            ),
        ):
            found.append((name, how, *_spread(names, probabilities, rows)))
    return [
        BaselineResult(
            name,
            how,
            tuple(predicted),
            tuple(confidence),
            compute_metrics(actual, predicted, labels=labels, confidence=confidence, sources=sources),
        )
        for name, how, predicted, confidence in found
    ]


def _spread(
    labels: tuple[str, ...], probabilities: np.ndarray, rows: list[int]
) -> tuple[list[str], list[float]]:
    """Lay the answers of the pictures with features out over all evaluated pictures."""
    best, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    answers = iter(zip(best, confidence, strict=True))
    predicted, stated = [], []
    for row in rows:
        index, value = next(answers) if row >= 0 else (-1, 0.0)
        predicted.append(labels[index] if row >= 0 else "")
        stated.append(float(value))
    return predicted, stated


def _joined(grid: np.ndarray, pooled: np.ndarray) -> np.ndarray:
    return np.concatenate([_flat(grid), pooled], axis=1)


def _flat(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, dtype=np.float64).reshape(len(x), -1)


def _standardise(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, scale = train.mean(axis=0), train.std(axis=0)
    scale[scale < 1e-12] = 1.0  # a constant feature says nothing, and must not blow up
    return (train - mean) / scale, (test - mean) / scale


def _rotate(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in the principal axes of `train`, by the (n, n) kernel: cheap when n << d."""
    from scipy.linalg import eigh

    values, vectors = eigh(train @ train.T)
    kept = values > values[-1] * 1e-12
    scale = np.sqrt(values[kept])
    axes = train.T @ (vectors[:, kept] / scale)  # (d, r), orthonormal
    return vectors[:, kept] * scale, test @ axes
