"""What training changed and what it did not, measured, not hoped."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fieldguide.errors import FieldguideError
from fieldguide.model.local import LocalModel
from fieldguide.train.checkpoint import trained
from fieldguide.train.sharded import whole


def parts(model: LocalModel) -> dict[str, dict[str, int]]:
    """Parameters and trained parameters of each part; those held in 4 bits as many as there were before."""
    found: dict[str, dict[str, int]] = {}
    for name, parameter in model.named_parameters():
        part = found.setdefault(model.part_of(name), {"parameters": 0, "trained": 0})
        count = _numbers(parameter)
        part["parameters"] += count
        part["trained"] += count if parameter.requires_grad else 0
    return found


def _numbers(parameter: Tensor) -> int:
    """How many numbers a parameter stands for: bitsandbytes packs two of 4 bits into one byte."""
    shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
    return parameter.numel() if shape is None else math.prod(shape)


def before_in_words(parts: Mapping[str, Mapping[str, int]]) -> str:
    """What is going to be trained, and what is frozen."""
    trains = [f"{name} ({part['trained']:,} weights)" for name, part in parts.items() if part["trained"]]
    frozen = [f"{name} ({part['parameters']:,})" for name, part in parts.items() if not part["trained"]]
    return f"trains {', '.join(trains)}; frozen: {', '.join(frozen) or 'nothing'}"


def after_in_words(changes: Mapping[str, Mapping[str, Any]], supervised_tokens: int) -> str:
    """How far the trained parts moved."""
    moved = [f"{name} by {change['relative_change']:.1%}" for name, change in changes.items()]
    return (
        f"learnt from {supervised_tokens:,} tokens: changed {', '.join(moved)}; "
        "all frozen weights are the same to the last bit"
    )


def frozen_hash(model: LocalModel) -> str:
    """SHA-256 over every tensor that training must leave alone: frozen parameters and saved buffers.

    Of weights in 4 bits these are the packed bytes and all that turns them back into numbers. Buffers that
    are not saved, such as the angles of rotary positions, are made anew by the model as it needs them.
    """
    digest = hashlib.sha256()
    learnt = set(trained(model))
    for name, tensor in sorted(model.state_dict().items()):
        if name not in learnt:
            digest.update(name.encode())
            digest.update(
                whole(tensor.detach()).cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            )
    return digest.hexdigest()


def check_first_step(model: LocalModel, before: dict[str, Tensor]) -> None:
    """After one step every trained part must have moved.

    Raises:
        FieldguideError: naming a part that stood still: it would never learn.
    """
    moved: dict[str, bool] = {}
    for name, parameter in trained(model).items():
        changed = not torch.equal(whole(parameter.detach()).cpu(), before[name].cpu())
        moved[model.part_of(name)] = moved.get(model.part_of(name), False) or changed
    still = [part for part, changed in moved.items() if not changed]
    if still:
        raise FieldguideError(
            f"{', '.join(still)}: not changed by the first training step, so it would never learn"
        )


def weight_changes(model: LocalModel, before: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    """For each trained part: tensors, tensors changed, and |after − before| / |before|."""
    changes: dict[str, dict[str, Any]] = {}
    for name, parameter in trained(model).items():
        old, new = before[name].double().cpu(), whole(parameter.detach()).double().cpu()
        part = changes.setdefault(
            model.part_of(name), {"tensors": 0, "changed": 0, "_moved": 0.0, "_size": 0.0}
        )
        part["tensors"] += 1
        part["changed"] += int(not torch.equal(old, new))
        part["_moved"] += float(((new - old) ** 2).sum())
        part["_size"] += float((old**2).sum())
    for part in changes.values():
        size = part.pop("_size")
        part["relative_change"] = (part.pop("_moved") / size) ** 0.5 if size else float("inf")
    return changes
