"""The deletion test: whether a guide's heat maps point at what its labels come from (Samek et al. 2017).

For some pictures the hottest fifth is covered, and as much at random; what each costs the label is compared.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from fieldguide.answer.heat import Answering, where
from fieldguide.errors import FieldguideError
from fieldguide.progress import progress_bar
from fieldguide.report.intervals import Interval, bootstrap_interval

FEWEST = 5  # pictures: with fewer, even all in favour may be chance
SECONDS = 20.0  # after which no further picture is begun
PICTURES = 6  # of a report


@dataclass(frozen=True)
class DeletionTest:
    """Whether the heat maps of a guide point at what its labels come from: nats off the log-odds."""

    pictures: int
    hottest: float  # mean loss when the hottest fifth is covered
    random: float  # mean loss when a fifth at random is covered
    difference: float
    interval: Interval  # of the difference, 95%, bootstrap over the pictures
    in_favour: int  # pictures in which the hottest fifth cost more

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def matters(self) -> bool | None:
        """Whether the maps point at something, beyond chance; None where too few pictures were tried to tell.

        By the exact sign test, one-sided at 5%: an interval of so few pictures would be too narrow.
        """
        if self.pictures < FEWEST:
            return None
        return bool(binomtest(self.in_favour, self.pictures, 0.5, alternative="greater").pvalue < 0.05)


def deletion_test(
    answering: Answering, pictures: Sequence[Path], most: int, seconds: float = SECONDS
) -> DeletionTest | None:
    """Cover the hottest fifth of some pictures, and a fifth at random.

    Args:
        answering: a guide, or a model that runs here.
        pictures: of which some are drawn, always the same ones.
        most: pictures tried.
        seconds: after which no further one is begun.

    Returns:
        None where none could be tried.
    """
    chosen = np.random.default_rng(0).permutation(len(pictures))[:most]
    lost: list[tuple[float, float]] = []
    began = time.perf_counter()
    with progress_bar("pictures") as bar:
        task = bar.add_task("Covering parts", total=len(chosen))
        for number in chosen:
            try:
                found = where(answering, pictures[number]).deletion
                lost.append((found.hottest, found.random))
            except FieldguideError:
                pass  # a picture that cannot be read stands in the report already
            bar.advance(task)
            if time.perf_counter() - began > seconds:
                break
    if not lost:
        return None
    hottest, chance = np.array(lost).T
    gain = hottest - chance
    return DeletionTest(
        len(lost),
        float(hottest.mean()),
        float(chance.mean()),
        float(gain.mean()),
        bootstrap_interval(len(gain), lambda rows: float(gain[rows].mean())),
        int((gain > 0).sum()),
    )
