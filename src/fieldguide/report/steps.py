"""The log of a training as drawings: loss, learning rate, gradient norm, speed, step by step."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fieldguide.report.charts import line_chart

POINTS = 300  # of a line: more cannot be told apart on the page
LOG = Path("log") / "steps.jsonl"  # in the guide folder


def read_steps(guide: Path) -> tuple[dict[str, Any], ...]:
    """The steps of a guide's training, in order; () where there is no log, and without lines cut short."""
    path = guide / LOG
    if not path.is_file():
        return ()
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("kind") == "step":
            found.append(entry)
    return tuple(found)


def step_charts(steps: Sequence[Mapping[str, Any]]) -> dict[str, Markup]:
    """{title: drawing}; {} for fewer than two steps."""
    if len(steps) < 2:
        return {}
    thinned = steps[:: max(1, -(-len(steps) // POINTS))]
    charts = {"Loss by step": line_chart({"loss": _line(thinned, "loss")}, "step", "nats a token")}
    for title, prefix, unit in (
        ("Learning rate", "learning rate/", "learning rate"),
        ("Gradient norm before clipping", "gradient norm/", "norm"),
    ):
        names = sorted({name for step in thinned for name in step if name.startswith(prefix)})
        series = {name.removeprefix(prefix): _line(thinned, name) for name in names[:3]}
        if series:
            charts[title] = line_chart(series, "step", unit)
    if speed := _line(thinned, "tokens a second"):
        charts["Speed"] = line_chart({"supervised tokens": speed}, "step", "tokens a second")
    return charts


def _line(steps: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    return [(float(step["step"]), float(step[name])) for step in steps if name in step]
