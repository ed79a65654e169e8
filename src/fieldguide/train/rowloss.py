"""The loss of rows that are not trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy

from fieldguide.model.local import LocalModel, Pictures
from fieldguide.settings import TrainSettings
from fieldguide.train.batches import collate, epoch_order
from fieldguide.train.rows import Row


@torch.no_grad()
def rows_loss(
    model: LocalModel, question: str, pictures: Pictures, rows: Sequence[Row], settings: TrainSettings
) -> float:
    """Mean loss in nats a supervised token; the model in its present mode (call `eval()` first)."""
    lengths = [row.visual + len(row.ids) for row in rows]
    total = 0.0
    for numbers in epoch_order(lengths, settings.batch_size, settings.batch_tokens, 0, 0):
        batch = collate([rows[i] for i in numbers], model.device)
        logits = model(question, pictures.rows(batch.pictures), batch.ids, batch.supervised)
        total += float(cross_entropy(logits.float(), batch.targets, reduction="sum"))
    return total / sum(row.targets for row in rows)
