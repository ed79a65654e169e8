"""The log's first line, and trackers that are asked for: called as their own signatures allow."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny_training as tiny

from fieldguide.train import logs
from fieldguide.train.logs import StepLog


class Tracker(ModuleType):
    """Notes what it is told; `init` takes what the real one's does."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[int | None, dict[str, Any]]] = []
        self.ended = 0

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self.logged.append((step, metrics))

    def finish(self) -> None:
        self.ended += 1


class Trackio(Tracker):
    def init(self, project: str, name: str | None = None, config: Any = None, resume: str = "never") -> None:
        self.begun.append({"name": name, "config": config, "resume": resume})


class Wandb(Tracker):
    def init(
        self, project: str | None = None, dir: str | None = None, id: str | None = None,
        name: str | None = None, config: Any = None, resume: str | None = None,
    ) -> None:  # fmt: skip
        self.begun.append({"name": name, "config": config, "resume": resume, "id": id, "dir": dir})


@pytest.fixture(params=[Trackio, Wandb])
def tracker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Tracker:
    name = request.param.__name__.lower()
    made: Tracker = request.param(name)
    monkeypatch.setitem(sys.modules, name, made)
    monkeypatch.setattr(logs.importlib.util, "find_spec", lambda asked: made)
    return made


def test_a_resumed_training_is_the_same_run_of_the_tracker(tracker: Tracker, tmp_path: Path) -> None:
    folder = tmp_path / "x.guide" / "log"
    for step in (0, 1):
        log = StepLog(folder, tracker.__name__)
        log.open(step, {"precision": "bf16"})
        log.step(step + 1, 0.5, {}, {"adapter": 1e-4}, tokens=20, rows=4, seconds=0.5)
        log.close()
    first, second = tracker.begun
    assert first == second
    assert first["name"].startswith("x.guide-")
    assert (first["resume"], first["config"]) == ("allow", {"precision": "bf16"})
    assert [(step, metrics["loss"]) for step, metrics in tracker.logged] == [(1, 0.5), (2, 0.5)]
    assert tracker.ended == 2
    again = StepLog(folder, tracker.__name__)
    again.open(0, {})
    again.close()
    assert tracker.begun[2]["name"] != first["name"], "a training anew is another run"


def test_the_first_line_tells_of_the_whole_training_once(tmp_path: Path) -> None:
    loop = tiny.make_loop(tmp_path / "checkpoints", epochs=1)
    loop.run()
    entries = [json.loads(line) for line in (tmp_path / "log" / "steps.jsonl").read_text().splitlines()]
    assert entries[0] == {
        "kind": "training", "step": 0, "precision": "fp32", "attention": "sdpa", "device": "cpu",
        "processes": 1, "steps": 4,
    }  # fmt: skip
    log = StepLog(tmp_path / "log", "")
    log.open(2, {"precision": "bf16"})
    log.close()
    entries = [json.loads(line) for line in (tmp_path / "log" / "steps.jsonl").read_text().splitlines()]
    assert [entry["precision"] for entry in entries if entry["kind"] == "training"] == ["fp32"]
