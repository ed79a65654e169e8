"""Labels that are probably wrong, and pictures unlike the rest of their label.

Every picture is judged by a linear probe that has seen neither it nor its near-duplicates (out of fold);
confident learning (Northcutt et al. 2021, by cleanlab) turns the probabilities into a ranking.
"""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fieldguide.files import atomic_path, natural_key
from fieldguide.records import Example
from fieldguide.report.baselines import linear_probe

FOLDS = 5
GRID_VALUES = 30_000_000  # above this the probe reads the pooled features: the grid's fit takes minutes
OUTLIERS = 40
SEED = 0


@dataclass(frozen=True)
class Features:
    """Frozen-encoder features of a data set's pictures, as far as they are at hand."""

    keys: tuple[str, ...]  # sha256 of each picture's file
    grid: np.ndarray  # (n, patches, channels)
    pooled: np.ndarray  # (n, d)

    def of(self, examples: Sequence[Example]) -> tuple[list[Example], np.ndarray]:
        """The examples that have features, and the row of each."""
        place = {key: row for row, key in enumerate(self.keys)}
        found = [(example, place[example.sha256]) for example in examples if example.sha256 in place]
        return [example for example, _ in found], np.array([row for _, row in found], dtype=int)


@dataclass(frozen=True)
class Suspect:
    """A picture whose label is probably wrong."""

    example: Example
    likelier: str
    given_probability: float  # out of fold
    likelier_probability: float
    flagged: bool  # counted as a label error by confident learning; the others only rank lower


@dataclass(frozen=True)
class Outlier:
    """A picture unlike the others of its label."""

    example: Example
    times: float  # its distance to the label's centre, in that of the label's middle picture


def find_suspects(examples: Sequence[Example], features: Features, folds: int = FOLDS) -> list[Suspect]:
    """Pictures that look more like another label than like their own, the likeliest mistakes first.

    Labels whose pictures form fewer than two groups cannot be judged and are left alone. Empty when
    fewer than two labels remain.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    judged, rows = features.of([example for example in examples if example.label])
    groups: dict[str, set[str]] = defaultdict(set)
    for example in judged:
        groups[example.label].add(example.group or example.sha256)
    enough = [len(groups[example.label]) >= 2 for example in judged]
    judged, rows = [e for e, ok in zip(judged, enough, strict=True) if ok], rows[enough]
    if len({example.label for example in judged}) < 2:
        return []
    x = features.grid if features.grid.size <= GRID_VALUES else features.pooled
    labels, probabilities, seen = out_of_fold(
        x[rows], [e.label for e in judged], [e.group or e.sha256 for e in judged], folds
    )
    # Where a fold held all of a label, nothing could know it: its absence is no evidence against it.
    judged = [example for example, ok in zip(judged, seen, strict=True) if ok]
    known = sorted({labels.index(example.label) for example in judged})
    if len(known) < 2:
        return []
    labels, probabilities = tuple(labels[i] for i in known), probabilities[seen][:, known] + 1e-12
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    place = {label: index for index, label in enumerate(labels)}
    codes = np.array([place[example.label] for example in judged], dtype=int)
    flagged = find_label_issues(codes, probabilities, n_jobs=1)
    quality = get_label_quality_scores(codes, probabilities, method="normalized_margin")
    best = probabilities.argmax(axis=1)
    order = sorted(np.flatnonzero(best != codes), key=lambda i: (quality[i], i))
    return [
        Suspect(
            judged[i],
            labels[best[i]],
            float(probabilities[i, codes[i]]),
            float(probabilities[i, best[i]]),
            bool(flagged[i]),
        )
        for i in order
    ]


def out_of_fold(
    x: np.ndarray, y: Sequence[str], groups: Sequence[str], folds: int = FOLDS
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Probabilities of each picture from a probe that saw neither it nor its group.

    Args:
        x: (n, …) features.
        y: n labels.
        groups: n group names; near-duplicates share one.

    Returns:
        All labels; (n, labels) probabilities; (n,) bool, whether the probe knew the picture's own label.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    labels = tuple(sorted(set(y), key=natural_key))
    place = {label: index for index, label in enumerate(labels)}
    codes = np.array([place[label] for label in y])
    probabilities, seen = np.zeros((len(y), len(labels))), np.zeros(len(y), dtype=bool)
    numbers = np.unique(np.asarray(groups), return_inverse=True)[1]
    # Splitting by the group's share of a label needs at least one label with that many pictures.
    count = max(2, min(folds, max(Counter(y).values()), len(set(groups))))
    splitter = StratifiedGroupKFold(n_splits=count, shuffle=True, random_state=SEED)
    for train, test in splitter.split(np.zeros(len(y)), codes, numbers):
        if not len(train) or not len(test):
            continue
        known, found = linear_probe(x[train], [y[i] for i in train], x[test])
        columns = [place[label] for label in known]
        probabilities[np.ix_(test, columns)] = found
        seen[test] = np.isin(codes[test], columns)
    return labels, probabilities, seen


def find_outliers(examples: Sequence[Example], features: Features, most: int = OUTLIERS) -> list[Outlier]:
    """Pictures far from the centre of their own label by cosine, the farthest first.

    Only labels with at least five pictures; only pictures at least half as far again as the label's
    middle one.
    """
    judged, rows = features.of([example for example in examples if example.label])
    if not judged:
        return []
    x = np.asarray(features.pooled[rows], dtype=np.float64)
    x = x - x.mean(axis=0)  # what all pictures share says nothing about one
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    members: dict[str, list[int]] = defaultdict(list)
    for index, example in enumerate(judged):
        members[example.label].append(index)
    found = []
    for inside in members.values():
        if len(inside) < 5:
            continue
        total = x[inside].sum(axis=0)
        for index, distance in zip(inside, _distances(x[inside], total), strict=True):
            found.append((distance, index))
        middle = float(np.median([distance for distance, _ in found[-len(inside) :]]))
        found[-len(inside) :] = [(d / max(middle, 1e-12), index) for d, index in found[-len(inside) :]]
    far = sorted((pair for pair in found if pair[0] >= 1.5), key=lambda pair: (-pair[0], pair[1]))[:most]
    return [Outlier(judged[index], float(times)) for times, index in far]


def _distances(x: np.ndarray, total: np.ndarray) -> np.ndarray:
    """1 − cosine to the centre of the others, for each row; a picture must not pull its own centre."""
    centres = total - x
    centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
    return 1.0 - (x * centres).sum(axis=1)


def write_suspects(path: Path | str, suspects: Sequence[Suspect]) -> None:
    """suspects.csv: rank, file, label, likelier, both probabilities, flagged, sha256."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            [
                "rank",
                "file",
                "label",
                "likelier",
                "label_probability",
                "likelier_probability",
                "flagged",
                "sha256",
            ]
        )
        for rank, s in enumerate(suspects, start=1):
            writer.writerow(
                [
                    rank,
                    s.example.id,
                    s.example.label,
                    s.likelier,
                    f"{s.given_probability:.4f}",
                    f"{s.likelier_probability:.4f}",
                    "yes" if s.flagged else "no",
                    s.example.sha256,
                ]
            )
