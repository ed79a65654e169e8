"""Probe rows: what a network says about the user's own rows, measured before and after a change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fieldguide.errors import MergeError

Row = Mapping[
    str, Any
]  # input_ids (1, S), labels (1, S) with -100 where nothing is supervised, pixel_values …
Probe = Row | Callable[[Any], Row]  # a callable prepares its row with the processor it is given
UNSUPERVISED = -100
SMALL_LOSS = 0.01  # nats a token; below it a relative difference of losses is rounding noise


@dataclass(frozen=True)
class Tolerance:
    """How far a network may move when it is merged.

    Attributes:
        loss: difference of the losses, as a share of the loss before.
        logits: root mean square of the logits' differences, as a share of the logits' spread.
    """

    loss: float = 1e-3
    logits: float = 1e-3

    @classmethod
    def of(cls, dtype: torch.dtype) -> Tolerance:
        """What the arithmetic of a type allows.

        Measured with a language model of 135 million weights: in bf16 the same weights give losses 0.7% and
        logits 2.7% apart from those in fp32, which is more than merging them changes (0.3% and 0.8%).
        """
        return {torch.bfloat16: cls(3e-2, 0.1), torch.float16: cls(4e-3, 2e-2)}.get(dtype, cls())


@dataclass(frozen=True)
class Measured:
    """What a network says at the supervised positions of one row."""

    logits: Tensor  # (positions, V), fp32, on the CPU
    losses: Tensor  # (positions,), nats


@dataclass(frozen=True)
class Difference:
    """How far the answers to the same rows are apart."""

    loss_before: float  # mean over the supervised tokens, nats
    loss_after: float
    max_logit: float
    mean_logit: float
    relative_logit: float  # root mean square difference / spread of the logits before

    @property
    def relative_loss(self) -> float:
        return abs(self.loss_after - self.loss_before) / max(abs(self.loss_before), SMALL_LOSS)

    def within(self, tolerance: Tolerance) -> bool:
        """Whether both figures keep to it; a figure that is no number does not."""
        return self.relative_loss <= tolerance.loss and self.relative_logit <= tolerance.logits

    def in_words(self) -> str:
        return (
            f"loss {self.loss_before:.6g} before, {self.loss_after:.6g} after "
            f"({self.relative_loss:.2g} of it); "
            f"logits differ by up to {self.max_logit:.3g}, {self.mean_logit:.2g} on average "
            f"({self.relative_logit:.2g} of their spread)"
        )


def prepare(probes: Sequence[Probe], processor: Any) -> list[Row]:
    """The rows, made ready by `processor` where they are callables.

    Raises:
        MergeError: without a row, or for a row in which nothing is supervised.
    """
    if not probes:
        raise MergeError("no probe rows: nothing could be compared before and after")
    rows: list[Row] = [dict(probe(processor) if callable(probe) else probe) for probe in probes]
    for number, row in enumerate(rows, 1):
        labels = row.get("labels")
        if labels is None or not bool((labels[:, 1:] != UNSUPERVISED).any()):
            raise MergeError(f"probe row {number}: nothing in it is supervised")
    return rows


@torch.no_grad()
def measure(network: nn.Module, row: Row) -> Measured:
    """Logits and losses where the row is supervised; each position is judged by the token that follows it."""
    device = next(network.parameters()).device
    inputs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in row.items() if k != "labels"}
    logits = network(**inputs, use_cache=False).logits[:, :-1]
    targets = row["labels"][:, 1:].to(device)
    chosen = targets != UNSUPERVISED
    found = logits[chosen].float()
    losses = nn.functional.cross_entropy(found, targets[chosen], reduction="none")
    return Measured(found.cpu(), losses.cpu())


def compare(before: Sequence[Measured], after: Sequence[Measured]) -> Difference:
    """How far two measurements of the same rows are apart."""
    old, new = torch.cat([m.logits for m in before]).double(), torch.cat([m.logits for m in after]).double()
    gap = new - old
    return Difference(
        float(torch.cat([m.losses for m in before]).double().mean()),
        float(torch.cat([m.losses for m in after]).double().mean()),
        float(gap.abs().max()),
        float(gap.abs().mean()),
        float(gap.square().mean().sqrt() / old.std().clamp_min(1e-12)),
    )
