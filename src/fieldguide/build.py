"""Build: pictures in, guide and report out. The stages in order, with a plan first.

    from fieldguide import build
    guide = build("photos", "fish.guide", notes="notes.csv")

Stopped half way (Ctrl-C, kill, power), the same call goes on where it was: features are cached, training
continues from its last checkpoint, and a guide that is trained but not evaluated is evaluated.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fieldguide.guide import MANIFEST, Guide, check_free, load_guide
from fieldguide.settings import Recipe

if TYPE_CHECKING:
    from fieldguide.data.dataset import Dataset
    from fieldguide.model.vision import VisionEncoder
    from fieldguide.report.baselines import BaselineInputs
    from fieldguide.report.evaluation import Evaluation

DATASET_FOLDER = "dataset"  # inside the guide
# Seconds on a two-core CPU: to embed a picture, to train on a token, to evaluate a picture.
EMBED, TRAIN_TOKEN, EVALUATE = 0.025, 0.006, 0.05
REASON_TOKENS = 100  # about, of a reason and the notes beside its question


def build(
    photos: Path | str,
    out: Path | str,
    *,
    notes: Path | str | None = None,
    recipe: Recipe | None = None,
    announce: Callable[[str], None] = print,
) -> Guide:
    """Import pictures, train a guide, evaluate it, and write its report.

    Args:
        photos: whatever `import` reads: a folder, a table, …; or a data set folder made before.
        out: the guide folder to be.
        notes: a table of notes on the labels.
        recipe: settings; None for the defaults.
        announce: told what is going on, a line at a time.

    Raises:
        ModelMissing: before anything else, when the starter weights are not here.
        GuideError: when `out` already holds a guide, or something else.
        DataError: when there is too little to learn from.
    """
    from fieldguide.model.trained import model_cards
    from fieldguide.model.vision import load_encoder
    from fieldguide.train.checkpoint import checkpoints
    from fieldguide.training import train_guide

    photos, out, recipe = Path(photos), Path(out), recipe or Recipe()
    began = time.perf_counter()
    dataset = _trained_on(photos, out)
    if dataset is not None:
        announce(f"{out}: is trained, and only its evaluation is missing")
        guide = load_guide(out)
        encoder = guide.encoder
    else:
        check_free(out)
        model_cards()  # an hour's import must not end at missing weights
        dataset = _dataset(photos, out, Path(notes) if notes else None, recipe, announce)
        announce(plan(dataset, recipe))
        encoder = load_encoder(recipe.embed, announce)
        resume = any(checkpoints(out / "checkpoints" / stage) for stage in (".", "pretrain"))
        guide = train_guide(dataset, out, recipe, resume=resume, encoder=encoder, announce=announce)
    if not dataset.of("test"):
        announce("no test pictures: the guide could not be evaluated")
        return guide
    evaluation = evaluate(guide, dataset, encoder)
    announce(summary(guide, evaluation, time.perf_counter() - began))
    return guide


def _trained_on(photos: Path, out: Path) -> Dataset | None:
    """The data set of a guide at `out` that was made from these pictures and has not been evaluated."""
    from fieldguide.data.dataset import load_dataset
    from fieldguide.data.rows import printable

    given = (photos / "dataset.json").is_file()
    folder = photos if given else out / DATASET_FOLDER
    evaluated = (out / "report" / "metrics.json").exists()
    if evaluated or not (out / MANIFEST).is_file() or not (folder / "dataset.json").is_file():
        return None
    dataset = load_dataset(folder)
    same = load_guide(out).info["dataset"]["fingerprint"] == dataset.fingerprint
    from_here = given or dataset.info["source"] == printable(os.path.abspath(photos))
    return dataset if same and from_here else None


def _dataset(
    photos: Path, out: Path, notes: Path | None, recipe: Recipe, announce: Callable[[str], None]
) -> Dataset:
    """The data set: given as such, or imported into the guide folder (also by a second call)."""
    from fieldguide.data.dataset import load_dataset
    from fieldguide.data.importer import import_pictures

    if (photos / "dataset.json").is_file():
        return load_dataset(photos)
    return import_pictures(photos, out / DATASET_FOLDER, recipe.imports, notes=notes, announce=announce)


def plan(dataset: Dataset, recipe: Recipe) -> str:
    """What is going to happen, and about how long it will take on a two-core CPU."""
    train, settings = dataset.of("train"), recipe.train
    reasons = settings.explain_per_label * sum(dataset.note(label) is not None for label in dataset.labels)
    tokens = len(train) * (8 + settings.patch_tokens + settings.summary_tokens) + reasons * REASON_TOKENS
    seconds = {
        "embed": len(dataset.examples) * EMBED,
        "train": tokens * settings.epochs * TRAIN_TOKEN,
        "evaluate": len(dataset.of("test")) * EVALUATE + 10,
    }
    parts = ", ".join(f"{stage} about {_duration(value)}" for stage, value in seconds.items())
    splits = ", ".join(f"{len(dataset.of(split))} {split}" for split in ("train", "val", "test"))
    return (
        f"plan: {len(dataset.labels)} labels, pictures: {splits}; up to {settings.epochs} epochs\n"
        f"      {parts}; together about {_duration(sum(seconds.values()))} on a two-core CPU"
    )


def evaluate(
    guide: Guide, dataset: Dataset, encoder: VisionEncoder | None = None, **options: object
) -> Evaluation:
    """Evaluate a guide beside the baselines on the same features, and write its report.

    Args:
        guide: what answers.
        dataset: holds the evaluated split, and best the guide's training pictures for the baselines.
        encoder: where the caller has loaded it already.
        options: of `fieldguide.report.evaluate.evaluate_guide`.
    """
    from fieldguide.report.deletion import PICTURES
    from fieldguide.report.evaluate import evaluate_guide

    split = str(options.get("split", "test"))
    if guide.answer_settings.coverage:  # the report measures sets of its own, from the best labels
        guide = guide.answering(coverage=0.0)
    inputs = baseline_inputs(guide, dataset, encoder or guide.encoder, split)
    options = {"heat_pictures": PICTURES, **options}
    return evaluate_guide(guide, dataset, inputs, **options)  # type: ignore[arg-type]


def baseline_inputs(
    guide: Guide, dataset: Dataset, encoder: VisionEncoder, split: str = "test"
) -> BaselineInputs | None:
    """Features of the guide's training pictures and of the evaluated ones, from the cache where it has them.

    Returns:
        None when the training pictures are neither cached nor in the data set: then there are no baselines.
    """
    from fieldguide.report.baselines import BaselineInputs
    from fieldguide.train.features import embed_pictures

    rows = [row for row in guide.training_pictures() if row["split"] == "train"]
    seen = embed_pictures([(dataset.folder / row["image"], row["sha256"]) for row in rows], encoder)
    if not seen.keys:
        return None
    label = {row["sha256"]: row["label"] for row in rows}
    wanted = [e for e in dataset.examples if e.label and split in (e.split, "all")]
    asked = embed_pictures([(dataset.path(e), e.sha256) for e in wanted], encoder)
    return BaselineInputs(
        train_grid=seen.grid,
        train_pooled=seen.pooled,
        train_labels=tuple(label[key] for key in seen.keys),
        test_grid=asked.grid,
        test_pooled=asked.pooled,
        test_keys=asked.keys,
    )


def summary(guide: Guide, evaluation: Evaluation, seconds: float) -> str:
    """Where the guide is, how good it is, and what to do next."""
    accuracy = evaluation.metrics.accuracy
    interval = evaluation.metrics.accuracy_interval
    lines = [
        f"guide:    {guide.folder}   ({_duration(seconds)})",
        f"accuracy: {accuracy:.1%} ({interval.low:.1%} to {interval.high:.1%}) "
        f"on {evaluation.metrics.count} test pictures",
    ]
    best = evaluation.best_baseline
    if best is not None:
        remark = (
            "better than the guide: read the report"
            if evaluation.baseline_wins
            else "the guide is at least as good"
        )
        lines.append(f"baseline: {best.metrics.accuracy:.1%} by {best.name} on the same features ({remark})")
    lines += [
        f"report:   {guide.report}",
        "next:",
        f"  fieldguide ask {guide.folder} PICTURE",
        f"  fieldguide classify {guide.folder} FOLDER -o answers.csv",
    ]
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min"
