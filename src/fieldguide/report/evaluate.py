"""Evaluate a guide on pictures it has not seen, beside the baselines, and write the report.

    fieldguide evaluate fish.guide

writes `report/index.html`, `report/predictions.parquet` and, last, `report/metrics.json` into the guide.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Protocol

from fieldguide import __version__
from fieldguide.answer.pooling import GroupOf
from fieldguide.data.dataset import Dataset, read_problems
from fieldguide.errors import DataError, FieldguideError
from fieldguide.files import atomic_folder, natural_key, write_json, write_text
from fieldguide.progress import progress_bar
from fieldguide.records import SPLITS, Answer, Example
from fieldguide.report.audit import audit
from fieldguide.report.baselines import BaselineInputs, BaselineResult, baselines
from fieldguide.report.deletion import deletion_test
from fieldguide.report.evaluation import Evaluation, Prediction, Timing
from fieldguide.report.grouped import grouped
from fieldguide.report.leaks import find_overlap, refuse_overlap
from fieldguide.report.metrics import Metrics, compute_metrics, mcnemar
from fieldguide.report.rarity import by_rarity, counts_of
from fieldguide.report.selective import measured_coverages, selective
from fieldguide.report.steps import read_steps

TOP_K = 5
REPORT_FILES = ("index.html", "predictions.parquet", "answers.jsonl", "metrics.json")


class Assistant(Protocol):
    """What is evaluated: a guide, or anything that answers like one."""

    @property
    def folder(self) -> Path: ...

    @property
    def labels(self) -> Sequence[str]: ...

    @property
    def info(self) -> Mapping[str, Any]: ...

    def classify(self, pictures: Sequence[Path], top_k: int = 5) -> list[Answer]:
        """Answer many pictures; one that cannot be read is an Answer with `error`."""
        ...

    def training_pictures(self) -> Sequence[Mapping[str, Any]]:
        """What it has seen: sha256, phash, image and split of each picture."""
        ...


def evaluate_guide(
    guide: Assistant,
    dataset: Dataset,
    features: BaselineInputs | None = None,
    out: Path | str | None = None,
    *,
    split: str = "test",
    force: bool = False,
    top_k: int = TOP_K,
    batch_size: int = 32,
    title: str = "",
    heat_pictures: int = 0,
    group_of: GroupOf | None = None,
    audit_pictures: int = 0,
) -> Evaluation:
    """Run a guide over one split, compare it with the baselines, and write the report folder.

    Args:
        guide: what answers.
        dataset: where the pictures and their true labels are.
        features: frozen-encoder features for the baselines; None leaves them out, and the page says so.
        out: the report folder; None for `report/` in the guide.
        split: train, val, test, or "all" for every picture of the data set.
        force: evaluate also pictures the guide has seen; the page then says that its figures are too good.
        top_k: runner-ups kept with each prediction.
        batch_size: pictures handed to the guide at once.
        title: of the page; "" for the guide folder's name.
        heat_pictures: of the split, on which it is tried whether heat maps mean something; about sixty
            answers each.
        group_of: puts pictures of one thing together, by their names in the data set; they are then also
            answered as one, and both ways compared.
        audit_pictures: of the split, on which it is tried what else answers depend on (`report.audit`).

    Raises:
        LeakError: naming up to ten of the pictures the guide has seen.
        DataError: when the split has no picture with a label.
    """
    folder = Path(out) if out is not None else guide.folder / "report"
    check_replaceable(folder)
    chosen, unlabelled = _choose(dataset, split)
    distance = int(dataset.info.get("settings", {}).get("near_duplicate_distance", 8))
    overlap = find_overlap(chosen, guide.training_pictures(), distance=distance, split=split)
    if not force:
        refuse_overlap(overlap, split)
    conformal = guide.info.get("calibration", {}).get("conformal_scores")
    read = max([top_k, *measured_coverages(conformal, len(guide.labels)).values()])
    read = read if group_of is None else max(read, len(guide.labels))
    at_once = max(batch_size, getattr(guide, "batch_size", 0))
    whole, timing = _predict(guide, dataset, chosen, read, at_once)
    if all(p.error for p in whole):
        raise DataError(
            f"{dataset.folder}: none of the {len(whole)} pictures of the {split} split can be read "
            f"({whole[0].image}: {whole[0].error})",
            "put them back where they were, or import again",
        )
    trust = selective(whole, guide.labels, conformal)
    predictions = [dataclasses.replace(p, scores=p.scores[:top_k]) for p in whole]
    metrics = _metrics(predictions, guide.labels)
    found: tuple[BaselineResult, ...] = ()
    if features is not None:
        actual, keys = [p.label for p in predictions], [p.sha256 for p in predictions]
        found = tuple(baselines(features, actual, keys, labels=tuple(guide.labels)))
    unknown = Counter(p.label for p in predictions if p.label not in set(guide.labels))
    best = max(found, key=lambda result: result.metrics.accuracy, default=None)
    comparison = None
    if best is not None:
        theirs = [answer == p.label for answer, p in zip(best.predicted, predictions, strict=True)]
        comparison = mcnemar([p.right for p in predictions], theirs)
    readable = [p.path for p in predictions if not p.error]
    answering: Any = guide
    here = len(guide.labels) > 1 and hasattr(guide, "label_scores")  # scores can be asked for
    mapped, audited = here and heat_pictures > 0, here and audit_pictures > 0
    evaluation = Evaluation(
        title=title or guide.folder.resolve().name.removesuffix(".guide"),
        split=split,
        labels=tuple(guide.labels),
        metrics=metrics,
        baselines=found,
        comparison=comparison,
        predictions=tuple(predictions),
        timing=timing,
        unlabelled=unlabelled,
        unknown_labels=dict(unknown.most_common()),
        overlap=tuple(overlap),
        guide_info=dict(guide.info),
        dataset_info=dict(dataset.info),
        facts=_facts(dataset, chosen),
        folder=folder,
        steps=read_steps(guide.folder),
        selective=trust,
        rarity=by_rarity(predictions, counts_of(guide.training_pictures())),
        grouped=grouped(whole, group_of) if group_of is not None else None,
        deletion=deletion_test(answering, readable, heat_pictures) if mapped else None,
        audit=audit(answering, guide.labels, readable, most=audit_pictures) if audited else None,
    )
    write_report(evaluation, folder)
    return evaluation


def write_report(evaluation: Evaluation, folder: Path) -> None:
    """Write index.html, predictions.parquet and metrics.json; the folder appears whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from fieldguide.report.page import render_report

    rows = [p.to_dict() for p in evaluation.predictions]
    with atomic_folder(folder) as temporary:
        write_text(temporary / "index.html", render_report(evaluation))
        pq.write_table(pa.Table.from_pylist(rows, _schema()), temporary / "predictions.parquet")
        write_json(temporary / "metrics.json", evaluation.to_dict())


def _schema() -> Any:
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    return pa.schema(
        [
            ("id", text),
            ("image", text),
            ("sha256", text),
            ("label", text),
            ("predicted", text),
            ("probability", number),
            ("right", pa.bool_()),
            ("top_labels", pa.list_(text)),
            ("top_probabilities", pa.list_(number)),
            ("text", text),
            ("error", text),
            ("source", text),
            ("off_list", pa.bool_()),
            ("familiarity", number),
            ("in_guide", pa.bool_()),
        ]
    )


def check_replaceable(folder: Path) -> None:
    """A report replaces an older report, never a folder of something else."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FieldguideError(f"{folder}: is a file, and the report needs a folder", "give another -o")
    strangers = sorted(path.name for path in folder.iterdir() if path.name not in REPORT_FILES)
    if strangers:
        raise FieldguideError(
            f"{folder}: would be replaced whole, and holds other files ({', '.join(strangers[:5])})",
            "give a new or empty folder with -o",
        )


def _choose(dataset: Dataset, split: str) -> tuple[list[Example], int]:
    """The labelled pictures of a split, and how many have no label."""
    if split not in (*SPLITS, "all"):
        raise DataError(f"no split is called {split!r}", f"choose one of: {', '.join(SPLITS)}, all")
    pictures = dataset.examples if split == "all" else dataset.of(split)
    chosen = [example for example in pictures if example.label]
    if not chosen:
        counts = Counter(example.split or "none" for example in dataset.examples)
        there = ", ".join(f"{name}: {count}" for name, count in counts.items()) or "none"
        raise DataError(
            f"{dataset.folder}: no picture of the {split} split has a label (pictures by split: {there})",
            "choose another with --split, or import again with a larger share for testing",
        )
    return chosen, len(pictures) - len(chosen)


def _predict(
    guide: Assistant, dataset: Dataset, chosen: Sequence[Example], top_k: int, batch_size: int
) -> tuple[list[Prediction], Timing]:
    predictions: list[Prediction] = []
    start = time.perf_counter()
    with progress_bar("pictures") as bar:
        task = bar.add_task("Evaluating", total=len(chosen))
        for first in range(0, len(chosen), batch_size):
            batch = chosen[first : first + batch_size]
            answers = guide.classify([dataset.path(example) for example in batch], top_k=top_k)
            for example, answer in zip(batch, answers, strict=True):
                predictions.append(_prediction(example, answer, dataset.path(example)))
            bar.advance(task, len(batch))
    return predictions, Timing(time.perf_counter() - start, len(chosen), machine())


def _prediction(example: Example, answer: Answer, path: Path) -> Prediction:
    predicted = "" if answer.error else answer.label
    return Prediction(
        id=example.id,
        image=example.image,
        path=path,
        sha256=example.sha256,
        label=example.label,
        predicted=predicted,
        probability=answer.probability if predicted else 0.0,
        scores=answer.scores,
        text=answer.text,
        error=answer.error,
        source=example.source,
        off_list=answer.off_list,
        familiarity=answer.familiarity,
        in_guide=answer.in_guide,
    )


def _metrics(predictions: Sequence[Prediction], labels: Sequence[str]) -> Metrics:
    return compute_metrics(
        [p.label for p in predictions],
        [p.predicted for p in predictions],
        labels=labels,
        confidence=[p.probability if p.predicted else None for p in predictions],
        sources=[p.source for p in predictions],
    )


def machine() -> str:
    """This computer, in words: processor, cores, system."""
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} core{'s' if cores != 1 else ''}, {platform.system()}"


def _facts(dataset: Dataset, chosen: Sequence[Example]) -> dict[str, Any]:
    """Counts and versions for the page and metrics.json."""
    from importlib.metadata import PackageNotFoundError, version

    splits: dict[str, dict[str, int]] = {}
    for example in dataset.examples:
        row = splits.setdefault(example.label or "(no label)", {})
        row[example.split or "none"] = row.get(example.split or "none", 0) + 1
    versions = {"fieldguide": __version__, "Python": platform.python_version()}
    for package in ("torch", "transformers", "peft", "scikit-learn", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "date": date.today().isoformat(),
        "splits": {label: splits[label] for label in sorted(splits, key=natural_key)},
        "split_names": [name for name in (*SPLITS, "none") if any(name in row for row in splits.values())],
        "problems": dict(Counter(p.kind or p.reason for p in read_problems(dataset.folder)).most_common()),
        "licences": dict(Counter(example.licence for example in chosen).most_common()),
        "versions": versions,
    }
