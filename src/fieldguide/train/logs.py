"""What training did, step by step: JSON lines beside the guide, and TensorBoard and others if asked.

`log/steps.jsonl` begins with a line about the whole training, and holds one line a step, an epoch and a
checkpoint. A resumed training cuts it back to the step it resumes from, so that no step stands there twice.
"""

from __future__ import annotations

import importlib.util
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import torch

from fieldguide.errors import SettingsError
from fieldguide.files import atomic_path
from fieldguide.model.local import LocalModel
from fieldguide.train.checkpoint import trained

PACKAGES = {"tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb"}


class StepLog:
    """Writes the log of one training.

    Args:
        folder: where `steps.jsonl` and TensorBoard's files go.
        to: "", or tensorboard, trackio or wandb; None where another process writes.

    Raises:
        SettingsError: when the package that was asked for is not installed.
    """

    def __init__(self, folder: Path, to: str | None) -> None:
        self.folder, self.to = folder, to
        if to and importlib.util.find_spec(PACKAGES[to]) is None:
            raise SettingsError(f"train.log_to={to} needs the package {PACKAGES[to]}", f"pip install {to}")
        self._file: TextIO | None = None
        self._board: Any = None

    def open(self, step: int, about: Mapping[str, Any] | None = None) -> None:
        """Begin, or go on after `step`.

        Args:
            about: of the first line: precision, attention, processes, …
        """
        if self.to is None:
            return
        path = self.folder / "steps.jsonl"
        kept = []
        if step and path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:  # the line that was being written when the process was killed
                    continue
                if entry.get("step", 0) <= step:
                    kept.append(line + "\n")
        with atomic_path(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        if about is not None and not kept:
            self._write("training", {"step": 0, **about})
        if self.to == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.folder), purge_step=step + 1)
        elif self.to:
            self._board = importlib.import_module(PACKAGES[self.to])
            run = self._run(begins=not kept)
            name = f"{self.folder.absolute().parent.name}-{run}"
            more = {"id": run, "dir": str(self.folder)} if self.to == "wandb" else {}
            self._board.init(
                project="fieldguide", name=name, resume="allow", config=dict(about or {}), **more
            )

    def _run(self, begins: bool) -> str:
        """The name under which a tracker knows this training, also after it was resumed."""
        path = self.folder / "run.txt"
        if begins or not path.is_file():
            with atomic_path(path) as temporary:
                temporary.write_text(uuid.uuid4().hex[:8], encoding="utf-8")
        return path.read_text(encoding="utf-8")

    def norms(self, model: LocalModel) -> dict[str, float]:
        """The gradient's norm of each part."""
        if self.to is None or self._file is None:
            return {}
        gradients: dict[str, list[torch.Tensor]] = {}
        for name, parameter in trained(model).items():
            if parameter.grad is not None:
                gradients.setdefault(model.part_of(name), []).append(parameter.grad.detach())
        return {
            part: float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(found)).float()))
            for part, found in gradients.items()
        }

    def step(
        self,
        step: int,
        loss: float,
        norms: dict[str, float],
        rates: dict[str, float],
        tokens: int,
        rows: int,
        seconds: float,
    ) -> None:
        """One optimizer step.

        Args:
            loss: nats a supervised token.
            tokens, rows: supervised tokens and rows of the step.
        """
        values = {
            "loss": loss,
            **{f"gradient norm/{part}": norm for part, norm in norms.items()},
            **{f"learning rate/{name}": rate for name, rate in rates.items()},
            "supervised tokens": tokens,
            "tokens a second": tokens / seconds,
            "rows a second": rows / seconds,
            "seconds": seconds,
        }
        self._write("step", {"step": step, **values})
        self._show(step, values)

    def epoch(self, entry: dict[str, Any]) -> None:
        """The figures of an epoch."""
        self._write("epoch", entry)
        self._show(
            int(entry["step"]), {f"epoch/{k}": v for k, v in entry.items() if k not in ("step", "epoch")}
        )

    def saved(self, step: int, seconds: float) -> None:
        """A checkpoint: how long training stood still for it."""
        self._write("checkpoint", {"step": step, "seconds": seconds})

    def _write(self, kind: str, values: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps({"kind": kind, **values}) + "\n")

    def _show(self, step: int, values: dict[str, Any]) -> None:
        if self._board is None:
            return
        if self.to == "tensorboard":
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        else:
            self._board.log(values, step=step)

    def close(self) -> None:
        """Close files."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close() if self.to == "tensorboard" else self._board.finish()


def peak_memory(device: torch.device) -> int:
    """Bytes of the device's memory that were in use at most; 0 on a CPU."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else 0
