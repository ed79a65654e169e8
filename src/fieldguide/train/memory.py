"""What training will need of memory, before it starts: reckoned, then tried on the worst batch.

A run that dies of memory an hour later is worse than one that is refused now, with what to change.
"""

from __future__ import annotations

import gc
import os
import resource
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from fieldguide.errors import SettingsError
from fieldguide.settings import TrainSettings
from fieldguide.train.sharded import own_numbers

if TYPE_CHECKING:
    from fieldguide.train.loop import Loop

GB = 1e9
STATES = 12  # bytes a trained weight: gradient and two moments in fp32
STATES_8BIT = 6  # gradient in fp32 and two moments in 8 bits


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one device."""

    weights: int  # of all weights, as they are held
    states: int  # gradients and optimizer
    batch: int  # what the worst batch added, measured; the gradients of its backward pass are among it
    peak: int  # most of the process (CPU) or of the device (GPU), measured after the worst batch
    limit: int
    rows: int  # of the worst batch
    tokens: int  # of it, padding included

    def in_words(self) -> str:
        """One line for the log."""
        return (
            f"memory: weights {self.weights / GB:.2f} GB, gradients and optimizer {self.states / GB:.2f} GB; "
            f"the worst batch ({self.rows} rows, {self.tokens} tokens) adds {self.batch / GB:.2f} GB: about "
            f"{(self.peak + self.states) / GB:.2f} of {self.limit / GB:.1f} GB"
        )


def plan_memory(loop: Loop, settings: TrainSettings) -> MemoryPlan:
    """Reckon, then run the longest batch forward and backward once; no weight or random state changes.

    Raises:
        SettingsError: when it will not fit, saying what to change.
    """
    device = loop.accelerator.device
    limit = int(settings.memory_limit_gb * GB) or memory_of(device)
    weights, states = reckon(loop.model, settings)
    if weights + states > limit:
        raise _too_much(weights + states, limit, settings, "the weights and the optimizer alone need")
    rows = loop.worst_batch()
    before = in_use(device)
    try:
        loop.dry_run(rows)
    except torch.OutOfMemoryError as error:
        raise _too_much(limit, limit, settings, "the longest batch needs more than") from error
    peak = peak_use(device)
    longest = max(row.visual + len(row.ids) for row in rows)
    plan = MemoryPlan(weights, states, max(0, peak - before), peak, limit, len(rows), longest * len(rows))
    if peak + states > limit:
        raise _too_much(peak + states, limit, settings, "the longest batch brings it to")
    return plan


def reckon(model: nn.Module, settings: TrainSettings) -> tuple[int, int]:
    """(bytes of the weights as they are held, bytes of gradients and optimizer states)"""
    weights = sum(own_numbers(t) * t.element_size() for t in (*model.parameters(), *model.buffers()))
    trained = sum(own_numbers(p) for p in model.parameters() if p.requires_grad)
    return weights, trained * (STATES if settings.optimizer == "adamw" else STATES_8BIT)


def _too_much(needed: int, limit: int, settings: TrainSettings, what: str) -> SettingsError:
    remedies = []
    if settings.batch_tokens > 1024 or settings.batch_size > 1:
        remedies.append("a smaller train.batch_size or train.batch_tokens (and a larger train.accumulate)")
    if not settings.gradient_checkpointing:
        remedies.append("train.gradient_checkpointing=true")
    if not settings.quantise and settings.language_part != "full":
        remedies.append("train.quantise=nf4")
    if settings.language_part == "full":
        remedies.append("train.language_part=lora")
    said = f"{what} {needed / GB:.2f} GB, and there are {limit / GB:.2f} GB on a device"
    return SettingsError(said, "try " + ", or ".join(remedies or ["a smaller model"]))


def memory_of(device: torch.device) -> int:
    """Bytes that a device has."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def in_use(device: torch.device) -> int:
    """Bytes in use now; the counter of the peak starts anew where that is possible."""
    gc.collect()  # what nobody holds any more would be freed during the measurement, and hide what is added
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.memory_allocated(device))
    try:  # Linux: forget the peak so far
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return peak_use(device)
    return _status("VmRSS") or peak_use(device)


def peak_use(device: torch.device) -> int:
    """Most bytes in use since `in_use`, or since the start where the counter cannot be set back."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(name: str) -> int:
    try:
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith(name):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
