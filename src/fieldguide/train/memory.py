"""What training will need of memory, before it starts: reckoned, then tried on the worst batch.

A run that dies of memory an hour later is worse than one that is refused now, with what to change.
"""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch
from torch import nn

from fieldguide.errors import SettingsError
from fieldguide.settings import TrainSettings
from fieldguide.train.sharded import own_numbers

if TYPE_CHECKING:
    from fieldguide.train.loop import Loop

GB = 1e9
STATES = 12  # bytes a trained weight: gradient and two moments in fp32
SLACK = 32 << 20  # bytes by which the kernel's two counts of resident memory may differ
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
    try:
        with MemoryUse(device) as use:
            loop.dry_run(rows)
    except torch.OutOfMemoryError as error:
        raise _too_much(limit, limit, settings, "the longest batch needs more than") from error
    peak = use.most
    longest = max(row.visual + len(row.ids) for row in rows)
    plan = MemoryPlan(weights, states, peak - use.before, peak, limit, len(rows), longest * len(rows))
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


class MemoryUse:
    """What is in use before and most while a block runs: `with MemoryUse(device) as use: ...; use.most`.

    On a CPU it is the process's resident memory. Linux keeps its peak, which can be set back on most kernels;
    elsewhere, and where the kernel refuses, a thread looks every 5 ms, and a shorter peak can be missed.
    """

    LOOK = 0.005  # seconds

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = self.most = 0
        self._process = psutil.Process()
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryUse:
        gc.collect()  # what nobody holds would be freed during the measurement, and hide what is added
        give_back_free_memory()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = self.most = int(torch.cuda.memory_allocated(self.device))
            return self
        self.before = self.most = self._process.memory_info().rss
        self._forgot = forget_peak() and kept_peak() <= self.before + SLACK
        if not self._forgot:
            self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.most = int(torch.cuda.max_memory_allocated(self.device))
        elif self._forgot:
            self.most = max(self.most, kept_peak())
        else:
            self._over.set()
            self._watcher.join()

    def _watch(self) -> None:
        while True:
            self.most = max(self.most, self._process.memory_info().rss)
            if self._over.wait(self.LOOK):
                return


def give_back_free_memory() -> None:
    """Have the C library return what it keeps for later: a batch that fits in there seems to add nothing."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # not glibc
        return


def forget_peak() -> bool:
    """Ask the kernel to count this process's peak of memory anew; False where it cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def kept_peak() -> int:
    """The kernel's count of this process's peak, bytes; 0 where it keeps none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)
