"""Checkpoints that are written while training goes on, as on a GPU: the same bits, and no error is lost."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import tiny_training as tiny
import torch
from safetensors.torch import load_file

from fieldguide.train import checkpoint
from fieldguide.train.checkpoint import (
    CheckpointWriter,
    Progress,
    checkpoints,
    save_checkpoint,
    state_tensors,
    trained,
)
from fieldguide.train.loop import Loop

IDENTITY = {"data set": "tiny"}


def stepped() -> tuple[Any, torch.optim.Optimizer]:
    model = tiny.new_model()
    optimizer = torch.optim.AdamW(trained(model).values(), lr=0.1)
    change(model, optimizer)
    return model, optimizer


def change(model: Any, optimizer: torch.optim.Optimizer) -> None:
    for parameter in trained(model).values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def loop_behind(folder: Path) -> Loop:
    loop = tiny.make_loop(folder)
    loop.checkpoints = CheckpointWriter(folder, loop.settings.keep, behind=True)
    return loop


def test_training_goes_on_and_the_state_is_that_of_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = stepped()
    progress, random = Progress(step=7, history=[{"loss": 1.0}]), [{"cpu": torch.get_rng_state()}]
    wanted = save_checkpoint(tmp_path / "wanted", model, optimizer, progress, IDENTITY, random)
    go, write = threading.Event(), checkpoint._write

    def slow(*arguments: Any) -> Path:
        assert go.wait(30)
        return write(*arguments)

    monkeypatch.setattr(checkpoint, "_write", slow)
    writer = CheckpointWriter(tmp_path / "behind", 2, behind=True)
    writer.save(state_tensors(model, optimizer, random), progress, IDENTITY)
    change(model, optimizer)
    progress.step, progress.history[0]["loss"] = 8, 2.0
    assert checkpoints(tmp_path / "behind") == []
    go.set()
    writer.finish()
    (found,) = checkpoints(tmp_path / "behind")
    assert (found / "state.json").read_bytes() == (wanted / "state.json").read_bytes()
    one, other = (load_file(path / "tensors.safetensors") for path in (wanted, found))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_write_that_fails_is_told_at_the_next_and_the_last_whole_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = stepped()
    writer = CheckpointWriter(tmp_path, 2, behind=True)
    writer.save(state_tensors(model, optimizer, []), Progress(step=1), IDENTITY)
    writer.finish()

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        writer.save(state_tensors(model, optimizer, []), Progress(step=2), IDENTITY)
        with pytest.raises(OSError, match="No space left"):
            writer.save(state_tensors(model, optimizer, []), Progress(step=3), IDENTITY)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_old_ones_go_also_behind(tmp_path: Path) -> None:
    model, optimizer = stepped()
    writer = CheckpointWriter(tmp_path, 2, behind=True)
    for step in range(1, 5):
        writer.save(state_tensors(model, optimizer, []), Progress(step=step), IDENTITY)
    writer.finish()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000003", "step-000004"]


def test_stopped_in_mid_epoch_and_resumed_to_the_same_bits(tmp_path: Path) -> None:
    """Against a training whose checkpoints are written at once; what was begun is whole when it ends."""

    class Killed(Exception):
        pass

    tiny.make_loop(tmp_path / "whole" / "checkpoints").run()
    folder = tmp_path / "behind" / "checkpoints"
    loop = loop_behind(folder)
    step = loop._step

    def killed(progress: Progress, names: list[str]) -> dict[str, float]:
        if progress.step == 7:
            raise Killed
        return step(progress, names)

    loop._step = killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        loop.run()
    assert checkpoints(folder)[-1].name == "step-000006"
    loop_behind(folder).run(resume=True)
    one, other = (
        load_file(checkpoints(tmp_path / name / "checkpoints")[-1] / "tensors.safetensors")
        for name in ("whole", "behind")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    lines = (tmp_path / "behind" / "log" / "steps.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["kind"] == "checkpoint" for line in lines) == 6
