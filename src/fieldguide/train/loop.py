"""The training loop: AdamW, cosine with warm-up, clipping, accumulation, early stopping, exact resume.

It trains what `requires_grad` says, and nothing else: asserted after the first step, certified at the end.
Everything random or scheduled follows from (seed, epoch, step), so a run that is killed at any moment and
resumed gives the same bits as one that was not (on the CPU, in fp32).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import cross_entropy

from fieldguide.errors import FieldguideError, ResumeError
from fieldguide.model.assemble import Assembled
from fieldguide.model.projector import PictureFeatures
from fieldguide.progress import progress_bar
from fieldguide.settings import TrainSettings
from fieldguide.train import certificate
from fieldguide.train.batches import collate, epoch_order
from fieldguide.train.checkpoint import (
    Progress,
    check_identity,
    checkpoints,
    keep_last,
    load_checkpoint,
    load_tensors,
    save_checkpoint,
    save_tensors,
    trained,
)
from fieldguide.train.rows import Row, in_words

START = "start.safetensors"  # before the first step: trained parameters, and what the warm start solved
BEST = "best.safetensors"  # trained parameters of the best epoch


@dataclass(frozen=True)
class TrainResult:
    """What training did. `model` in place holds the best epoch's parameters."""

    progress: Progress
    parts: dict[str, dict[str, int]]  # parameters and trained parameters of each part
    changes: dict[str, dict[str, Any]]  # how far each trained part moved
    frozen_unchanged: bool
    seconds: float  # of this run; a resumed one counts from its resume


class Loop:
    """One training run in `folder` (its checkpoints).

    Args:
        model: projector and language model with its adapter; `requires_grad` says what trains.
        rows_of: the rows of an epoch; must depend on the epoch alone.
        features: of the training pictures, `Row.picture` numbers them.
        validate: {"loss": …, "accuracy": …} of the validation pictures; None when there are none.
        question: the words before the picture.
        identity: what a checkpoint belongs to: data, settings and weights; resume refuses another.
    """

    def __init__(
        self,
        model: Assembled,
        rows_of: Callable[[int], Sequence[Row]],
        features: PictureFeatures,
        validate: Callable[[], dict[str, float]] | None,
        folder: Path,
        settings: TrainSettings,
        question: str,
        identity: dict[str, Any],
        announce: Callable[[str], None] = print,
    ) -> None:
        self.rows_of, self.validate, self.folder = rows_of, validate, folder
        self.settings, self.question, self.identity, self.announce = settings, question, identity, announce
        adapter = [p for name, p in trained(model).items() if not name.startswith("projector.")]
        projector = [p for name, p in trained(model).items() if name.startswith("projector.")]
        if not adapter and not projector:
            raise FieldguideError("nothing to train: every parameter is frozen")
        groups = [
            {"params": adapter, "lr": settings.learning_rate, "peak": settings.learning_rate},
            {"params": projector, "lr": 0.0, "peak": settings.projector_learning_rate},
        ]
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=settings.weight_decay)
        self.accelerator = Accelerator()
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.features = features.to(self.accelerator.device)
        self.steps_an_epoch = math.ceil(len(self._order(rows_of(0), 0)) / settings.accumulate)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all epochs, taking each to be as long as the first."""
        return self.steps_an_epoch * self.settings.epochs

    def run(self, *, resume: bool = False) -> TrainResult:
        """Train to the end, from the beginning or from the last checkpoint.

        Raises:
            ResumeError: when there is nothing to resume, or it belongs to other data, settings or weights.
            FieldguideError: when something that is frozen has changed, or a number is none.
        """
        began = time.perf_counter()
        progress = self._resume() if resume else self._begin()
        parts = certificate.parts(self.model)
        self.announce(certificate.before_in_words(parts))
        before = load_tensors(self.folder / START)
        frozen = certificate.frozen_hash(self.model)
        with progress_bar("steps") as bar:
            task = bar.add_task("training", total=self.total_steps, completed=progress.step)
            while not progress.stopped:
                self._epoch(progress, before, lambda: bar.advance(task))
                self._close_epoch(progress)
        if (self.folder / BEST).exists():
            self._load_parameters(load_tensors(self.folder / BEST))
        if certificate.frozen_hash(self.model) != frozen:
            raise FieldguideError("training changed weights that are frozen, so no guide is made of it")
        changes = certificate.weight_changes(self.model, before)
        self.announce(certificate.after_in_words(changes, progress.supervised_tokens))
        return TrainResult(progress, parts, changes, True, time.perf_counter() - began)

    def _begin(self) -> Progress:
        if checkpoints(self.folder):
            raise ResumeError(
                f"{self.folder}: holds an unfinished or finished training",
                "continue it with --resume, or choose another folder",
            )
        torch.manual_seed(self.settings.seed)  # for dropout
        save_tensors(self.folder / START, {**trained(self.model), **self._solved()})
        (self.folder / BEST).unlink(missing_ok=True)  # of a run that never reached a checkpoint
        example = in_words(self.rows_of(0)[-1], self.model.prompt)
        self.announce(f"learns what stands in ⟦⟧, such as {example!r}")
        return Progress()

    def _resume(self) -> Progress:
        found = checkpoints(self.folder)
        if not found:
            raise ResumeError(f"{self.folder}: no checkpoint to resume", "train without --resume")
        check_identity(found[-1], self.identity)
        progress = load_checkpoint(found[-1], self.model, self.optimizer.optimizer)
        # The warm start may have been solved with other last bits this time (threads, library).
        start = load_tensors(self.folder / START)
        with torch.no_grad():
            for name, tensor in self._solved().items():
                tensor.copy_(start[name])
        self.announce(f"resuming at step {progress.step} of {self.total_steps}")
        return progress

    def _solved(self) -> dict[str, Tensor]:
        """What the warm start gave and training only reads: the projector's map, left-out evidence."""
        solved = {f"projector.{name}": buffer for name, buffer in self.model.projector.named_buffers()}
        if self.features.evidence is not None:
            solved["evidence"] = self.features.evidence
        return solved

    def _epoch(self, progress: Progress, before: dict[str, Tensor], advance: Callable[[], None]) -> None:
        settings = self.settings
        rows = self.rows_of(progress.epoch)
        order = self._order(rows, progress.epoch)
        self.model.train()
        while progress.batch < len(order):
            window = order[progress.batch : progress.batch + settings.accumulate]
            tokens = sum(rows[i].targets for numbers in window for i in numbers)
            for numbers in window:
                batch = collate([rows[i] for i in numbers], self.accelerator.device)
                pictures = self.features.rows(batch.pictures)
                logits = self.model(self.question, pictures, batch.ids, batch.supervised)
                # Summed over tokens, divided once: accumulating gives the gradient of the joined batch.
                loss = cross_entropy(logits, batch.targets, reduction="sum") / tokens
                self._check("loss", loss, [rows[i].name for i in numbers])
                self.accelerator.backward(loss)
                progress.epoch_loss += loss.item()
            self._step(progress, [rows[i].name for numbers in window for i in numbers])
            progress.batch += len(window)
            progress.supervised_tokens += tokens
            if progress.step == 1:
                certificate.check_first_step(self.model, before)
            advance()
            if progress.step % settings.checkpoint_every == 0 and progress.batch < len(order):
                self._save(progress)

    def _order(self, rows: Sequence[Row], epoch: int) -> list[list[int]]:
        settings = self.settings
        lengths = [len(row.ids) for row in rows]
        return epoch_order(lengths, settings.batch_size, settings.batch_tokens, settings.seed, epoch)

    def _check(self, what: str, value: Tensor, names: list[str]) -> None:
        if not torch.isfinite(value):
            raise FieldguideError(
                f"the {what} became {value.item()} at a batch with {', '.join(names[:3])}",
                "lower train.learning_rate; the last checkpoint is whole",
            )

    def _step(self, progress: Progress, names: list[str]) -> None:
        factor = learning_rate_factor(progress.step, self.total_steps, self.settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        norm = self.accelerator.clip_grad_norm_(list(trained(self.model).values()), self.settings.clip)
        self._check("gradient", torch.as_tensor(norm), names)
        self.optimizer.step()
        self.optimizer.zero_grad()
        progress.step += 1

    def _close_epoch(self, progress: Progress) -> None:
        """Validate, keep the best, decide whether to stop, and write a checkpoint."""
        entry: dict[str, Any] = {"epoch": progress.epoch, "step": progress.step}
        entry["loss"] = progress.epoch_loss / math.ceil(progress.batch / self.settings.accumulate)
        self.model.eval()
        if self.validate is not None:
            entry.update({f"validation_{key}": value for key, value in self.validate().items()})
        value = entry.get("validation_loss", entry["loss"])
        if not math.isfinite(value):
            raise FieldguideError(
                f"the validation loss became {value} in epoch {progress.epoch + 1}",
                "lower train.learning_rate; the last checkpoint is whole",
            )
        if progress.best_loss is None or value < progress.best_loss:
            progress.best_loss, progress.best_epoch, progress.bad_epochs = value, progress.epoch, 0
            save_tensors(self.folder / BEST, dict(trained(self.model)))
        else:
            progress.bad_epochs += 1
        progress.history.append(entry)
        told = ", ".join(
            f"{key.replace('_', ' ')} {value:.3f}"
            for key, value in entry.items()
            if key not in ("epoch", "step")
        )
        self.announce(f"epoch {progress.epoch + 1} of {self.settings.epochs}: {told}")
        progress.epoch, progress.batch, progress.epoch_loss = progress.epoch + 1, 0, 0.0
        tired = self.settings.patience and progress.bad_epochs >= self.settings.patience
        progress.stopped = bool(progress.epoch >= self.settings.epochs or tired)
        self._save(progress)

    def _save(self, progress: Progress) -> None:
        save_checkpoint(self.folder, self.model, self.optimizer.optimizer, progress, self.identity)
        keep_last(self.folder, self.settings.keep)

    def _load_parameters(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in trained(self.model).items():
                parameter.copy_(tensors[name])


def learning_rate_factor(step: int, total: int, warmup: float) -> float:
    """Linear warm-up over the first share of the steps, then half a cosine to 0 (Loshchilov, Hutter 2017)."""
    rising = max(1, round(warmup * total))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1, total - rising))))
