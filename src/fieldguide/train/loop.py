"""The training loop: AdamW, cosine with warm-up, clipping, accumulation, early stopping, exact resume.

It trains what `requires_grad` says, and nothing else: asserted after the first step, certified at the end.
Everything random or scheduled follows from (seed, epoch, step), so a run that is killed at any moment and
resumed gives the same bits as one that was not (on the CPU, in fp32).

Several processes share each batch, row by row, and weigh their losses by the tokens of all of it: the step is
that of one process with the whole batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.nn.functional import cross_entropy

from fieldguide.errors import FieldguideError, ResumeError, SettingsError, Stopped
from fieldguide.model.local import LocalModel, Pictures
from fieldguide.progress import progress_bar
from fieldguide.settings import TrainSettings
from fieldguide.train import certificate
from fieldguide.train.batches import collate, epoch_order
from fieldguide.train.checkpoint import (
    CheckpointWriter,
    Progress,
    check_identity,
    checkpoints,
    load_checkpoint,
    load_tensors,
    random_state,
    save_tensors,
    set_random_state,
    state_tensors,
    trained,
)
from fieldguide.train.logs import StepLog
from fieldguide.train.processes import Processes, StopSignal
from fieldguide.train.rows import Row, in_words
from fieldguide.train.sharded import Shards, all_whole, check_shard, put
from fieldguide.train.sharing import PATIENCE, on_cpus

START = "start.safetensors"  # before the first step: trained parameters, and what the warm start solved
EPOCHS_TRIED = 8  # for the largest batch: captions and reasons take turns
BEST = "best.safetensors"  # trained parameters of the best epoch


@dataclass(frozen=True)
class TrainResult:
    """What training did. `model` in place holds the best epoch's parameters."""

    progress: Progress
    parts: dict[str, dict[str, int]]  # parameters and trained parameters of each part
    changes: dict[str, dict[str, Any]]  # how far each trained part moved
    frozen_unchanged: bool
    seconds: float  # of this run; a resumed one counts from its resume

    def record(self) -> dict[str, Any]:
        """What a guide remembers of it."""
        progress = self.progress
        return {
            "epochs": progress.epoch,
            "best_epoch": progress.best_epoch + 1,
            "steps": progress.step,
            "supervised_tokens": progress.supervised_tokens,
            "seconds": round(self.seconds, 1),
            "parts": self.parts,
            "changes": self.changes,
            "frozen_parts_unchanged": self.frozen_unchanged,
            "history": progress.history,
        }


class Loop:
    """One training run in `folder` (its checkpoints).

    Args:
        model: projector and language model with its adapter; `requires_grad` says what trains.
        rows_of: the rows of an epoch; must depend on the epoch alone.
        pictures: of the training examples, `Row.picture` numbers them; they may be read only when asked for.
        validate: {"loss": …, "accuracy": …} of the validation pictures; None when there are none.
        question: the words before the picture.
        identity: what a checkpoint belongs to: data, settings and weights; resume refuses another.
        make_optimizer: from parameter groups; None for AdamW.
        precision: of the arithmetic outside the trained weights: fp32, bf16 or fp16.
    """

    def __init__(
        self,
        model: LocalModel,
        rows_of: Callable[[int], Sequence[Row]],
        pictures: Pictures,
        validate: Callable[[], dict[str, float]] | None,
        folder: Path,
        settings: TrainSettings,
        question: str,
        identity: dict[str, Any],
        announce: Callable[[str], None] = print,
        make_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None = None,
        precision: str = "fp32",
    ) -> None:
        self.rows_of, self.validate, self.folder = rows_of, validate, folder
        self.settings, self.question, self.precision = settings, question, precision
        # Not every row has a picture, so not every step reaches every trained weight.
        unused = DistributedDataParallelKwargs(find_unused_parameters=True, gradient_as_bucket_view=True)
        patient = InitProcessGroupKwargs(timeout=PATIENCE)
        mixed = {"fp32": "no"}.get(precision, precision)
        # The state is the process's, and one that trained before in another precision would refuse this one.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            cpu=on_cpus(), mixed_precision=mixed, kwargs_handlers=[unused, patient]
        )
        self.processes = Processes(self.accelerator)
        self.identity = {**identity, "processes": self.processes.count}
        self.announce = announce if self.processes.first else _nothing
        self.shards = self._shards(model)
        groups = _groups(model, settings)
        weight_decay = settings.weight_decay
        optimizer = (
            make_optimizer(groups) if make_optimizer else torch.optim.AdamW(groups, weight_decay=weight_decay)
        )
        self.model: Any = model
        if self.shards:
            self.wrapped, self.optimizer = self.model, self.accelerator.prepare(optimizer)
        else:
            self.wrapped, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.pictures = pictures.to(self.accelerator.device)
        behind = self.accelerator.device.type != "cpu"
        self.checkpoints = CheckpointWriter(folder, settings.keep, behind)
        self._unproved = False  # whether it is still to be shown that a step moves what trains
        self.log = StepLog(folder.parent / "log", settings.log_to if self.processes.first else None)
        self.steps_an_epoch = math.ceil(len(self._order(rows_of(0), 0)) / settings.accumulate)

    def _shards(self, model: Any) -> Shards | None:
        """The model, sharded, where that is asked for and there are several processes."""
        if not self.settings.shard:
            return None
        check_shard(model, self.settings, self.precision)
        if self.processes.count == 1:
            self.announce("train.shard: there is one process, which holds everything")
            return None
        shards = Shards(model, self.accelerator.device.type, self.processes.count)
        if shards.trains_tower and not all(row.visual for row in self.rows_of(0)):
            raise SettingsError(
                "train.shard: a vision tower that trains needs a picture in every row",
                "leave out the rows without one, or freeze it (train.vision_part=frozen)",
            )
        count = self.processes.count
        self.announce(f"weights, gradients and optimizer are sharded over {count} processes (FSDP2)")
        return shards

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
        self.log.open(progress.step, self._about())
        parts = certificate.parts(self.model)
        self.announce(certificate.before_in_words(parts))
        before = load_tensors(self.folder / START)
        frozen = certificate.frozen_hash(self.model)
        with (
            progress_bar("steps", shown=self.processes.first) as bar,
            StopSignal() as stop,
            ExitStack() as ends,
        ):
            ends.callback(self.log.close)
            ends.callback(self.checkpoints.finish)
            task = bar.add_task("training", total=self.total_steps, completed=progress.step)
            while not progress.stopped:
                self._epoch(progress, before, lambda: bar.advance(task), stop)
                self._close_epoch(progress)
        if (self.folder / BEST).exists():
            self._load_parameters(load_tensors(self.folder / BEST))
        if certificate.frozen_hash(self.model) != frozen:
            raise FieldguideError("training changed weights that are frozen, so no guide is made of it")
        changes = certificate.weight_changes(self.model, before)
        self.announce(certificate.after_in_words(changes, progress.supervised_tokens))
        return TrainResult(progress, parts, changes, True, time.perf_counter() - began)

    def _about(self) -> dict[str, Any]:
        """What holds for the whole training: the first line of its log."""
        attention = getattr(self.model.decoder.config, "_attn_implementation", None)
        return {
            "precision": self.precision,
            "attention": attention or "",
            "device": self.accelerator.device.type,
            "processes": self.processes.count,
            "steps": self.total_steps,
        }

    def worst_batch(self) -> list[Row]:
        """The rows of the batch that takes most memory, of the epochs that differ."""
        batches = []
        for epoch in range(min(self.settings.epochs, EPOCHS_TRIED)):
            rows = self.rows_of(epoch)
            batches += [[rows[i] for i in numbers] for numbers in self._order(rows, epoch)]
        return max(batches, key=lambda rows: len(rows) * max(row.visual + len(row.ids) for row in rows))

    def dry_run(self, rows: Sequence[Row]) -> None:
        """Forward and backward pass of a batch; gradients and random states are as before."""
        states = random_state()
        self.model.train()
        try:
            self._backward(rows, sum(row.targets for row in rows))
        finally:
            self.optimizer.zero_grad()
            set_random_state(states)

    def _begin(self) -> Progress:
        if checkpoints(self.folder):
            raise ResumeError(
                f"{self.folder}: holds an unfinished or finished training",
                "continue it with --resume, or choose another folder",
            )
        torch.manual_seed(self.settings.seed)  # for dropout
        begins = {**all_whole(trained(self.model), self.processes.first), **self._solved()}
        if self.processes.first:
            save_tensors(self.folder / START, begins)
            (self.folder / BEST).unlink(missing_ok=True)  # of a run that never reached a checkpoint
        self.processes.wait()
        self._unproved = True
        example = in_words(self.rows_of(0)[-1], self.model.prompt)
        self.announce(f"learns what stands in ⟦⟧, such as {example!r}")
        return Progress()

    def _resume(self) -> Progress:
        found = checkpoints(self.folder)
        if not found:
            raise ResumeError(f"{self.folder}: no checkpoint to resume", "train without --resume")
        check_identity(found[-1], self.identity)
        progress = load_checkpoint(found[-1], self.model, self.optimizer.optimizer, self.processes.number)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(progress.scaler)
        # The warm start may have been solved with other last bits this time (threads, library).
        start = load_tensors(self.folder / START)
        with torch.no_grad():
            for name, tensor in self._solved().items():
                tensor.copy_(start[name])
        self.announce(f"resuming at step {progress.step} of {self.total_steps}")
        return progress

    def _solved(self) -> dict[str, Tensor]:
        """What the warm start gave and training only reads: the projector's map, left-out evidence."""
        projector = getattr(self.model, "projector", None)
        buffers = projector.named_buffers() if projector is not None else ()
        solved = {f"projector.{name}": buffer for name, buffer in buffers}
        evidence = getattr(self.pictures, "evidence", None)
        return solved if evidence is None else {**solved, "evidence": evidence}

    def _epoch(
        self, progress: Progress, before: dict[str, Tensor], advance: Callable[[], None], stop: StopSignal
    ) -> None:
        settings = self.settings
        rows = self.rows_of(progress.epoch)
        order = self._order(rows, progress.epoch)
        self.model.train()
        while progress.batch < len(order):
            window = order[progress.batch : progress.batch + settings.accumulate]
            tokens = sum(rows[i].targets for numbers in window for i in numbers)
            began, lost = time.perf_counter(), 0.0
            for place, numbers in enumerate(window):
                last = place == len(window) - 1
                with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                    lost += self._backward([rows[i] for i in numbers], tokens)
            progress.epoch_loss += lost
            norms = self._step(progress, [rows[i].name for numbers in window for i in numbers])
            progress.batch += len(window)
            progress.supervised_tokens += tokens
            seen = {i for numbers in window for i in numbers}
            # A step of words only, in a training that also has pictures, moves nothing but the language part.
            words_only = any(row.visual for row in rows) and not any(rows[i].visual for i in seen)
            if self._unproved and not words_only and not self.optimizer.step_was_skipped:
                certificate.check_first_step(self.model, before)
                self._unproved = False
            self.log.step(
                progress.step,
                lost,
                norms,
                self._rates(),
                tokens,
                sum(map(len, window)),
                time.perf_counter() - began,
            )
            advance()
            stopping = self.processes.any(stop.asked)
            due = progress.step % settings.checkpoint_every == 0 or stopping
            if due and progress.batch < len(order):
                self._save(progress)
            if stopping:
                if progress.batch == len(order):
                    self._close_epoch(progress)
                self.checkpoints.finish()
                self.processes.wait()  # who leaves first has the launcher end the others
                raise Stopped(
                    f"stopped after step {progress.step} of {self.total_steps}, and saved",
                    "run the same command with --resume to go on",
                )

    def _backward(self, rows: Sequence[Row], tokens: int) -> float:
        """Add the gradient of one batch; its loss, over all processes."""
        mine = self.processes.share(rows)
        learnt = sum(row.targets for row in mine)
        batch = collate([*mine, *self._beside(mine, rows)], self.accelerator.device)
        pictures = self.pictures.rows(batch.pictures)
        with self.accelerator.autocast() if self.shards else nullcontext():
            logits = self.wrapped(self.question, pictures, batch.ids, batch.supervised)
        # Summed over tokens, divided once: accumulating gives the gradient of the joined batch.
        loss = cross_entropy(logits[:learnt].float(), batch.targets[:learnt], reduction="sum") / tokens
        if learnt < len(logits):  # rows that this process reads only to keep step with the others
            loss = loss + 0 * logits[learnt:].float().sum()
        # The sum is none in all processes when it is in one: none is left waiting for another that gave up.
        total = self.processes.sum(loss.item())
        self._check("loss", total, [row.name for row in rows])
        # Processes average their gradients, so each counts as often as there are processes.
        self.accelerator.backward(loss * self.processes.count)
        return total

    def _beside(self, mine: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
        """Rows of a batch that this process reads without learning from them, so that all processes do alike.

        One has no row of its own where there are fewer rows than processes; and of a sharded model the
        gradient takes another way through the layers where no picture comes in.
        """
        if not mine:
            return [next((row for row in rows if row.visual), rows[0])]
        shown = [row for row in rows if row.visual]
        return shown[:1] if self.shards and shown and not any(row.visual for row in mine) else []

    def _order(self, rows: Sequence[Row], epoch: int) -> list[list[int]]:
        settings = self.settings
        lengths = [row.visual + len(row.ids) for row in rows]
        return epoch_order(lengths, settings.batch_size, settings.batch_tokens, settings.seed, epoch)

    def _check(self, what: str, value: float, names: list[str]) -> None:
        if not math.isfinite(value):
            raise FieldguideError(
                f"the {what} became {value} at a batch with {', '.join(names[:3])}",
                "lower train.learning_rate; the last checkpoint is whole",
            )

    def _step(self, progress: Progress, names: list[str]) -> dict[str, float]:
        """One step of the optimizer; the gradient's norm of each part before clipping."""
        factor = learning_rate_factor(progress.step, self.total_steps, self.settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        scaler = self.accelerator.scaler  # of fp16: it leaves out a step that overflows, and halves the scale
        if scaler is not None:
            scaler.unscale_(self.optimizer.optimizer)
        if self.shards is not None:
            norms = self.shards.norms(self.processes.sum)
            norm = math.hypot(*norms.values())
            self.shards.clip(norm, self.settings.clip)
        else:
            norms = self.log.norms(self.model)
            parameters = list(trained(self.model).values())
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip).item()
        if scaler is None:
            self._check("gradient", norm, names)
        self.optimizer.step()
        self.optimizer.zero_grad()
        progress.step += 1
        return norms

    def _rates(self) -> dict[str, float]:
        return {group["name"]: float(group["lr"]) for group in self.optimizer.param_groups}

    def _close_epoch(self, progress: Progress) -> None:
        """Validate, keep the best, decide whether to stop, and write a checkpoint."""
        entry: dict[str, Any] = {"epoch": progress.epoch, "step": progress.step}
        entry["loss"] = progress.epoch_loss / math.ceil(progress.batch / self.settings.accumulate)
        self.model.eval()
        if self.validate is not None:
            # Processes may differ in the last bits; what they decide by these figures must be the same.
            # In the arithmetic of training: a part that trains is held in fp32 beside others in 16 bits.
            with self.accelerator.autocast(), self.shards.readable() if self.shards else nullcontext():
                measured = self.processes.agreed(self.validate())
            entry.update({f"validation_{key}": value for key, value in measured.items()})
        value = entry.get("validation_loss", entry["loss"])
        if not math.isfinite(value):
            raise FieldguideError(
                f"the validation loss became {value} in epoch {progress.epoch + 1}",
                "lower train.learning_rate; the last checkpoint is whole",
            )
        if progress.best_loss is None or value < progress.best_loss:
            progress.best_loss, progress.best_epoch, progress.bad_epochs = value, progress.epoch, 0
            best = all_whole(trained(self.model), self.processes.first)
            if self.processes.first:
                save_tensors(self.folder / BEST, best)
        else:
            progress.bad_epochs += 1
        progress.history.append(entry)
        self.log.epoch(entry)
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
        began = time.perf_counter()
        if self.accelerator.scaler is not None:
            progress.scaler = self.accelerator.scaler.state_dict()
        states = self.processes.random_states()
        if self.processes.first or self.shards:
            first = self.processes.first
            tensors = state_tensors(self.model, self.optimizer.optimizer, states, keep=first)
        if self.processes.first:
            self.checkpoints.save(tensors, progress, self.identity)
        self.processes.wait()
        self.log.saved(progress.step, time.perf_counter() - began)

    def _load_parameters(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in trained(self.model).items():
            put(parameter, tensors[name])


def _groups(model: LocalModel, settings: TrainSettings) -> list[dict[str, Any]]:
    """The trained parameters by learning rate: a projector's, and that of all else.

    Raises:
        FieldguideError: when nothing trains.
    """
    rates = {"projector": settings.projector_learning_rate, "adapter": settings.learning_rate}
    found: dict[str, list[Any]] = {"adapter": [], "projector": []}
    for name, parameter in trained(model).items():
        projector = model.part_of(name).startswith("projector") and "lora_" not in name
        found["projector" if projector else "adapter"].append(parameter)
    groups = [
        {"params": parameters, "lr": rates[name], "peak": rates[name], "name": name}
        for name, parameters in found.items()
        if parameters
    ]
    if not groups:
        raise FieldguideError("nothing to train: every parameter is frozen")
    return groups


def _nothing(line: str) -> None:
    """Other processes than the first say nothing."""


def learning_rate_factor(step: int, total: int, warmup: float) -> float:
    """Linear warm-up, then half a cosine to 0 (Loshchilov, Hutter 2017).

    Args:
        warmup: share of the steps; from 1 on, their number.
    """
    rising = max(1, round(warmup if warmup >= 1 else warmup * total))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1, total - rising))))
