"""What is used every day: build a guide, ask it, have it name thousands of pictures."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from fieldguide.cli.group import (
    EVERYDAY,
    Asking,
    Coverage,
    Explain,
    Labels,
    NoAbstain,
    Overrides,
    RecipeFile,
    TopK,
    TrainedOn,
    app,
)
from fieldguide.errors import SettingsError


@app.command("build", rich_help_panel=EVERYDAY)
def build_command(
    photos: Annotated[
        Path,
        typer.Argument(
            metavar="PHOTOS", help="A folder of pictures, a table, a data set.", show_default=False
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="GUIDE", help="The guide folder to be.", show_default=False)
    ],
    notes: Annotated[Path | None, typer.Option(metavar="TABLE", help="What you know of each label.")] = None,
    recipe: RecipeFile = None,
    settings: Overrides = None,
) -> None:
    """Make a guide: import, train, evaluate, report. Run again to go on after a stop."""
    from fieldguide.build import build
    from fieldguide.settings import load_recipe, parse_overrides

    build(
        photos,
        out,
        notes=notes,
        recipe=load_recipe(recipe, parse_overrides(settings or [])),
        announce=typer.echo,
    )


@app.command("ask", rich_help_panel=EVERYDAY)
def ask_command(
    guide: Annotated[
        str,
        typer.Argument(metavar="GUIDE", help="A guide folder; with --labels a model.", show_default=False),
    ],
    image: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGE", help="A picture; of a guide that reads text only, the text.", show_default=False
        ),
    ],
    question: Annotated[
        str, typer.Argument(metavar="QUESTION", help="About the picture; how one can tell, if not given.")
    ] = "",
    labels: Labels = None,
    asking: Asking = None,
    top_k: TopK = None,
    heat: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Draw where in the picture the label comes from.")
    ] = None,
    page: Explain = None,
    dataset: TrainedOn = None,
    coverage: Coverage = None,
    no_abstain: NoAbstain = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Name one picture: its label, how likely that is, what else it could be, and why."""
    import json

    answerer = _answerer(guide, labels, asking, coverage, no_abstain)
    explanation = None
    if page is not None:
        _check_explainable(answerer, guide)
        explanation = answerer.explain(image, question, dataset=dataset, top_k=top_k or 0)
        _write_page(page, [explanation], f"{image.name}: {explanation.answer.label}")
    answer = explanation.answer if explanation is not None else answerer.ask(image, question, top_k or 0)
    if heat is not None:
        from fieldguide.answer.heat import save_drawing, where

        if not hasattr(answerer, "label_scores"):
            raise SettingsError(
                f"{guide}: tells no scores to draw from", "--heat needs a model that runs here"
            )
        found = where(answerer, image)
        save_drawing(heat, found.image, found.heat)
        typer.echo(f"{heat}: {found.in_words()}", err=True)
    scores = [{"label": score.label, "probability": score.probability} for score in answer.scores]
    if as_json:
        best = {"label": answer.label, "probability": answer.probability}
        trust = {"familiarity": answer.familiarity, "in_guide": answer.in_guide, "coverage": answer.coverage}
        record = {"image": answer.image, **best, "scores": scores, "text": answer.text, **trust}
        record |= {"explanation": explanation.to_dict()} if explanation is not None else {}
        typer.echo(json.dumps(record, ensure_ascii=False, indent=2))
        return
    from rich.cells import cell_len

    if answer.in_guide is False:
        typer.echo(
            f"not in this guide: of the pictures it knows, {answer.familiarity:.1%} look as strange; "
            f"it would be {answer.label}\n"
        )
    width = max((cell_len(score.label) for score in answer.scores), default=0)
    for score in answer.scores:
        likely = "" if score.probability is None else f"  {score.probability:7.2%}"
        typer.echo(f"{score.label}{' ' * (width - cell_len(score.label))}{likely}".rstrip())
    if answer.coverage:
        typer.echo(
            f"\nthe right label is among these in {answer.coverage:.0%} of pictures like the guide's own"
        )
    if answer.text:
        typer.echo(f"\n{answer.text}" if answer.scores else answer.text)


def _check_explainable(answerer: Any, name: str) -> None:
    if not hasattr(answerer, "explain"):
        raise SettingsError(f"{name}: is no guide", "--explain needs one; --heat works with any local model")


def _write_page(page: Path, explanations: list[Any], title: str) -> None:
    from fieldguide.report.explained import write_explanations

    write_explanations(page, explanations, title)
    typer.echo(f"{page}: {len(explanations)} explained", err=True)


@app.command("classify", rich_help_panel=EVERYDAY)
def classify_command(
    photos: Annotated[
        list[str],
        typer.Argument(
            metavar="[GUIDE] PHOTOS...",
            help="A guide folder, unless --model is given; pictures, and folders of them.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="TABLE", help="A .csv, .jsonl or .parquet.", show_default=False),
    ],
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="starter, a folder, OWNER/NAME, ollama:NAME, openai:NAME."),
    ] = None,
    labels: Labels = None,
    asking: Asking = None,
    top_k: TopK = None,
    page: Explain = None,
    dataset: TrainedOn = None,
    group_by: Annotated[
        str | None,
        typer.Option(
            metavar="HOW", help="Pictures of one thing: parent, a pattern (…), a CSV of image, group."
        ),
    ] = None,
    coverage: Coverage = None,
    no_abstain: NoAbstain = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Pictures at once; the guide's own number if not given.")
    ] = None,
) -> None:
    """Name thousands of pictures, one row each. Run again to go on after a stop."""
    from fieldguide.answer.classify import classify_pictures
    from fieldguide.answer.pooling import grouping
    from fieldguide.settings import AnswerSettings

    if model is None and len(photos) < 2:
        raise SettingsError(
            f"{photos[0]}: pictures are missing, or a guide", "fieldguide classify GUIDE PHOTOS -o TABLE"
        )
    named, pictures = (photos[0], photos[1:]) if model is None else (model, photos)
    answerer = _answerer(named, labels, asking, coverage, no_abstain)
    usual = getattr(answerer, "answer_settings", AnswerSettings())
    if group_by is not None and usual.coverage:
        raise SettingsError(
            "--group-by needs all labels, and --coverage gives a set of them", "leave one out"
        )
    if page is not None:
        _check_explainable(answerer, named)
    summary = classify_pictures(
        answerer,
        [Path(picture) for picture in pictures],
        out,
        top_k=top_k or usual.top_k,
        batch_size=batch_size or int(getattr(answerer, "batch_size", usual.batch_size)),
        group_of=grouping(group_by) if group_by is not None else None,
        announce=typer.echo,
    )
    if page is not None:
        from fieldguide.answer.explain import explain_least_sure

        found = explain_least_sure(answerer, summary.least_sure, dataset=dataset)
        _write_page(page, found, f"{out.name}: the least sure answers")


def _guide_at(folder: Path) -> Any:
    from fieldguide.errors import GuideError
    from fieldguide.guide import load_guide

    try:
        return load_guide(folder)
    except GuideError as error:
        if folder.exists():
            raise
        raise SettingsError(f"{folder}: no guide there", "to ask a model, give --labels a,b,c") from error


def _answerer(
    model: str,
    labels: str | None,
    asking: Path | None,
    coverage: float | None = None,
    no_abstain: bool = False,
) -> Any:
    """A guide, with the answer settings that the command line changes; or a model and its labels."""
    from fieldguide.zeroshot.names import read_labels
    from fieldguide.zeroshot.opening import is_guide, is_server, load_asking_settings, open_answerer

    if labels is None and asking is None and not is_server(model):
        changes: dict[str, Any] = {"coverage": coverage} if coverage is not None else {}
        changes |= {"abstain": False} if no_abstain else {}
        guide = _guide_at(Path(model).expanduser())
        return guide.answering(**changes) if changes else guide
    if is_guide(model):
        raise SettingsError(f"{model}: a guide has its own labels", "leave --labels and --asking out")
    if coverage is not None:
        raise SettingsError("--coverage needs validation pictures, which only a guide has", "leave it out")
    names = read_labels(labels) if labels is not None else None
    # What opening says goes to standard error: `ask --json` prints nothing but JSON.
    return open_answerer(model, names, load_asking_settings(asking), partial(typer.echo, err=True))
