"""What is used every day: build a guide, ask it, have it name thousands of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fieldguide.cli.group import (
    EVERYDAY,
    Coverage,
    GuideFolder,
    NoAbstain,
    Overrides,
    RecipeFile,
    TopK,
    app,
)


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
    guide: GuideFolder,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture.", show_default=False)],
    question: Annotated[
        str, typer.Argument(metavar="QUESTION", help="About the picture; how one can tell, if not given.")
    ] = "",
    top_k: TopK = None,
    coverage: Coverage = None,
    no_abstain: NoAbstain = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Name one picture: its label, how likely that is, what else it could be, and why."""
    import json

    answer = _loaded(guide, coverage, no_abstain).ask(image, question, top_k or 0)
    scores = [{"label": score.label, "probability": score.probability} for score in answer.scores]
    if as_json:
        best = {"label": answer.label, "probability": answer.probability}
        trust = {"familiarity": answer.familiarity, "in_guide": answer.in_guide, "coverage": answer.coverage}
        record = {"image": answer.image, **best, "scores": scores, "text": answer.text, **trust}
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
        typer.echo(f"{score.label}{' ' * (width - cell_len(score.label))}  {score.probability:7.2%}")
    if answer.coverage:
        typer.echo(
            f"\nthe right label is among these in {answer.coverage:.0%} of pictures like the guide's own"
        )
    if answer.text:
        typer.echo(f"\n{answer.text}" if answer.scores else answer.text)


def _loaded(folder: Path, coverage: float | None, no_abstain: bool) -> Any:
    """The guide, with the answer settings that the command line changes."""
    from fieldguide.guide import load_guide

    changes = {
        **({"coverage": coverage} if coverage is not None else {}),
        **({"abstain": False} if no_abstain else {}),
    }
    guide = load_guide(folder)
    return guide.answering(**changes) if changes else guide


@app.command("classify", rich_help_panel=EVERYDAY)
def classify_command(
    guide: GuideFolder,
    photos: Annotated[
        list[Path],
        typer.Argument(metavar="PHOTOS", help="Pictures, and folders of them.", show_default=False),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="TABLE", help="A .csv, .jsonl or .parquet.", show_default=False),
    ],
    top_k: TopK = None,
    coverage: Coverage = None,
    no_abstain: NoAbstain = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Pictures at once; the guide's own number if not given.")
    ] = None,
) -> None:
    """Name thousands of pictures, one row each. Run again to go on after a stop."""
    from fieldguide.answer.classify import classify_pictures

    loaded = _loaded(guide, coverage, no_abstain)
    usual = loaded.answer_settings
    classify_pictures(
        loaded,
        photos,
        out,
        top_k=top_k or usual.top_k,
        batch_size=batch_size or usual.batch_size,
        announce=typer.echo,
    )
