"""Known and unknown pictures for the novelty score, made from the training pictures themselves.

Known: the map is fitted without a tenth of the pictures and scores them; ten times. Unknown: it is fitted
without all pictures of a label and scores those. No model is trained again, only the map, in a second or so.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from fieldguide.answer.novelty import MOST_PICTURES, Novelty, combine, fit_map, p_values

FOLDS = 10
FEW_FOLDS = 5  # from this many pictures on, each fit takes seconds
MANY = 1000
HELD_OUT = 10  # labels at most that are held out
KEEP = 0.95  # at which the record says how many unknown pictures would be refused
FEWEST = 19  # known pictures; with fewer, no p-value reaches 0.05


@dataclass(frozen=True)
class NoveltyRecord:
    """What was measured while fitting, for `guide.json`."""

    pictures: int  # training pictures looked at
    known: int  # scores that familiarity compares with: of left-out training pictures, and of validation ones
    validation_kept: float | None  # share of validation pictures not refused at 95%, by the others' scores
    held_out_labels: int  # labels left out in turn
    auroc: float | None  # mean over them: an unknown picture looks more novel than a known one
    unknown_refused: float | None  # mean share of their pictures refused at 95%


def spread_over_labels(targets: np.ndarray, most: int = MOST_PICTURES, seed: int = 0) -> np.ndarray:
    """Numbers, ascending, of at most `most` pictures: as many of each label as there are and fit."""
    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(targets))
    place = np.empty(len(targets), np.int64)
    for label in np.unique(targets):
        rows = shuffled[targets[shuffled] == label]
        place[rows] = np.arange(len(rows))
    return np.sort(np.lexsort((random.permutation(len(targets)), place))[:most])


def fit_novelty(
    features: np.ndarray,
    targets: np.ndarray,
    count: int,
    groups: np.ndarray,
    validation: np.ndarray,
    pooled: int,
) -> tuple[Novelty, dict[str, Any]] | None:
    """Fit the map on the training pictures, and learn how known and unknown ones fare.

    Args:
        features: (n, F) of training pictures, at most a few thousand (`spread_over_labels`).
        targets: (n,) label numbers in [0, count).
        groups: (n,) numbers; pictures of a group stay together.
        validation: (v, F) known pictures that trained nothing; may be none.
        pooled: how many of the features, the last ones, are the encoder's pooled output.

    Returns:
        None when there is too little to tell by: a label without pictures, or fewer than 19 known scores.
    """
    if count < 2 or len(np.unique(targets)) < count:
        return None
    folds = _folds(targets, groups)
    if folds.max() < 1:
        return None
    known = _known(features, targets, groups, folds, pooled)
    seen = known[np.isfinite(known).all(1)]
    if len(seen) + len(validation) < FEWEST or len(seen) < 2:
        return None
    whole = fit_map(features, targets, count, groups, pooled)
    offset, spread = seen.mean(0), np.maximum(seen.std(0), 1e-6)
    left_out = np.sort(combine(seen, offset, spread))
    validated = combine(whole.components(validation), offset, spread)
    scores = np.sort(np.concatenate([left_out, validated]))
    novelty = Novelty(whole, *(np.asarray(a, np.float32) for a in (offset, spread, scores)))
    kept = float((p_values(validated, left_out) > 1 - KEEP).mean()) if len(validated) else None
    auroc, refused, labels = _unknown(features, targets, count, groups, folds, novelty, pooled)
    record = NoveltyRecord(len(features), len(scores), kept, labels, auroc, refused)
    return novelty, vars(record).copy()


def _folds(targets: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(n,) fold of each picture: groups whole, labels spread."""
    from sklearn.model_selection import StratifiedGroupKFold

    wanted = FOLDS if len(targets) < MANY else FEW_FOLDS
    wanted = min(wanted, len(np.unique(groups)), int(np.bincount(targets).max()))
    fold = np.zeros(len(targets), np.int64)
    if wanted < 2:
        return fold
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a label with fewer pictures than folds is in some of them only
        split = StratifiedGroupKFold(wanted, shuffle=True, random_state=0)
        for number, (_, rows) in enumerate(split.split(targets, targets, groups)):
            fold[rows] = number
    return fold


def _refit(
    features: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray,
    kept: np.ndarray,
    asked: np.ndarray,
    pooled: int,
) -> np.ndarray:
    """(asked, 4) measures of pictures under a map fitted on others; NaN if fewer than two labels remain."""
    labels, numbers = np.unique(targets[kept], return_inverse=True)
    if len(labels) < 2:
        return np.full((len(asked), 4), np.nan)
    return fit_map(features[kept], numbers, len(labels), groups[kept], pooled).components(features[asked])


def _known(
    features: np.ndarray, targets: np.ndarray, groups: np.ndarray, folds: np.ndarray, pooled: int
) -> np.ndarray:
    """(n, 4) measures of each picture by a map without its fold; NaN where that map lacks its label."""
    found = np.full((len(targets), 4), np.nan)
    for fold in range(folds.max() + 1):
        kept = np.flatnonzero(folds != fold)
        asked = np.flatnonzero((folds == fold) & np.isin(targets, targets[kept]))
        if len(asked):
            found[asked] = _refit(features, targets, groups, kept, asked, pooled)
    return found


def _unknown(
    features: np.ndarray,
    targets: np.ndarray,
    count: int,
    groups: np.ndarray,
    folds: np.ndarray,
    novelty: Novelty,
    pooled: int,
) -> tuple[float | None, float | None, int]:
    """Mean AUROC and mean share refused of labels held out in turn, and how many were."""
    from sklearn.metrics import roc_auc_score

    if count < 3:
        return None, None, 0
    labels = np.unique(np.linspace(0, count - 1, min(HELD_OUT, count)).round().astype(int))
    areas, refused = [], []
    for number, label in enumerate(labels):
        fold = number % (folds.max() + 1)  # its pictures of the other labels are the known ones
        kept = np.flatnonzero((targets != label) & (folds != fold))
        strange = np.flatnonzero(targets == label)
        usual = np.flatnonzero((folds == fold) & (targets != label) & np.isin(targets, targets[kept]))
        if not len(usual):
            continue
        measures = _refit(features, targets, groups, kept, np.concatenate([strange, usual]), pooled)
        if np.isnan(measures).any():
            continue
        scores = combine(measures, novelty.offset, novelty.spread)
        areas.append(roc_auc_score(np.arange(len(scores)) < len(strange), scores))
        refused.append(float((p_values(scores[: len(strange)], novelty.known) <= 1 - KEEP).mean()))
    if not areas:
        return None, None, 0
    return float(np.mean(areas)), float(np.mean(refused)), len(areas)
