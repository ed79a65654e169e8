"""The log of a training: each step once, whatever happened between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fieldguide.errors import SettingsError
from fieldguide.train import logs
from fieldguide.train.logs import StepLog


def write(log: StepLog, first: int, last: int) -> None:
    for step in range(first, last + 1):
        log.step(step, 1.0 / step, {"projector": 0.5}, {"adapter": 1e-4}, tokens=20, rows=4, seconds=0.5)


def steps(folder: Path) -> list[int]:
    entries = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    return [entry["step"] for entry in entries if entry["kind"] == "step"]


def test_a_resumed_log_has_each_step_once(tmp_path: Path) -> None:
    first = StepLog(tmp_path, "")
    first.open(0)
    write(first, 1, 5)
    first.close()
    with open(tmp_path / "steps.jsonl", "a") as file:
        file.write('{"kind": "step", "st')  # killed while writing
    resumed = StepLog(tmp_path, "")
    resumed.open(3)
    write(resumed, 4, 6)
    resumed.close()
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]
    entry = json.loads((tmp_path / "steps.jsonl").read_text().splitlines()[0])
    assert (entry["loss"], entry["tokens a second"], entry["rows a second"]) == (1.0, 40.0, 8.0)
    assert entry["gradient norm/projector"] == 0.5
    assert entry["learning rate/adapter"] == 1e-4


def test_a_new_training_begins_a_new_log(tmp_path: Path) -> None:
    for _ in range(2):
        log = StepLog(tmp_path, "")
        log.open(0)
        write(log, 1, 2)
        log.close()
    assert steps(tmp_path) == [1, 2]


def test_tensorboard_gets_what_it_is_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    log = StepLog(tmp_path, "tensorboard")
    log.open(0)
    write(log, 1, 3)
    log.epoch({"epoch": 0, "step": 3, "loss": 0.4})
    log.saved(3, 0.01)
    log.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert [event.step for event in read.Scalars("loss")] == [1, 2, 3]
    assert read.Scalars("epoch/loss")[0].value == pytest.approx(0.4)


def test_a_missing_package_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(logs.PACKAGES, "trackio", "no_such_package_here")
    with pytest.raises(SettingsError, match="needs the package no_such_package_here"):
        StepLog(tmp_path, "trackio")


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    log = StepLog(tmp_path, None)
    log.open(0)
    write(log, 1, 1)
    log.close()
    assert list(tmp_path.iterdir()) == []
