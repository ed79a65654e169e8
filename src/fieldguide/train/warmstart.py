"""Warm start: the map from picture features to label evidence, solved in closed form.

Ridge regression from standardised frozen features to centred one-hot labels, in its kernel form (n × n, n
pictures), so that 8,000 features and 300 pictures take milliseconds. The penalty and the mix of grid and
pooled features are chosen by the leave-one-out error, which ridge regression gives exactly without refitting
(Allen 1974; Golub, Heath and Wahba 1979).

The language model is then trained on the left-one-out evidence of the training pictures: what the map says of
a picture it has not seen. Trained on the fitted values instead, it would learn to trust evidence that is
cleaner than any it will meet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from fieldguide.model.projector import Projector

PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # relative to kernels of unit mean diagonal
MOST_SHARP = 30.0  # real sets give 8 to 15; few, perfectly separable pictures would ask for any sharpness
BIAS = 1.0  # the constant feature's share of the kernel
POOLED_SHARES = (0.0, 0.2, 0.5, 1.0)  # how much of the kernel comes from the pooled features


@dataclass(frozen=True)
class WarmStart:
    """The solved map and how it was chosen. n pictures, F = P·C + D features, R labels."""

    mean: np.ndarray  # (F,)
    scale: np.ndarray  # (F,)
    weights: np.ndarray  # (F, R)
    bias: np.ndarray  # (R,)
    sharpness: float  # evidence = softmax(sharpness · (features @ weights + bias))
    left_out: np.ndarray  # (n, R) evidence for each training picture by a map that has not seen it
    penalty: float
    pooled_share: float
    left_out_accuracy: float  # share of training pictures named rightly by `left_out` alone


def standardise(grid: np.ndarray, pooled: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flatten and standardise features: (n, P, C) and (n, D) → (n, F) values, (F,) means, (F,) scales.

    Features that hardly vary get the typical scale, so that noise in a dead channel is not blown up.
    """
    flat = np.concatenate([grid.reshape(len(grid), -1), pooled], axis=1).astype(np.float64)
    mean, scale = flat.mean(0), flat.std(0)
    floor = 1e-3 * float(np.median(scale)) + 1e-12
    scale = np.where(scale > floor, scale, max(float(np.median(scale)), 1e-12))
    return np.clip((flat - mean) / scale, -10, 10), mean, scale


def solve(
    grid: np.ndarray, pooled: np.ndarray, labels: np.ndarray, count: int, groups: np.ndarray | None = None
) -> WarmStart:
    """Fit the evidence map.

    Args:
        grid: (n, P, C) features of the training pictures.
        pooled: (n, D) features.
        labels: (n,) label numbers in [0, count).
        count: number of labels.
        groups: (n,) group numbers; near-duplicates of a picture are then left out together with it.
    """
    flat, mean, scale = standardise(grid, pooled)
    cut = grid.shape[1] * grid.shape[2]
    kernels = [_unit(part @ part.T) for part in (flat[:, :cut], flat[:, cut:])]
    # The labels are centred by a constant, not by their mean, and the bias is a feature like any other: were
    # both features and labels centred on the training pictures, the others would give away the one left out.
    centre = 1 / count
    target = np.eye(count)[labels] - centre
    best: tuple[float, float, float] | None = None
    for share in POOLED_SHARES:
        kernel = (1 - share) * kernels[0] + share * kernels[1] + BIAS
        values, vectors = np.linalg.eigh(kernel)
        for penalty in PENALTIES:
            left_out, _ = _leave_out(values, vectors, penalty, target, groups)
            error = float(((left_out - target) ** 2).mean())
            if best is None or error < best[0] - 1e-12:
                best = (error, share, penalty)
    assert best is not None
    _, share, penalty = best
    kernel = (1 - share) * kernels[0] + share * kernels[1] + BIAS
    left_out, dual = _leave_out(*np.linalg.eigh(kernel), penalty, target, groups)
    sharpness = _fit_sharpness(left_out, labels)
    evidence = _softmax(sharpness * left_out)
    bias = BIAS * dual.sum(0) + centre
    factors = [(1 - share) / _size(flat[:, :cut]), share / _size(flat[:, cut:])]
    weights = np.concatenate([flat[:, :cut].T @ dual * factors[0], flat[:, cut:].T @ dual * factors[1]])
    accuracy = float((evidence.argmax(1) == labels).mean())
    return WarmStart(mean, scale, weights, bias, sharpness, evidence, penalty, share, accuracy)


def _size(part: np.ndarray) -> float:
    """Mean diagonal of the part's kernel."""
    return max(float((part**2).sum(1).mean()), 1e-12)


def _unit(kernel: np.ndarray) -> np.ndarray:
    return kernel / max(float(np.diag(kernel).mean()), 1e-12)


def _leave_out(
    values: np.ndarray, vectors: np.ndarray, penalty: float, target: np.ndarray, groups: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Left-out predictions and dual weights, both (n, R), from the kernel's eigenvectors.

    With A = (K + λI)⁻¹ and α = A·y, leaving rows g out predicts y_g − (A_gg)⁻¹ α_g for them.
    """
    inverse = (vectors / (np.maximum(values, 0) + penalty)) @ vectors.T
    dual = inverse @ target
    left_out = target - dual / np.diag(inverse)[:, None]
    if groups is not None:
        order, starts = np.argsort(groups, kind="stable"), None
        _, starts = np.unique(groups[order], return_index=True)
        for rows in np.split(order, starts[1:]):
            if len(rows) > 1:
                left_out[rows] = target[rows] - np.linalg.solve(inverse[np.ix_(rows, rows)], dual[rows])
    return left_out, dual


def _softmax(values: np.ndarray) -> np.ndarray:
    raised = np.exp(values - values.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def _fit_sharpness(left_out: np.ndarray, labels: np.ndarray) -> float:
    """The sharpness under which the left-out pictures' own labels are likeliest."""

    def loss(log_sharpness: float) -> float:
        shares = _softmax(math.exp(log_sharpness) * left_out)
        return -float(np.log(shares[np.arange(len(labels)), labels] + 1e-12).mean())

    found = minimize_scalar(loss, bounds=(math.log(0.1), math.log(MOST_SHARP)), method="bounded")
    return math.exp(found.x)


def label_embeddings(embedding: Tensor, token_ids: Sequence[Sequence[int]], places: int) -> Tensor:
    """Input embeddings of each label's words, a token a place. (places, R, H)

    A longer label's last place holds the mean of its remaining tokens; a shorter one's further places hold 0.
    """
    table = torch.zeros(places, len(token_ids), embedding.shape[1])
    for number, ids in enumerate(token_ids):
        words = embedding[torch.tensor(list(ids))]
        for place in range(min(places, len(ids))):
            last = place == places - 1
            table[place, number] = words[place:].mean(0) if last else words[place]
    return table


def install(projector: Projector, start: WarmStart, embeddings: Tensor) -> None:
    """Put the solved map and the labels' word embeddings (places, R, H) into the projector.

    The evidence sums to one, so summary token k starts as the evidence-weighted mean of the labels' k-th
    tokens: for a sure picture, the label itself. The untrained language model reads that off already.
    """

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))

    with torch.no_grad():
        projector.mean.copy_(tensor(start.mean))
        projector.scale.copy_(tensor(start.scale))
        if projector.config.summary_tokens:
            projector.evidence_map.copy_(tensor(start.weights))
            projector.evidence_bias.copy_(tensor(start.bias))
            projector.sharpness.fill_(start.sharpness)
            projector.table.copy_(embeddings)
            projector.bias.zero_()
