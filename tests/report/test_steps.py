"""The log of a training, read and drawn."""

from __future__ import annotations

import json
from pathlib import Path

from fieldguide.report.steps import POINTS, read_steps, step_charts


def step(number: int) -> dict[str, object]:
    return {
        "kind": "step", "step": number, "loss": 2.0 / number, "learning rate/adapter": 1e-4,
        "gradient norm/projector": 0.5, "tokens a second": 40.0,
    }  # fmt: skip


def test_steps_are_read_and_drawn(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    lines = [json.dumps(step(number)) for number in range(1, 1001)]
    lines.insert(10, json.dumps({"kind": "checkpoint", "step": 10, "seconds": 0.1}))
    (tmp_path / "log" / "steps.jsonl").write_text("\n".join([*lines, '{"kind": "st']))
    steps = read_steps(tmp_path)
    assert [entry["step"] for entry in steps] == list(range(1, 1001))
    charts = step_charts(steps)
    assert list(charts) == ["Loss by step", "Learning rate", "Gradient norm before clipping", "Speed"]
    points = str(charts["Loss by step"]).split('points="')[1].split('"')[0].split()
    assert POINTS / 2 < len(points) <= POINTS
    assert ">adapter</text>" in str(charts["Learning rate"])


def test_a_guide_without_a_log_has_no_drawings(tmp_path: Path) -> None:
    assert read_steps(tmp_path) == ()
    assert step_charts(()) == {}
