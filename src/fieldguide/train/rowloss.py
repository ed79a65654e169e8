"""The loss of rows that are not trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from fieldguide.model.local import LocalModel, Pictures
from fieldguide.settings import TrainSettings
from fieldguide.train.batches import collate, epoch_order
from fieldguide.train.rows import Row


@torch.no_grad()
def row_losses(
    model: LocalModel, question: str, pictures: Pictures, rows: Sequence[Row], settings: TrainSettings
) -> np.ndarray:
    """Loss of each row, in nats, summed over its supervised tokens; (rows,) float64.

    The model is read in its present mode (call `eval()` first).
    """
    lengths = [row.visual + len(row.ids) for row in rows]
    found = np.zeros(len(rows))
    for numbers in epoch_order(lengths, settings.batch_size, settings.batch_tokens, 0, 0):
        batch = collate([rows[i] for i in numbers], model.device)
        logits = model(question, pictures.rows(batch.pictures), batch.ids, batch.supervised)
        losses = cross_entropy(logits.float(), batch.targets, reduction="none").double().cpu().numpy()
        owner = np.repeat(np.arange(len(numbers)), [rows[i].targets for i in numbers])
        found[numbers] = np.bincount(owner, losses, minlength=len(numbers))
    return found


def rows_loss(
    model: LocalModel, question: str, pictures: Pictures, rows: Sequence[Row], settings: TrainSettings
) -> float:
    """Mean loss in nats a supervised token."""
    total = float(row_losses(model, question, pictures, rows, settings).sum())
    return total / sum(row.targets for row in rows)
