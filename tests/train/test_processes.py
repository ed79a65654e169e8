"""Two real processes train as one does, resume exactly, decide alike, and stop when the system asks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from fieldguide.errors import ResumeError, SettingsError
from fieldguide.files import read_json
from fieldguide.train.checkpoint import checkpoints
from fieldguide.train.processes import Processes

# What the processes run, and this one to compare: FOLDER begin|resume PAUSE HALT VARIANT …
# In the step HALT every process writes `halted-N` and waits for PAUSE seconds.
SCRIPT = """
import os, sys, time
from pathlib import Path
from fieldguide.errors import FieldguideError
from fieldguide.settings import TrainSettings
from fieldguide.testing import tiny_features, tiny_model
from fieldguide.train.loop import Loop
from fieldguide.train.rows import label_row

LABELS = ["ox", "cat", "catfish"]
NUMBER = int(os.environ.get("RANK", "0"))

def make(folder, variant="", halt=0, pause=0.0):
    model = tiny_model(LABELS, lora_rank=2, lora_dropout=0.1 if variant == "dropout" else 0.0)
    rows = [label_row(model.prompt, i, LABELS[i % 3], str(i)) for i in range(13)]
    sizes = {"batch_size": 1} if variant == "short" else {"batch_size": 4}
    settings = TrainSettings(
        epochs=6 if variant == "differ" else 3, checkpoint_every=1, learning_rate=1e-2,
        patience=2 if variant == "differ" else 0, accumulate=2 if variant == "accumulate" else 1, **sizes
    )
    losses = iter([1.0, 2.0, 3.0, 4.0, 5.0, 6.0] if NUMBER == 0 else [6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    validate = (lambda: {"loss": next(losses)}) if variant == "differ" else None
    place = folder / "checkpoints"
    features = tiny_features(model, 13)
    if variant == "none" and NUMBER == 1:
        features.pooled[:] = float("nan")
    loop = Loop(model, lambda epoch: rows, features, validate, place, settings, "What?", {"data": 1}, say)
    step = loop._step
    def waits(progress, names):
        if halt and progress.step + 1 == halt:
            (folder / f"halted-{NUMBER}").write_text(str(os.getpid()))
            time.sleep(pause)
        return step(progress, names)
    loop._step = waits
    return loop

def say(line):
    pass

def main(folder, verb, pause, halt, *variants):
    for variant in variants:
        place = Path(folder) / variant
        place.mkdir(parents=True, exist_ok=True)
        try:
            make(place, variant, int(halt), float(pause)).run(resume=verb == "resume")
        except FieldguideError as error:
            (place / f"error-{NUMBER}").write_text(f"{type(error).__name__}: {error}")
            if len(variants) == 1:
                sys.exit(getattr(error, "code", 1))

if __name__ == "__main__":
    main(*sys.argv[1:])
"""
VARIANTS = ("same", "short", "accumulate", "dropout", "differ", "none")
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "train.py"
    path.write_text(SCRIPT)
    return path


def start(script: Path, folder: Path, *arguments: str, processes: int = 2) -> subprocess.Popen[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, *(launch if processes > 1 else []), str(script), str(folder), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    said, _ = process.communicate(timeout=120)
    assert process.returncode == code, said[-3000:]
    return said


def halted(process: subprocess.Popen[str], folder: Path, count: int) -> list[int]:
    """The processes' numbers, once all of them stand in the middle of the step."""
    end = time.monotonic() + 120
    while len(found := [p for p in folder.glob("halted-*") if p.read_text()]) < count:
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < end
        time.sleep(0.01)
    numbers = [int(path.read_text()) for path in found]
    for path in found:
        path.unlink()
    return numbers


def here(script: Path, folder: Path, *arguments: str) -> None:
    """The same in this process, with one process and, as the others, with one thread."""
    names: dict[str, Any] = {"__name__": "train"}
    exec(compile(script.read_text(), script, "exec"), names)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        names["main"](str(folder), *arguments)
    finally:
        torch.set_num_threads(threads)


def state(folder: Path) -> Tensors:
    """Weights, moments and random states at the end."""
    return load_file(checkpoints(folder / "checkpoints")[-1] / "tensors.safetensors")


def progress(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(checkpoints(folder / "checkpoints")[-1] / "state.json")["progress"]
    return found


def same_bits(one: Path, other: Path) -> None:
    first, second = state(one), state(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert checkpoints(one / "checkpoints")[-1].name == checkpoints(other / "checkpoints")[-1].name


@pytest.fixture(scope="module")
def two(script: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every variant, trained by two processes one after the other."""
    folder = tmp_path_factory.mktemp("two")
    finish(start(script, folder, "begin", "0", "0", *VARIANTS))
    return folder


@pytest.mark.parametrize("variant", ["same", "short", "accumulate"])
def test_two_processes_give_the_weights_of_one(script: Path, two: Path, tmp_path: Path, variant: str) -> None:
    """Thirteen rows in batches of four: the last has one row, and one process none. `short`: all have one."""
    here(script, tmp_path, "begin", "0", "0", variant)
    one, both = state(tmp_path / variant), state(two / variant)
    names = [name for name in one if name.startswith("parameter/")]
    assert len(names) > 5
    assert max(float((both[name] - one[name]).abs().max()) for name in names) < 1e-5
    counts = [(p["step"], p["supervised_tokens"]) for p in map(progress, (tmp_path / variant, two / variant))]
    assert counts[0] == counts[1]


def test_processes_that_measure_otherwise_stop_together(two: Path) -> None:
    """The first sees its loss rise, the other sees it fall: both stop when the first has had enough."""
    reached = progress(two / "differ")
    assert (reached["epoch"], reached["best_epoch"], reached["stopped"]) == (3, 0, True)
    assert [entry["validation_loss"] for entry in reached["history"]] == [1.0, 2.0, 3.0]


def test_a_loss_that_is_none_in_one_process_ends_both(two: Path) -> None:
    for number in (0, 1):
        assert "the loss became nan at a batch with" in (two / "none" / f"error-{number}").read_text()


def test_killed_then_stopped_then_resumed_to_the_same_bits(script: Path, two: Path, tmp_path: Path) -> None:
    """SIGKILL of both in mid-epoch; SIGTERM of the launcher in mid-epoch; dropout is on."""
    folder = tmp_path / "dropout"
    process = start(script, tmp_path, "begin", "60", "3", "dropout")
    for number in halted(process, folder, 2):
        os.kill(number, signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode != 0
    assert checkpoints(folder / "checkpoints")[-1].name == "step-000002"

    process = start(script, tmp_path, "resume", "2", "7", "dropout")
    halted(process, folder, 2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode != 0
    assert checkpoints(folder / "checkpoints")[-1].name == "step-000007"
    for number in (0, 1):
        told = (folder / f"error-{number}").read_text()
        assert told.startswith("Stopped: stopped after step 7 of 12, and saved")
        assert "--resume" in told

    finish(start(script, tmp_path, "resume", "0", "0", "dropout"))
    same_bits(two / "dropout", folder)


def test_another_number_of_processes_is_refused(script: Path, two: Path) -> None:
    names: dict[str, Any] = {"__name__": "train"}
    exec(compile(script.read_text(), script, "exec"), names)
    with pytest.raises(ResumeError, match="processes: was 2, is 1"):
        names["make"](two / "same", "same").run(resume=True)


def test_sigterm_ends_the_step_saves_and_has_its_own_exit_code(script: Path, tmp_path: Path) -> None:
    here(script, tmp_path / "whole", "begin", "0", "0", "dropout")
    folder = tmp_path / "dropout"
    process = start(script, tmp_path, "begin", "2", "6", "dropout", processes=1)
    halted(process, folder, 1)
    process.send_signal(signal.SIGTERM)
    finish(process, 143)
    assert checkpoints(folder / "checkpoints")[-1].name == "step-000006"  # the step that it found under way
    told = (folder / "error-0").read_text()
    assert told.startswith("Stopped: stopped after step 6 of 12, and saved")
    assert "run the same command with --resume to go on" in told
    here(script, tmp_path, "resume", "0", "0", "dropout")
    same_bits(tmp_path / "whole" / "dropout", folder)


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_weights_that_are_split_are_refused_by_name(kind: DistributedType) -> None:
    accelerator: Any = SimpleNamespace(distributed_type=kind, num_processes=2, process_index=0)
    with pytest.raises(SettingsError, match=f"{kind.value} splits every weight"):
        Processes(accelerator)
