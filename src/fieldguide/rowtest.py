"""The evaluate stage of guides that answer in words and have no labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fieldguide.errors import DataError
from fieldguide.files import atomic_folder, write_json
from fieldguide.guide import Guide
from fieldguide.merging import base_of
from fieldguide.progress import track

if TYPE_CHECKING:
    from fieldguide.data.dataset import Dataset
    from fieldguide.model.hub import HubModel
    from fieldguide.report.words import Sample, WordsEvaluation
    from fieldguide.train.part import Part
    from fieldguide.train.rows import Row

ANSWERS = 30  # rows whose questions are put to the guide: an answer takes far longer than a loss


def evaluate_rows(
    guide: Guide,
    dataset: Dataset,
    *,
    split: str = "test",
    out: Path | str | None = None,
    force: bool = False,
    announce: Callable[[str], None] = print,
) -> WordsEvaluation:
    """Measure how surprised a guide is by the right answers of one split, beside its untouched base model.

    Args:
        guide: of a model of transformers, without labels.
        dataset: with conversations or captions like those it learnt.
        split: train, val, test, or "all".
        out: the report folder; None for `report/` in the guide.
        force: evaluate also rows whose pictures the guide has seen; the page then says so.

    Raises:
        LeakError: naming pictures the guide has seen.
        DataError: when the split has no row that fits.
    """
    from fieldguide.report.evaluate import check_replaceable
    from fieldguide.report.leaks import find_overlap, refuse_overlap
    from fieldguide.report.steps import read_steps
    from fieldguide.report.words import WordsEvaluation, losses_with_intervals, named, quality_of

    folder = Path(out) if out is not None else guide.folder / "report"
    check_replaceable(folder)
    model: Any = guide.model
    part, rows = _see(model, guide, dataset, split, announce)
    if not rows:
        raise DataError(
            f"{dataset.folder}: the {split} split has no row for this guide", "give another --split"
        )
    distance = int(dataset.info.get("settings", {}).get("near_duplicate_distance", 8))
    seen = [row for row in guide.training_pictures() if row["sha256"]]
    overlap = find_overlap([e for e in part.examples if e.sha256], seen, distance=distance, split=split)
    if not force:
        refuse_overlap(overlap, split)
    ours = _losses(model, guide, part, rows)
    asked = np.unique(np.linspace(0, len(part.examples) - 1, min(ANSWERS, len(part.examples))).astype(int))
    samples = tuple(_sample(model, guide, part, int(number)) for number in track(asked, "answering"))
    guide.__dict__.pop("model", None)  # make room for the base
    del model
    opened = base_of(guide, lambda line: None)
    base_part, base_rows = _see(opened.model, guide, dataset, split, lambda line: None)
    base = _losses(opened.model, guide, base_part, base_rows)
    tokens = np.array([row.targets for row in rows])
    loss, interval, base_loss, gain = losses_with_intervals(ours, base, tokens)
    found = WordsEvaluation(
        title=guide.folder.resolve().name.removesuffix(".guide"),
        split=split,
        rows=len(rows),
        tokens=int(tokens.sum()),
        loss=loss,
        loss_interval=interval,
        base_loss=base_loss,
        gain_interval=gain,
        samples=samples,
        overlap=named(overlap),
        guide_info=dict(guide.info),
        steps=read_steps(guide.folder),
        quality=quality_of(samples),
    )
    _write_report(found, folder)
    return found


def _see(
    model: HubModel, guide: Guide, dataset: Dataset, split: str, announce: Callable[[str], None]
) -> tuple[Part, list[Row]]:
    """The examples of a split that the guide can be measured on, and their rows."""
    from fieldguide.train.part import see, teaches, told_rows
    from fieldguide.train.rows import check_lengths

    learn = str(guide.info["training"]["learns"])
    chosen = [e for e in dataset.examples if split in (e.split, "all") and teaches(e, learn, ())]
    part = see(model, dataset, chosen, None, announce, f"seeing {split} pictures")
    rows = told_rows(model.prompt, part, learn)
    check_lengths(rows, len(model.prompt.before(guide.answer_settings.question)), 0, model.context)
    return part, rows


def _write_report(found: WordsEvaluation, folder: Path) -> None:
    """Write index.html, answers.jsonl and metrics.json; the folder appears whole or not at all."""
    from fieldguide.report.page import render_words

    record = {k: v for k, v in asdict(found).items() if k not in ("samples", "guide_info", "steps")}
    with atomic_folder(folder) as temporary:
        (temporary / "index.html").write_text(render_words(found), encoding="utf-8")
        lines = [json.dumps(asdict(sample), ensure_ascii=False) for sample in found.samples]
        (temporary / "answers.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        write_json(temporary / "metrics.json", {**record, "perplexity": found.perplexity})


def _losses(model: HubModel, guide: Guide, part: Part, rows: Any) -> np.ndarray:
    from fieldguide.train.rowloss import row_losses

    return row_losses(model.eval(), guide.answer_settings.question, part.pictures, rows, guide.recipe.train)


def _sample(model: HubModel, guide: Guide, part: Part, number: int) -> Sample:
    from fieldguide.answer.generate import say
    from fieldguide.report.words import Sample
    from fieldguide.train.part import turns_of

    example = part.examples[number]
    turns = turns_of(example, str(guide.info["training"]["learns"]), 0)
    question = "\n\n".join(turn.text for turn in turns if turn.role == "system")
    asked = next(turn.text for turn in turns if turn.role == "user")
    reference = next(turn.text for turn in turns if turn.role == "assistant")
    whole = f"{question}\n\n{asked}" if question else asked
    started = model.start(whole, part.pictures.rows(slice(number, number + 1)))
    answer = say(model, started, 0, guide.answer_settings.max_new_tokens)
    return Sample(example.image or example.id, asked, reference, answer)
