"""Batches: rows of like length together, in an order that follows from (seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fieldguide.train.rows import Row

COARSE = 16  # tokens: rows whose lengths differ by less stay mixed, or a batch would hold but a few labels
POOL = 50  # batches that are sorted by length together: little padding, still well mixed


@dataclass(frozen=True)
class Batch:
    """Rows side by side, right-padded."""

    pictures: Tensor  # (B,) rows of the feature arrays
    ids: Tensor  # (B, S)
    supervised: Tensor  # (B, S) bool

    @property
    def targets(self) -> Tensor:
        """(N,) the supervised tokens, in the order of `Assembled.forward`."""
        return self.ids[self.supervised]


def epoch_order(
    lengths: Sequence[int], batch_size: int, batch_tokens: int, seed: int, epoch: int
) -> list[list[int]]:
    """Row numbers of each batch of an epoch; every row once.

    Rows are shuffled, cut into pools, sorted by coarse length in a pool, batched, and the batches shuffled.
    A batch holds at most `batch_size` rows and `batch_tokens` tokens, padding included; a longer row stands
    alone.
    """
    generator = np.random.default_rng([seed, epoch, 0])
    order = generator.permutation(len(lengths))
    batches: list[list[int]] = []
    for start in range(0, len(order), batch_size * POOL):
        batch: list[int] = []
        longest = 0
        pool = order[start : start + batch_size * POOL].tolist()
        for row in sorted(pool, key=lambda i: -(-lengths[i] // COARSE)):
            longer = max(longest, lengths[row])
            if len(batch) == batch_size or (batch and longer * (len(batch) + 1) > batch_tokens):
                batches.append(batch)
                batch, longer = [], lengths[row]
            batch.append(row)
            longest = longer
        batches.append(batch)
    return [batches[i] for i in generator.permutation(len(batches))]


def collate(rows: Sequence[Row], device: torch.device | str = "cpu") -> Batch:
    """Pad rows on the right; padding is never supervised."""
    size = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), size, dtype=torch.long)
    supervised = torch.zeros(len(rows), size, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids, dtype=torch.long)
        supervised[i, : len(row.ids)] = torch.tensor(row.supervised, dtype=torch.bool)
    pictures = torch.tensor([row.picture for row in rows], dtype=torch.long)
    return Batch(pictures.to(device), ids.to(device), supervised.to(device))
