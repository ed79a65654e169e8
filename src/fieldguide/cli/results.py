"""What is done with a guide and its answers: evaluate, merge, export, score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fieldguide.cli.group import STAGES, Asking, GuideFolder, Labels, app


@app.command("evaluate", rich_help_panel=STAGES)
def evaluate_command(
    guide: Annotated[
        Path,
        typer.Argument(
            metavar="GUIDE", help="A guide folder; with --model a data set will do.", show_default=False
        ),
    ],
    dataset: Annotated[
        Path | None,
        typer.Argument(metavar="DATASET", help="A data set, else the guide's own.", show_default=False),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="MODEL", help="Another model on the same pictures; may be repeated."),
    ] = None,
    labels: Labels = None,
    asking: Asking = None,
    split: Annotated[str, typer.Option(metavar="SPLIT", help="test, val, train or all.")] = "test",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="The report, else GUIDE/report.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Also with pictures the guide has seen.")] = False,
    group_by: Annotated[
        str | None,
        typer.Option(metavar="HOW", help="Pictures of one thing: group, parent, a pattern (…), a CSV."),
    ] = None,
    audited: Annotated[
        bool, typer.Option("--audit", help="Also try what else answers depend on: order, words, habits.")
    ] = False,
    heat_pictures: Annotated[
        int | None, typer.Option(min=0, help="Pictures on which its heat maps are put to the test.")
    ] = None,
) -> None:
    """Evaluate a guide on pictures it has not seen, beside simple baselines, and write its report."""
    from fieldguide.build import DATASET_FOLDER, evaluate
    from fieldguide.data.dataset import load_dataset
    from fieldguide.errors import DataError, SettingsError
    from fieldguide.guide import load_guide
    from fieldguide.report.audit import PICTURES
    from fieldguide.report.wording import percent, verdict

    if models:
        if group_by is not None or heat_pictures is not None or audited:
            told = "--group-by, --audit and --heat-pictures are for one guide"
            raise SettingsError(told, "leave --model out")
        guides, folder = ([], guide) if dataset is None else ([str(guide)], dataset)
        _evaluate_models([*guides, *models], folder, labels, asking, split, out, force)
        return
    wanted = load_guide(guide)
    folder = dataset or guide / DATASET_FOLDER
    if dataset is None and not folder.is_dir():
        raise DataError(f"{guide}: holds no data set of its own", f"fieldguide evaluate {guide} DATASET")
    if not wanted.labels:
        _evaluate_words(wanted, folder, split, out, force)
        return
    options: dict[str, Any] = {} if heat_pictures is None else {"heat_pictures": heat_pictures}
    options |= {"audit_pictures": PICTURES} if audited else {}
    loaded = load_dataset(folder)
    if group_by is not None:
        from fieldguide.answer.pooling import grouping

        options["group_of"] = grouping(group_by, {e.image: e.group for e in loaded.examples})
    found = evaluate(wanted, loaded, split=split, out=out, force=force, **options)
    metrics, interval = found.metrics, found.metrics.accuracy_interval
    typer.echo(
        f"accuracy {percent(metrics.accuracy)} ({percent(interval.low)} to {percent(interval.high)}) on "
        f"{metrics.count} {split} pictures, macro F1 {percent(metrics.macro.f1)}"
    )
    if metrics.unanswered:
        typer.echo(f"{metrics.unanswered} pictures got no answer and count as wrong")
    typer.echo(verdict(found))
    for line in found.audit.in_words() if found.audit is not None else ():
        typer.echo(line)
    if found.grouped is not None:
        one, many = percent(found.grouped.single), percent(found.grouped.accuracy)
        typer.echo(f"{found.grouped.groups} groups answered as one: {many}; their pictures one by one: {one}")
    elif group_by is not None:
        typer.echo("no group has two pictures of one label, so groups were not compared", err=True)
    typer.echo(f"report: {found.folder}/index.html")


def _evaluate_models(
    models: list[str],
    folder: Path,
    labels: str | None,
    asking: Path | None,
    split: str,
    out: Path | None,
    force: bool,
) -> None:
    """Models on one data set: a report for one, a table for several."""
    from functools import partial

    from fieldguide.data.dataset import load_dataset
    from fieldguide.report.compare import compare
    from fieldguide.report.evaluate import evaluate_guide
    from fieldguide.report.wording import percent
    from fieldguide.zeroshot.names import LabelNames, read_labels
    from fieldguide.zeroshot.opening import load_asking_settings, open_answerer

    dataset, settings = load_dataset(folder), load_asking_settings(asking)
    known = dataset.notes_of(dataset.labels)
    names = LabelNames(dataset.labels, known) if labels is None else read_labels(labels, [*known.values()])
    opened = [partial(open_answerer, model, names, settings, typer.echo) for model in models]
    if len(opened) > 1:
        where = out or Path("compared")
        compare(opened, dataset, where, split=split, force=force, announce=typer.echo)
        typer.echo(f"table: {where}/index.html")
        return
    found = evaluate_guide(opened[0](), dataset, None, out, split=split, force=force)
    metrics, interval = found.metrics, found.metrics.accuracy_interval
    typer.echo(
        f"accuracy {percent(metrics.accuracy)} ({percent(interval.low)} to {percent(interval.high)}) on "
        f"{metrics.count} {split} pictures, macro F1 {percent(metrics.macro.f1)}"
    )
    if metrics.unanswered:
        typer.echo(f"{metrics.unanswered} pictures got no answer and count as wrong")
    typer.echo(f"report: {found.folder}/index.html")


def _evaluate_words(guide: Any, folder: Path, split: str, out: Path | None, force: bool) -> None:
    from fieldguide.data.dataset import load_dataset
    from fieldguide.report.words import verdict_in_words
    from fieldguide.rowtest import evaluate_rows

    found = evaluate_rows(guide, load_dataset(folder), split=split, out=out, force=force, announce=typer.echo)
    low, high = found.loss_interval.low, found.loss_interval.high
    typer.echo(
        f"loss {found.loss:.3f} nats a token ({low:.3f} to {high:.3f}) on {found.rows} {split} rows; "
        f"base model {found.base_loss:.3f}"
    )
    typer.echo(verdict_in_words(found))
    if found.quality is not None:
        typer.echo(f"{found.quality.rows} answers: {found.quality.in_words()}")
    typer.echo(f"report: {out or guide.folder / 'report'}/index.html")


@app.command("merge", rich_help_panel=STAGES)
def merge_command(
    guide: GuideFolder,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FOLDER", help="The merged model to be.", show_default=False),
    ],
    dataset: Annotated[
        Path | None,
        typer.Option(metavar="DATASET", help="Rows to compare answers on, else the guide's own."),
    ] = None,
) -> None:
    """Put a guide's adapter into its base model: a plain folder, proved equal."""
    from fieldguide.guide import load_guide
    from fieldguide.merging import merge_guide

    loaded = load_guide(guide)
    merge_guide(loaded, out, _rows_for(guide, dataset), announce=typer.echo)


@app.command("export", rich_help_panel=STAGES)
def export_command(
    source: Annotated[Path, typer.Argument(metavar="GUIDE|DATASET", help="A guide, or a data set.")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help="A guide: transformers, ollama, hub. A data set: llava, sharegpt, parquet.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="PATH", help="Where to write it.", show_default=False)
    ],
    dataset: Annotated[
        Path | None,
        typer.Option(metavar="DATASET", help="Rows to prove a merge on, else the guide's own."),
    ] = None,
    merged: Annotated[Path | None, typer.Option(metavar="FOLDER", help="What merge wrote.")] = None,
    base: Annotated[str, typer.Option(metavar="NAME", help="Ollama's name of the base model.")] = "",
    repo: Annotated[str, typer.Option(metavar="OWNER/NAME", help="Of the model hub.")] = "",
    push: Annotated[bool, typer.Option("--push", help="Send it to the hub; else it is only shown.")] = False,
    split: Annotated[str, typer.Option(metavar="SPLIT", help="Of a data set; all if not given.")] = "",
) -> None:
    """Make a guide ready for transformers, Ollama or a model hub; or a data set for another trainer."""
    if (source / "dataset.json").is_file():
        from fieldguide.data.dataset import load_dataset
        from fieldguide.data.export import export_examples

        count = export_examples(load_dataset(source), to, out, split=split, announce=typer.echo)
        typer.echo(
            f"{out}: {count} rows" + ("" if split else ", those for testing too (--split leaves them out)")
        )
        return
    from fieldguide.errors import SettingsError
    from fieldguide.guide import load_guide
    from fieldguide.merging import TARGETS, export_guide

    if to not in TARGETS:
        raise SettingsError(f"--to {to}: not known for a guide", f"one of {', '.join(TARGETS)}")
    rows = None if to == "ollama" or merged is not None else _rows_for(source, dataset)
    export_guide(
        load_guide(source), out, to=to, dataset=rows, merged=merged, repo_id=repo, push=push, base=base,
        announce=typer.echo,
    )  # fmt: skip


def _rows_for(guide: Path, dataset: Path | None) -> Any:
    """The data set that is given, or that lies in the guide."""
    from fieldguide.build import DATASET_FOLDER
    from fieldguide.data.dataset import load_dataset
    from fieldguide.errors import DataError

    folder = dataset or guide / DATASET_FOLDER
    if dataset is None and not folder.is_dir():
        raise DataError(f"{guide}: holds no data set of its own", "give one with --dataset")
    return load_dataset(folder)


@app.command("score", rich_help_panel=STAGES)
def score_command(
    results: Annotated[
        Path, typer.Argument(metavar="RESULTS", help="A CSV or Parquet of true and predicted labels.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Also write FILE.html and FILE.json.")
    ] = None,
    actual: Annotated[str, typer.Option(metavar="COLUMN", help="The true labels; found by name.")] = "",
    predicted: Annotated[str, typer.Option(metavar="COLUMN", help="The answers; found by name.")] = "",
    other: Annotated[
        Path | None,
        typer.Option("--beside", metavar="RESULTS", help="Other answers to the same pictures, to compare."),
    ] = None,
    words: Annotated[
        bool, typer.Option("--words", help="Answers in words: columns reference and answer, no labels.")
    ] = False,
) -> None:
    """Compute accuracy, precision, recall and F1 from any table of true and predicted labels."""
    from rich.console import Console

    from fieldguide.report.score import read_results, score_results, table_for_terminal, write_scores
    from fieldguide.report.wording import percent

    if words:
        _score_words(results, out)
        return
    read = read_results(results, actual, predicted)
    metrics = score_results(read)
    Console().print(table_for_terminal(metrics))
    low, high = metrics.accuracy_interval.low, metrics.accuracy_interval.high
    typer.echo(f"accuracy 95% interval: {percent(low)} to {percent(high)}")
    for remark in read.remarks():
        typer.echo(remark, err=True)
    if metrics.off_list:
        total = sum(metrics.off_list.values())
        named = ", ".join(f"{label} ({count})" for label, count in list(metrics.off_list.items())[:10])
        typer.echo(f"{total} answers are no true label of the table, counted as wrong: {named}", err=True)
    compared = None
    if other is not None:
        from fieldguide.report.beside import beside

        compared = beside(read, read_results(other))
        typer.echo(compared.in_words())
    if out is not None:
        for path in write_scores(read, metrics, out, compared):
            typer.echo(str(path))


def _score_words(results: Path, out: Path | None) -> None:
    from fieldguide.files import write_json
    from fieldguide.report.freetext import score_answers
    from fieldguide.report.score import read_answers

    references, answers, left_out = read_answers(results)
    found = score_answers(references, answers)
    typer.echo(f"{found.rows} rows: {found.in_words()}")
    if found.empty:
        typer.echo(f"{found.empty} without an answer, counted as wrong", err=True)
    if left_out:
        typer.echo(f"{len(left_out)} rows without a reference, left out", err=True)
    if out is not None:
        figures = out.with_suffix(".json")
        write_json(figures, {"file": results.name, "left_out": left_out, **found.to_dict()})
        typer.echo(str(figures))
