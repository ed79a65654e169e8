"""The log of a training: each step once, whatever happened between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_training as tiny

from fieldguide.errors import SettingsError
from fieldguide.train import logs
from fieldguide.train.checkpoint import Progress
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


def test_a_killed_and_resumed_training_logs_each_step_once(tmp_path: Path) -> None:
    """Also with its epochs, and how long it stood still for each checkpoint."""

    class Killed(Exception):
        pass

    run = tiny.make_loop(tmp_path / "checkpoints")
    step = run._step

    def killed(progress: Progress, names: list[str]) -> dict[str, float]:
        if progress.step == 7:  # the last checkpoint is that of step 6
            raise Killed
        return step(progress, names)

    run._step = killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        run.run()
    assert steps(tmp_path / "log") == [1, 2, 3, 4, 5, 6, 7]
    tiny.make_loop(tmp_path / "checkpoints").run(resume=True)
    assert steps(tmp_path / "log") == list(range(1, 13))
    entries = [json.loads(line) for line in (tmp_path / "log" / "steps.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if entry["kind"] == "epoch"] == [4, 8, 12]
    stalls = [entry for entry in entries if entry["kind"] == "checkpoint"]
    assert [entry["step"] for entry in stalls] == [2, 4, 6, 8, 10, 12]
    assert all(0 < entry["seconds"] < 10 for entry in stalls)
    first = next(entry for entry in entries if entry["kind"] == "step")
    assert sum(entry > 0 for name, entry in first.items() if name.startswith("gradient norm/")) >= 2
    assert {
        "learning rate/projector",
        "learning rate/adapter",
        "supervised tokens",
        "tokens a second",
    } <= set(first)


def test_a_training_writes_tensorboard_files_when_asked(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    tiny.make_loop(tmp_path / "plain" / "checkpoints").run()
    tiny.make_loop(tmp_path / "shown" / "checkpoints", log_to="tensorboard").run()
    assert not list((tmp_path / "plain" / "log").glob("events.*"))
    assert list((tmp_path / "shown" / "log").glob("events.*"))
