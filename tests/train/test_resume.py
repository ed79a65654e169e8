"""Training in processes that are killed by SIGKILL, and resumed: the result is that of an uninterrupted run.

Dropout, accumulation, reasons that rotate, a schedule, early stopping: all are on (see `tiny_training`).
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import tiny_training as tiny
import torch
from safetensors.torch import load_file

from fieldguide.files import read_json
from fieldguide.train.checkpoint import checkpoints

pytestmark = pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="needs processes that fork"
)
Start = Callable[..., BaseProcess]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """`start(folder, kill_at="")`: a process that trains. All fork from one that has PyTorch loaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiny_training"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        )
        patch.setenv("OMP_NUM_THREADS", "1")
        begun: list[BaseProcess] = []

        def begin(folder: Path, kill_at: str = "") -> BaseProcess:
            process = context.Process(target=tiny.train_in_process, args=(folder, kill_at))
            process.start()
            begun.append(process)
            return process

        yield begin
    for process in begun:
        process.kill()


def finished(process: BaseProcess) -> int | None:
    process.join(60)
    return process.exitcode


@pytest.fixture(scope="module")
def whole(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a training that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert finished(start(folder)) == 0
    assert [path.name for path in checkpoints(folder)] == ["step-000010", "step-000012"]
    return folder


def assert_same(folder: Path, whole: Path) -> None:
    """Best parameters and last checkpoint, with moments, random state and history, to the last bit."""
    assert [path.name for path in checkpoints(folder)] == [path.name for path in checkpoints(whole)]
    last = checkpoints(whole)[-1].name
    for name in ("start.safetensors", "best.safetensors", f"{last}/tensors.safetensors"):
        wanted, found = load_file(whole / name), load_file(folder / name)
        assert found.keys() == wanted.keys()
        for key, tensor in wanted.items():
            assert torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (found[key], tensor))), key
    assert read_json(folder / last / "state.json") == read_json(whole / last / "state.json")
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("moment", "left"),
    [
        ("step 1", None),  # before the first checkpoint: nothing to resume, so it begins again
        ("step 7", "step-000006"),  # in the middle of an epoch, between two checkpoints
        ("state 3", "step-000004"),  # in the middle of an epoch, while a checkpoint is written
        ("best 2", "step-000006"),  # the best parameters are newer than the last checkpoint
    ],
)
def test_killed_at_a_bad_moment(
    start: Start, whole: Path, tmp_path: Path, moment: str, left: str | None
) -> None:
    """Case 11: bit-identical after a restart, also from the middle of an epoch."""
    assert finished(start(tmp_path, moment)) == -signal.SIGKILL
    found = checkpoints(tmp_path)
    assert (found[-1].name if found else None) == left
    assert finished(start(tmp_path)) == 0
    assert_same(tmp_path, whole)


def test_killed_again_and_again_from_outside(start: Start, whole: Path, tmp_path: Path) -> None:
    pause, kills = random.Random(0), 0
    for _ in range(4):
        seen = len(checkpoints(tmp_path)) and checkpoints(tmp_path)[-1].name
        process = start(tmp_path)
        while process.is_alive() and (not checkpoints(tmp_path) or checkpoints(tmp_path)[-1].name == seen):
            time.sleep(0.002)
        time.sleep(pause.uniform(0, 0.05))
        process.kill()
        kills += finished(process) == -signal.SIGKILL
    assert kills >= 2
    assert finished(start(tmp_path)) == 0
    assert_same(tmp_path, whole)


def test_another_seed_gives_another_training(start: Start, whole: Path, tmp_path: Path) -> None:
    """What the comparisons above would not show if nothing depended on anything."""
    tiny.make_loop(tmp_path, seed=1).run()
    with pytest.raises(AssertionError):
        assert_same(tmp_path, whole)
