"""Pages: one HTML file each, with everything inside, readable without a network.

All text from outside (labels, file names, notes) passes jinja2's autoescape.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fieldguide import __version__
from fieldguide.errors import PictureError
from fieldguide.images import load_picture
from fieldguide.report.charts import Bar, comparison_chart, line_chart, reliability_chart
from fieldguide.report.evaluation import Evaluation, Prediction
from fieldguide.report.metrics import Metrics
from fieldguide.report.selective import Selective
from fieldguide.report.steps import step_charts
from fieldguide.report.wording import (
    loss_curves,
    model_cards,
    notices,
    part_rows,
    percent,
    pick_right,
    pick_wrong,
    training_facts,
    verdict,
)
from fieldguide.report.words import WordsEvaluation, verdict_in_words

if TYPE_CHECKING:
    import jinja2

THUMBNAIL = 200  # pixels of the longer side
HEAT_LABELS = 30  # more labels than this make no readable table


@dataclass(frozen=True)
class Cell:
    count: int
    right: bool
    shade: float  # 0 to 1


@dataclass(frozen=True)
class HeatRow:
    label: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Confusion:
    """Pictures of one label that were called by another."""

    actual: str
    predicted: str
    count: int
    support: int


@dataclass(frozen=True)
class Shown:
    """An example picture of the report."""

    p: Prediction
    right: bool
    thumbnail: str  # data URI, "" if the picture cannot be read
    why_not: str


@cache
def environment() -> jinja2.Environment:
    """The jinja2 environment of all pages: autoescape on, unknown names are errors."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.PackageLoader("fieldguide.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["pct"] = percent
    made.globals["version"] = __version__
    return made


def thumbnail(path: Path, size: int = THUMBNAIL) -> tuple[str, str]:
    """A small JPEG of a picture as a data URI, and "" or the reason why there is none."""
    from PIL import Image

    try:
        image = load_picture(path, shrink_to=size).image
    except PictureError as error:
        return "", error.reason
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(), ""


def confusions(metrics: Metrics, most: int = 10) -> list[Confusion]:
    """The commonest mistakes, largest first."""
    supports = {score.label: score.support for score in metrics.classes}
    found = [
        Confusion(score.label, column, count, supports[score.label])
        for score, row in zip(metrics.classes, metrics.confusion, strict=True)
        for column, count in zip(metrics.confusion_columns, row, strict=True)
        if count and column != score.label
    ]
    return sorted(found, key=lambda pair: (-pair.count, pair.support))[:most]


def heat_rows(metrics: Metrics) -> list[HeatRow]:
    """The confusion matrix shaded by share of the row; empty when it would be unreadable."""
    if len(metrics.classes) > HEAT_LABELS:
        return []
    rows = []
    for score, counts in zip(metrics.classes, metrics.confusion, strict=True):
        if not score.support and not score.predicted:
            continue
        cells = tuple(
            # Shade starts above zero: one mistake among a hundred must be seen.
            Cell(count, column == score.label, 0.12 + 0.68 * count / max(score.support, 1))
            for column, count in zip(metrics.confusion_columns, counts, strict=True)
        )
        rows.append(HeatRow(score.label, cells))
    return rows


def metric_views(metrics: Metrics) -> dict[str, Any]:
    """What the shared table templates need."""
    mistaken: dict[str, str] = {}
    for pair in confusions(metrics, most=len(metrics.classes) * len(metrics.confusion_columns)):
        mistaken.setdefault(pair.actual, f"{pair.predicted} ({pair.count})")
    return {
        "heat": heat_rows(metrics),
        "pairs": confusions(metrics),
        "mistaken": mistaken,
        "reliability": reliability_chart(metrics.calibration) if metrics.calibration else "",
    }


def render_scores(name: str, metrics: Metrics, remarks: Sequence[str], compared: Any = None) -> str:
    """The page of `fieldguide score`; `compared` is a `Beside`, or None."""
    template = environment().get_template("scores.html")
    return template.render(
        name=name, metrics=metrics, remarks=list(remarks), beside=compared, **metric_views(metrics)
    )


def render_words(found: WordsEvaluation) -> str:
    """The report page of a guide that has no labels."""
    verdict = verdict_in_words(found)
    template = environment().get_template("words.html")
    return template.render(
        found=found,
        verdict=verdict[0].upper() + verdict[1:],
        **_training_views(found.guide_info, found.steps),
    )


def _training_views(info: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What training.html shows."""
    training = info.get("training")
    curves = loss_curves(training)
    return {
        "training": training_facts(training),
        "parts": part_rows(training),
        "losses": line_chart(curves, "epoch", "loss") if curves else "",
        "steps": step_charts(steps),
    }


def render_report(evaluation: Evaluation) -> str:
    """The report page of a guide."""
    wrong = [p for p in evaluation.predictions if p.predicted and not p.right]
    info = evaluation.guide_info
    settings = {"guide": info.get("settings", {}), "dataset": evaluation.dataset_info.get("settings", {})}
    return (
        environment()
        .get_template("report.html")
        .render(
            e=evaluation,
            m=evaluation.metrics,
            notices=notices(evaluation),
            verdict=verdict(evaluation),
            comparison=_comparison(evaluation),
            wrong=[_shown(p) for p in pick_wrong(wrong)],
            wrong_count=len(wrong),
            right=[_shown(p) for p in pick_right(evaluation.predictions)],
            unanswered=[p for p in evaluation.predictions if not p.predicted],
            models=model_cards(info.get("models")),
            settings_text=json.dumps(settings, indent=2, ensure_ascii=False)
            if any(settings.values())
            else "",
            kept=_kept_chart(evaluation.selective),
            **metric_views(evaluation.metrics),
            **_training_views(info, evaluation.steps),
        )
    )


def _kept_chart(found: Selective | None) -> str:
    """Accuracy of the answers kept, as the least sure are left out."""
    if found is None or len(found.curve) < 2:
        return ""
    return line_chart({"accuracy": found.curve}, "share of the answers kept, the surest first", "accuracy")


def _shown(p: Prediction) -> Shown:
    picture, why_not = thumbnail(p.path)
    return Shown(p, p.right, picture, why_not)


def _comparison(evaluation: Evaluation) -> str:
    ours = Bar("this guide", evaluation.metrics.accuracy, evaluation.metrics.accuracy_interval, ours=True)
    theirs = [Bar(b.name, b.metrics.accuracy, b.metrics.accuracy_interval) for b in evaluation.baselines]
    return comparison_chart([ours, *sorted(theirs, key=lambda bar: -bar.value)])
