"""Two real processes train as one does, resume exactly, and stop when the system asks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = """
import sys, time
from pathlib import Path
from fieldguide.settings import TrainSettings
from fieldguide.testing import tiny_features, tiny_model
from fieldguide.train.loop import Loop
from fieldguide.train.rows import label_row

folder, resume, slow = Path(sys.argv[1]), sys.argv[2] == "resume", float(sys.argv[3])
labels = ["ox", "cat", "catfish"]
model = tiny_model(labels, lora_rank=2)
rows = [label_row(model.prompt, i, labels[i % 3], str(i)) for i in range(13)]

def rows_of(epoch):
    time.sleep(slow)
    return rows

settings = TrainSettings(epochs=3, batch_size=4, checkpoint_every=1, patience=0, learning_rate=1e-2)
pictures, place = tiny_features(model, 13), folder / "checkpoints"
loop = Loop(model, rows_of, pictures, None, place, settings, "What?", {"data": 1})
step = loop._step
def waits(*arguments):
    time.sleep(slow)
    return step(*arguments)
loop._step = waits
loop.run(resume=resume)
print("done", flush=True)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


def command(script: Path, processes: int, folder: Path, *arguments: str) -> list[str]:
    launch = [] if processes == 1 else ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    if launch:
        launch += ["--master-port", str(20000 + os.getpid() % 20000)]
    return [sys.executable, *launch, str(script), str(folder), *arguments]


def train(script: Path, processes: int, folder: Path, *, resume: bool = False) -> dict[str, torch.Tensor]:
    verb = "resume" if resume else "begin"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command(script, processes, folder, verb, "0"),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return parameters(folder)


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    last = max((folder / "checkpoints").glob("step-*"))
    tensors = load_file(last / "tensors.safetensors")
    return {name: t for name, t in tensors.items() if name.startswith("parameter/")}


def begin(script: Path, processes: int, folder: Path, steps: int) -> subprocess.Popen[str]:
    """A slow training, some steps in."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        command(script, processes, folder, "begin", "0.3"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True,
    )  # fmt: skip
    end = time.monotonic() + 120
    while not (folder / "checkpoints" / f"step-{steps:06d}" / "state.json").exists():
        assert process.poll() is None, process.stderr.read()  # type: ignore[union-attr]
        assert time.monotonic() < end
        time.sleep(0.01)
    return process


def test_two_processes_give_the_weights_of_one_and_resume_exactly(script: Path, tmp_path: Path) -> None:
    """Thirteen rows in batches of four: the last batch has one row, and one process has none of it."""
    one, two = train(script, 1, tmp_path / "one"), train(script, 2, tmp_path / "two")
    assert one.keys() == two.keys()
    for name in one:
        assert torch.allclose(one[name], two[name], atol=1e-5), name
    process = begin(script, 2, tmp_path / "killed", steps=2)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    again = train(script, 2, tmp_path / "killed", resume=True)
    assert all(torch.equal(again[name], two[name]) for name in two)


def test_another_number_of_processes_is_refused(script: Path, tmp_path: Path) -> None:
    train(script, 1, tmp_path / "one")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command(script, 2, tmp_path / "one", "resume", "0"),
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "processes: was 1, is 2" in done.stderr


def test_sigterm_saves_and_the_resumed_weights_are_the_same_bits(script: Path, tmp_path: Path) -> None:
    whole = train(script, 1, tmp_path / "whole")
    process = begin(script, 1, tmp_path / "stopped", steps=2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Stopped: stopped after step" in errors
    assert "--resume" in errors
    again = train(script, 1, tmp_path / "stopped", resume=True)
    assert all(torch.equal(again[name], whole[name]) for name in whole)
