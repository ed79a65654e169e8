"""Several models on the same pictures, in one table: accuracy, macro F1, time, and whether they differ.

    compare/index.html  metrics.json
    compare/1-starter/  compare/2-ollama_llava/ …   the report of each

The first model is the one that the others are held against: a paired test on the same pictures (McNemar), and
the difference of the accuracies with a bootstrap interval over pictures.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fieldguide.data.dataset import Dataset
from fieldguide.errors import DataError
from fieldguide.files import write_json, write_text
from fieldguide.report.charts import Bar, comparison_chart
from fieldguide.report.evaluate import Assistant, evaluate_guide
from fieldguide.report.evaluation import Evaluation
from fieldguide.report.metrics import Interval, McNemar, mcnemar
from fieldguide.report.page import environment

RESAMPLES = 2000


@dataclass(frozen=True)
class Against:
    """One model held against the first, on the same pictures."""

    difference: float  # of the accuracies: this one less the first
    interval: Interval  # 95%, over pictures
    test: McNemar  # the first model is this one, the second the first in the table


@dataclass(frozen=True)
class Contender:
    """One row of the table."""

    name: str
    evaluation: Evaluation
    folder: str  # of its report, beside index.html
    against: Against | None  # None for the first

    @property
    def off_list(self) -> int:
        """Replies that named none of the labels, or several: kept, and counted as wrong."""
        return sum(p.off_list for p in self.evaluation.predictions)

    @property
    def unreadable(self) -> int:
        """Pictures without an answer for another reason."""
        return sum(not p.predicted and not p.off_list for p in self.evaluation.predictions)

    def to_dict(self) -> dict[str, Any]:
        metrics, timing = self.evaluation.metrics, self.evaluation.timing
        return {
            "name": self.name,
            "report": self.folder,
            "pictures": metrics.count,
            "accuracy": metrics.accuracy,
            "accuracy_interval": asdict(metrics.accuracy_interval),
            "macro_f1": metrics.macro.f1,
            "off_list": self.off_list,
            "unreadable": self.unreadable,
            "seconds_a_picture": timing.seconds / timing.pictures,
            "against_the_first": None if self.against is None else asdict(self.against),
        }


def compare(
    models: Sequence[Callable[[], Assistant]],
    dataset: Dataset,
    out: Path | str,
    *,
    split: str = "test",
    force: bool = False,
    announce: Callable[[str], None] = print,
) -> list[Contender]:
    """Evaluate each model on one split and write the table.

    Args:
        models: each opens one model; they are opened one after the other, so that one is in memory at a time.
        out: the folder; each model's own report lies within.
        split, force: as for one model.
        announce: is told each row.

    Raises:
        DataError: when there are fewer than two models.
        LeakError: when a guide has seen pictures of the split.
    """
    if len(models) < 2:
        raise DataError("one model is not compared with anything", "give --model twice")
    out, found = Path(out), list[Contender]()
    _check_out(out)
    for number, opened in enumerate(models, 1):
        model = opened()
        name = str(model.info.get("model") or model.folder.resolve().name.removesuffix(".guide"))
        folder = f"{number}-" + re.sub(r"[^\w.-]+", "_", name)
        evaluation = evaluate_guide(model, dataset, None, out / folder, split=split, force=force, title=name)
        against = _against(evaluation, found[0].evaluation) if found else None
        found.append(Contender(name, evaluation, folder, against))
        announce(in_words(found[-1]))
        del model
    _write(out, found, split)
    return found


def _check_out(out: Path) -> None:
    if out.is_dir():
        strangers = [p.name for p in out.iterdir() if not re.match(r"index\.html|metrics\.json|\d+-", p.name)]
        if strangers:
            told = ", ".join(sorted(strangers)[:5])
            raise DataError(f"{out}: holds other files ({told})", "give another -o")
    elif out.exists():
        raise DataError(f"{out}: is a file", "give a folder with -o")


def _against(one: Evaluation, first: Evaluation) -> Against:
    ours = np.array([p.right for p in one.predictions])
    theirs = np.array([p.right for p in first.predictions])
    difference = ours.astype(float) - theirs.astype(float)
    generator = np.random.default_rng(0)
    means = [generator.choice(difference, len(difference)).mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return Against(float(difference.mean()), Interval(float(low), float(high)), mcnemar(ours, theirs))


def in_words(contender: Contender) -> str:
    """One line a model."""
    metrics, timing = contender.evaluation.metrics, contender.evaluation.timing
    interval = metrics.accuracy_interval
    text = (
        f"{contender.name}: accuracy {metrics.accuracy:.1%} ({interval.low:.1%} to {interval.high:.1%}), "
        f"macro F1 {metrics.macro.f1:.3f}, {timing.seconds / timing.pictures:.2f} s a picture"
    )
    if contender.off_list:
        text += f", {contender.off_list} replies off the list"
    return text


def verdict(contender: Contender, first: Contender) -> str:
    """Whether a model differs from the first, in words."""
    if contender.against is None:
        return "held against"
    test, interval = contender.against.test, contender.against.interval
    if test.p >= 0.05:
        return f"no difference from {first.name} can be told (p = {test.p:.2g})"
    better = "better" if contender.against.difference > 0 else "worse"
    low, high = sorted((abs(interval.low), abs(interval.high)))
    return f"{better} than {first.name} by {low:.1%} to {high:.1%} (p = {test.p:.2g})"


def _write(out: Path, found: Sequence[Contender], split: str) -> None:
    bars = [
        Bar(c.name, c.evaluation.metrics.accuracy, c.evaluation.metrics.accuracy_interval, not number)
        for number, c in enumerate(found)
    ]
    page = environment().get_template("compare.html")
    verdicts = [verdict(contender, found[0]) for contender in found]
    html = page.render(found=found, split=split, chart=comparison_chart(bars), verdicts=verdicts)
    write_text(out / "index.html", html)
    write_json(out / "metrics.json", {"split": split, "models": [c.to_dict() for c in found]})
