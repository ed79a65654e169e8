"""Checkpoints: everything that training needs to go on exactly, without pickle.

A checkpoint is a folder `step-000050/` that appears in one rename: `tensors.safetensors` (trained parameters,
optimizer moments, random state) and `state.json` (step, best value so far, history, and the identity of data,
settings and weights). The learning rate and the order of the rows follow from the step and the seed, so they
need no state. `start.safetensors` holds the parameters and the solved evidence that training began with.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fieldguide.errors import ResumeError
from fieldguide.files import atomic_folder, atomic_path, read_json, write_json
from fieldguide.train.sharded import put, share_like, whole

STEP_FOLDER = re.compile(r"step-(\d{6,})")
LEFT_BEHIND = re.compile(r"\.(step-\d{6,}|start|best)\..*\.(tmp|old)")  # by `atomic_folder`, `atomic_path`


@dataclass
class Progress:
    """How far training has come."""

    step: int = 0  # optimizer steps done
    epoch: int = 0  # the epoch under way
    batch: int = 0  # batches of that epoch already used
    best_epoch: int = -1
    best_loss: float | None = None  # of the validation pictures
    bad_epochs: int = 0  # epochs since the best
    stopped: bool = False  # training is complete
    supervised_tokens: int = 0
    epoch_loss: float = 0.0  # sum over the batches of the epoch under way
    history: list[dict[str, Any]] = field(default_factory=list)  # one entry an epoch
    scaler: dict[str, Any] = field(default_factory=dict)  # the scale of fp16 losses; {} for other arithmetic


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    identity: dict[str, Any],
    random_states: Sequence[dict[str, Tensor]] = (),
) -> Path:
    """Write `folder/step-N/`, whole or not at all.

    Args:
        random_states: of every process, in their order; () for this process alone.
    """
    tensors = state_tensors(model, optimizer, random_states)
    state = {"identity": identity, "progress": asdict(progress)}
    return _write(folder / f"step-{progress.step:06d}", tensors, state)


def state_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, random_states: Sequence[dict[str, Tensor]] = ()
) -> dict[str, Tensor]:
    """Trained parameters, optimizer and random states, whole, under the names that a checkpoint gives them.

    Where they are sharded, all processes must ask.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in trained(model).items():
        tensors[f"parameter/{name}"] = whole(parameter.detach())
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{key}/{name}"] = whole(torch.as_tensor(value))
    for number, state in enumerate(random_states or [random_state()]):
        tensors |= {f"random/{number}/{name}": value for name, value in state.items()}
    return tensors


def _write(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> Path:
    with atomic_folder(path) as temporary:
        save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, temporary / "tensors.safetensors")
        write_json(temporary / "state.json", state)
    return path


class CheckpointWriter:
    """Writes the checkpoints of one training, and deletes old ones.

    Args:
        folder: of the checkpoints.
        keep: how many stay.
        behind: whether training goes on while a copy of its state is written. On a GPU the copy is made
            anyway; on a CPU it would take memory and cores for a write that is short beside the steps.
    """

    def __init__(self, folder: Path, keep: int, behind: bool) -> None:
        self.folder, self.keep = folder, keep
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if behind else None
        self._running: Future[None] | None = None

    def save(self, tensors: dict[str, Tensor], progress: Progress, identity: dict[str, Any]) -> None:
        """Write what `state_tensors` gave; waits for the checkpoint before, whose errors are raised here."""
        self.finish()
        path = self.folder / f"step-{progress.step:06d}"
        state = {"identity": identity, "progress": asdict(progress)}
        if self._pool is None:
            self._write(path, tensors, state)
        else:
            copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
            self._running = self._pool.submit(self._write, path, copies, state)

    def finish(self) -> None:
        """Until the last checkpoint is whole.

        Raises:
            OSError: when it could not be written.
        """
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def _write(self, path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        _write(path, tensors, state)
        keep_last(self.folder, self.keep)


def random_state() -> dict[str, Tensor]:
    """The state of this process's random generators: of the CPU and of its own GPU."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_state(states: dict[str, Tensor]) -> None:
    """Put back what `random_state` gave."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, number: int = 0
) -> Progress:
    """Put a checkpoint's state into the model, the optimizer and the random generators of process `number`.

    Raises:
        ResumeError: when the set of trained parameters is another.
    """
    tensors = load_file(path / "tensors.safetensors")
    parameters = trained(model)
    saved = {name.removeprefix("parameter/") for name in tensors if name.startswith("parameter/")}
    if saved != set(parameters):
        other = sorted(saved ^ set(parameters))
        raise ResumeError(
            f"{path}: other parameters were trained there ({other[0]} and {len(other) - 1} more)"
        )
    for name, parameter in parameters.items():
        put(parameter, tensors[f"parameter/{name}"])
    for key, tensor in sorted(tensors.items()):  # in one order in all processes
        if key.startswith("optimizer/"):
            _, moment, name = key.split("/", 2)
            # AdamW keeps its step count on the CPU and the moments beside the parameter.
            place = tensor.clone() if moment == "step" else share_like(tensor, parameters[name])
            optimizer.state[parameters[name]][moment] = place
    begins = f"random/{number}/"
    set_random_state({k.removeprefix(begins): v for k, v in tensors.items() if k.startswith(begins)})
    return Progress(**read_json(path / "state.json")["progress"])


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if STEP_FOLDER.fullmatch(path.name)]
    return sorted((p for p in found if (p / "state.json").is_file()), key=lambda p: int(p.name[5:]))


def keep_last(folder: Path, count: int) -> None:
    """Delete all but the last `count` checkpoints, and what killed writes left behind."""
    for path in checkpoints(folder)[:-count]:
        shutil.rmtree(path)
    for path in folder.iterdir():
        if LEFT_BEHIND.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _flat(identity: dict[str, Any]) -> dict[str, Any]:
    """{"training settings": {"epochs": 2}} as {"training settings, epochs": 2}, so that one can be named."""
    flat: dict[str, Any] = {}
    for key, value in identity.items():
        inner = value if isinstance(value, dict) else {}
        flat |= {f"{key}, {name}": part for name, part in inner.items()} or {key: value}
    return flat


def check_identity(path: Path, identity: dict[str, Any]) -> None:
    """Refuse a checkpoint made with other data, settings or weights.

    Raises:
        ResumeError: naming each difference.
    """
    saved, identity = _flat(read_json(path / "state.json")["identity"]), _flat(identity)
    differences = [
        key for key in sorted(saved.keys() | identity.keys()) if saved.get(key) != identity.get(key)
    ]
    if differences:
        told = "; ".join(
            f"{key}: was {_short(saved.get(key))}, is {_short(identity.get(key))}" for key in differences
        )
        raise ResumeError(
            f"{path}: cannot resume, {told}",
            f"undo the change, train anew into another folder, or delete {path.parent}",
        )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "…"


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file, whole or not at all."""
    with atomic_path(path) as temporary:
        save_file({k: v.detach().contiguous().cpu().clone() for k, v in tensors.items()}, temporary)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """What `save_tensors` wrote."""
    return load_file(path)
