"""Is what a picture shows in this guide at all? Its distance from the training pictures, as a p-value.

Four measures of novelty on the frozen encoder's features, each larger for stranger pictures:

* label score: the largest output of a ridge regression to the labels, negated (Hendrycks et al. 2022);
* neighbours: mean distance to the five nearest training pictures, by those outputs (Sun et al. 2022);
* relative Mahalanobis: squared distance to the nearest label's mean less that to the mean of all (Ren et
  al. 2021);
* distance: mean cosine distance to the five nearest training pictures by the pooled features as they are.

The first three tell labels that were never taught among pictures of like kind, and can be blind to pictures
of quite another kind, which lie where labels do not differ; the last sees those, and of the others little. So
the score is the sum of the first three, each standardised on known pictures, and twice what the last one has
beyond its usual spread. All was chosen by measurement, `bench/novelty.py`.

A score means nothing by itself. So a picture is compared with known ones: its *familiarity* is the share of
known pictures that look at least as novel, the conformal p-value of Bates et al. 2023. Pictures whose
familiarity is 1 − `keep` or less are refused; of known pictures that is a share of at most 1 − `keep`.

Shapes: n training pictures, F features, d principal components, R labels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from fieldguide.errors import GuideError
from fieldguide.files import atomic_path

NOVELTY_FILE = "novelty.safetensors"
COMPONENTS = ("label score", "neighbours", "relative Mahalanobis", "distance")
MOST_PICTURES = 2000  # training pictures that are looked at, evenly by label: bounds time and the file
AXES = 256  # principal components for the ridge regression …
GAUSSIAN_AXES = 64  # … and for the distances to means, whose covariance must be estimated
NEIGHBOURS = 5
USUAL = 1.0  # standard deviations within which the distance says nothing …
BEYOND = 2.0  # … and the weight of what exceeds them
SHRINKAGE = 0.1  # of a covariance towards a multiple of the identity
PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # relative to pictures of unit mean square
ROWS_AT_ONCE = 256  # pictures scored together: bounds the table of distances
HALF = ("axes", "anchors", "pooled")  # kept in 16 bits: the large ones


@dataclass(frozen=True)
class NoveltyMap:
    """Picture features → the four measures. All arrays are float32."""

    mean: np.ndarray  # (F,) of the training pictures
    scale: np.ndarray  # (F,)
    centre: np.ndarray  # (F,) mean of the standardised pictures of unit length
    axes: np.ndarray  # (F, d) principal components
    weights: np.ndarray  # (d + 1, R) ridge regression from components, and a constant, to centred labels
    anchors: np.ndarray  # (n, R) its outputs on the training pictures
    label_means: np.ndarray  # (R, m) in the first m components
    overall_mean: np.ndarray  # (m,)
    within: np.ndarray  # (m, m) whitens the scatter within labels
    overall: np.ndarray  # (m, m) whitens the scatter of all pictures
    pooled: np.ndarray  # (n, D) the last D features, as they are, of unit length

    def components(self, features: np.ndarray) -> np.ndarray:
        """(N, F) features → (N, 4) measures, in the order of `COMPONENTS`.

        Raises:
            GuideError: for features of another encoder.
        """
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise GuideError(
                f"pictures have features {features.shape[1:]}, and the novelty of this guide is told from "
                f"{len(self.mean)} numbers"
            )
        parts = [
            self._components(features[start : start + ROWS_AT_ONCE])
            for start in range(0, len(features), ROWS_AT_ONCE)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, len(COMPONENTS)))

    def _components(self, features: np.ndarray) -> np.ndarray:
        z = (_unit_rows(features, self.mean, self.scale) - self.centre) @ self.axes
        outputs = _with_constant(z) @ self.weights  # (N, R)
        near = np.sqrt(_squares(outputs, self.anchors))
        far = 1 - _of_unit_length(features[:, -self.pooled.shape[1] :]) @ self.pooled.T
        first = z[:, : len(self.overall_mean)]
        to_labels = _squares(first @ self.within, self.label_means @ self.within).min(1)
        to_all = _squares(first @ self.overall, self.overall_mean[None] @ self.overall)[:, 0]
        return np.stack([-outputs.max(1), _nearest(near), to_labels - to_all, _nearest(far)], axis=1)


@dataclass(frozen=True)
class Novelty:
    """The map, and how known pictures fare under it."""

    map: NoveltyMap
    offset: np.ndarray  # (4,) mean of each measure on known pictures …
    spread: np.ndarray  # (4,) … and its standard deviation
    known: np.ndarray  # (k,) scores of known pictures that had no part in the map, ascending

    def score(self, features: np.ndarray) -> np.ndarray:
        """(N, F) features → (N,) novelty; larger is stranger, known pictures lie around 0."""
        return combine(self.map.components(features), self.offset, self.spread)

    def familiarity(self, features: np.ndarray) -> np.ndarray:
        """(N, F) features → (N,) share of known pictures that look at least as novel, in (0, 1]."""
        return p_values(self.score(features), self.known)

    def save(self, path: Path) -> None:
        """Write it as safetensors: 16 bits for the axes and the anchors, 32 for the rest."""
        from safetensors.numpy import save_file

        arrays = {**asdict(self.map), "offset": self.offset, "spread": self.spread, "known": self.known}
        tensors = {
            name: np.ascontiguousarray(array, np.float16 if name in HALF else np.float32)
            for name, array in arrays.items()
        }
        with atomic_path(path) as temporary:
            save_file(tensors, temporary)

    @classmethod
    def load(cls, path: Path) -> Novelty:
        """Read what `save` wrote.

        Raises:
            GuideError: when the file holds something else.
        """
        from safetensors.numpy import load_file

        arrays = {name: array.astype(np.float32) for name, array in load_file(path).items()}
        names = [field.name for field in fields(NoveltyMap)]
        if set(arrays) != {*names, "offset", "spread", "known"}:
            raise GuideError(f"{path}: not the novelty of a guide", "build it again")
        made = NoveltyMap(**{name: arrays[name] for name in names})
        return cls(made, arrays["offset"], arrays["spread"], arrays["known"])


def combine(components: np.ndarray, offset: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """(N, 4) measures → (N,) score: see the module."""
    standard = (components - offset) / spread
    return standard[:, :3].sum(1) + BEYOND * np.maximum(standard[:, 3] - USUAL, 0)


def p_values(scores: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Conformal p-values of novelty: (1 + number of known scores at least as large) / (1 + number of them).

    Args:
        scores: (N,).
        known: (k,) ascending. A known picture exchangeable with them gets p ≤ α with probability at most α.
    """
    at_least = len(known) - np.searchsorted(known, scores, side="left")
    return (1 + at_least) / (1 + len(known))


def flatten_features(grid: np.ndarray, pooled: np.ndarray) -> np.ndarray:
    """(N, P, C) and (N, D) → (N, F) float32, as the map reads them."""
    return np.concatenate([grid.reshape(len(grid), -1), pooled], axis=1).astype(np.float32, copy=False)


# ---- fitting


def fit_map(
    features: np.ndarray, targets: np.ndarray, count: int, groups: np.ndarray, pooled: int
) -> NoveltyMap:
    """Fit the map on training pictures.

    Args:
        features: (n, F).
        targets: (n,) label numbers in [0, count), each of them there.
        count: number of labels.
        groups: (n,) numbers; near-duplicates are left out together where the penalty is chosen.
        pooled: how many of the features, the last ones, are the encoder's pooled output.
    """
    mean, scale = _mean_and_scale(features)
    units = _unit_rows(features, mean, scale)
    centre = units.mean(0)
    units -= centre
    values, vectors = np.linalg.eigh((units @ units.T).astype(np.float64))
    order = np.flatnonzero(values > max(float(values[-1]), 1e-12) * 1e-7)[::-1][:AXES]
    axes = units.T @ (vectors[:, order] / np.sqrt(values[order])).astype(np.float32)
    z = (vectors[:, order] * np.sqrt(values[order])).astype(np.float64)
    weights = _ridge(z, targets, count, groups)
    first = z[:, :GAUSSIAN_AXES]
    label_means = np.stack([first[targets == label].mean(0) for label in range(count)])
    overall_mean = first.mean(0)
    arrays = (
        mean, scale, centre, axes, weights, _with_constant(z) @ weights, label_means, overall_mean,
        _whitening(first - label_means[targets]), _whitening(first - overall_mean),
        _of_unit_length(features[:, -pooled:]),
    )  # fmt: skip
    return NoveltyMap(*(array.astype(np.float32) for array in arrays))


def _mean_and_scale(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(F,) each; features that hardly vary get the typical scale, so that their noise is not blown up."""
    mean, scale = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
    typical = max(float(np.median(scale)), 1e-12)
    return mean.astype(np.float32), np.where(scale > 1e-3 * typical, scale, typical).astype(np.float32)


def _unit_rows(features: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Standardised features, each picture of length 1: how strongly it excites the encoder says little."""
    return _of_unit_length(np.clip((features - mean) / scale, -10, 10).astype(np.float32))


def _of_unit_length(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6)


def _nearest(distances: np.ndarray) -> np.ndarray:
    """(N, n) → (N,) mean of the five smallest."""
    k = min(NEIGHBOURS, distances.shape[1])
    return np.partition(distances, k - 1, axis=1)[:, :k].mean(1)


def _with_constant(z: np.ndarray) -> np.ndarray:
    return np.concatenate([z, np.ones((len(z), 1), z.dtype)], axis=1)


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, k) and (M, k) → (N, M) squared Euclidean distances."""
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T, 0)


def _whitening(residuals: np.ndarray) -> np.ndarray:
    """(m, m) matrix W with W Wᵀ the inverse of the residuals' shrunken covariance."""
    covariance = residuals.T @ residuals / len(residuals)
    size = max(float(np.trace(covariance)) / len(covariance), 1e-12)
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * size * np.eye(len(covariance))
    return np.linalg.inv(np.linalg.cholesky(covariance)).T


def _ridge(z: np.ndarray, targets: np.ndarray, count: int, groups: np.ndarray) -> np.ndarray:
    """(d + 1, R) weights with the penalty of the least error on left-out groups (Allen 1974)."""
    size = np.sqrt(max(float((z**2).sum(1).mean()), 1e-12))
    wanted = np.eye(count)[targets] - 1 / count
    left, sizes, right = np.linalg.svd(_with_constant(z / size), full_matrices=False)
    along = left.T @ wanted
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.unique(groups[order], return_index=True)[1][1:])
    best = (np.inf, np.zeros(0))
    for penalty in PENALTIES:
        share = sizes**2 / (sizes**2 + penalty)
        wrong = wanted - left @ (share[:, None] * along)
        error = 0.0
        for rows in members:  # left out together: (I − H_gg)⁻¹ times their residuals
            hat = (left[rows] * share) @ left[rows].T
            error += float((np.linalg.solve(np.eye(len(rows)) - hat, wrong[rows]) ** 2).sum())
        if error < best[0]:
            best = (error, sizes / (sizes**2 + penalty))
    weights = right.T @ (best[1][:, None] * along)
    weights[:-1] /= size
    return weights
