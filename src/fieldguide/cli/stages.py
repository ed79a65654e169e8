"""The stages that lead to a guide: import, look, embed, train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fieldguide.cli.group import (
    STAGES,
    DatasetFolder,
    Overrides,
    RecipeFile,
    app,
)


@app.command("train", rich_help_panel=STAGES)
def train_command(
    dataset: DatasetFolder,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="GUIDE", help="The guide folder to be.", show_default=False)
    ],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint, exactly.")
    ] = False,
    recipe: RecipeFile = None,
    settings: Overrides = None,
) -> None:
    """Train a guide on a data set: warm start, projector and LoRA, calibration."""
    from fieldguide.data.dataset import load_dataset
    from fieldguide.settings import load_recipe, parse_overrides
    from fieldguide.train.processes import first_process
    from fieldguide.training import train_guide

    wanted = load_recipe(recipe, parse_overrides(settings or []))
    guide = train_guide(load_dataset(dataset), out, wanted, resume=resume, announce=typer.echo)
    if first_process():
        typer.echo(f"guide: {guide.folder}; next: fieldguide evaluate {guide.folder} {dataset}")


@app.command("import", rich_help_panel=STAGES)
def import_command(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", help="A folder of pictures, a table, or conversations.", show_default=False
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DATASET", help="Where to write it.", show_default=False)
    ],
    notes: Annotated[Path | None, typer.Option(metavar="TABLE", help="What you know of each label.")] = None,
    fixes: Annotated[
        Path | None, typer.Option(metavar="TABLE", help="Decisions: file, action, label.")
    ] = None,
    splits_from: Annotated[
        Path | None, typer.Option(metavar="DATASET", help="Pictures of that data set keep their split.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where a table's pictures lie, if not beside it.")
    ] = None,
    copy: Annotated[bool | None, typer.Option("--copy/--no-copy", help="Copy the pictures too.")] = None,
    val: Annotated[float | None, typer.Option(help="Share for validation.")] = None,
    test: Annotated[float | None, typer.Option(help="Share for testing.")] = None,
    folds: Annotated[int | None, typer.Option(help="Also number cross-validation folds.")] = None,
    seed: Annotated[int | None, typer.Option(help="Another seed, another split.")] = None,
    image_column: Annotated[str | None, typer.Option(help="Column of a table with the pictures.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of a table with the labels.")] = None,
    label_pattern: Annotated[
        str | None, typer.Option(metavar="REGEX", help="The label in a file name, as its one (group).")
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Pictures sharing its value share a split; or parent."),
    ] = None,
    recipe: RecipeFile = None,
    settings: Overrides = None,
) -> None:
    """Turn labelled pictures or conversations into a data set: read, check, find duplicates, group, split."""
    from fieldguide.data.importer import import_pictures
    from fieldguide.settings import load_recipe, parse_overrides

    overrides = parse_overrides(settings or [])
    options = {
        "val": val, "test": test, "folds": folds, "seed": seed, "copy": copy, "group_by": group_by,
        "image_column": image_column, "label_column": label_column, "label_pattern": label_pattern,
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value is not None}
    wanted = load_recipe(recipe, {**overrides, "import": {**overrides.get("import", {}), **given}}).imports
    import_pictures(
        source,
        out,
        wanted,
        notes=notes,
        fixes=fixes,
        splits_from=splits_from,
        images=images,
        announce=typer.echo,
    )


@app.command("look", rich_help_panel=STAGES)
def look_command(
    dataset: DatasetFolder,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="PAGE", help="The page, else DATASET/look.html.")
    ] = None,
    recipe: RecipeFile = None,
    settings: Overrides = None,
) -> None:
    """Show a data set on one offline page: counts, duplicates, problems, labels that are probably wrong."""
    from fieldguide.data.dataset import load_dataset
    from fieldguide.report.look import look_at
    from fieldguide.settings import load_recipe, parse_overrides

    pictures = load_dataset(dataset)
    features, remark = _cached_features(pictures, load_recipe(recipe, parse_overrides(settings or [])).embed)
    if remark:
        typer.echo(remark, err=True)
    found = look_at(pictures, out, features)
    typer.echo(f"{found.page}: {len(pictures.examples)} pictures, {len(found.problems)} problems")
    if features:
        flagged = sum(suspect.flagged for suspect in found.suspects)
        typer.echo(
            f"{len(found.suspects)} doubtful labels, {flagged} of them very probably wrong; "
            f"{len(found.outliers)} odd ones out"
        )


def _cached_features(dataset: Any, settings: Any) -> tuple[Any, str]:
    """What the feature cache holds of a data set, computing nothing; and what the user should know."""
    from fieldguide.errors import ModelMissing
    from fieldguide.model.vision import load_encoder
    from fieldguide.report.suspects import Features
    from fieldguide.train.features import Store, feature_folder

    try:
        encoder = load_encoder(settings, announce=lambda line: None)
    except ModelMissing as error:
        return None, f"doubtful labels are left out: {error.message}\n→ {error.hint}"
    store = Store(feature_folder(encoder), encoder)
    wanted = list(dict.fromkeys(example.sha256 for example in dataset.examples if example.sha256))
    keys = tuple(key for key in wanted if key in store.places)
    command = f"fieldguide embed {dataset.folder}"
    if not keys:
        return None, f"doubtful labels are left out: they need features of the pictures\n→ {command}"
    missing = len(wanted) - len(keys)
    remark = f"{missing} of {len(wanted)} pictures have no features, and are not judged\n→ {command}"
    return Features(keys, *store.gather(keys)), remark if missing else ""


@app.command("embed", rich_help_panel=STAGES)
def embed_command(
    dataset: DatasetFolder,
    recipe: RecipeFile = None,
    settings: Overrides = None,
) -> None:
    """Compute the frozen encoder's features of all pictures, or what the cache still lacks of them."""
    from fieldguide.data.dataset import load_dataset
    from fieldguide.data.examples import sha256s_of
    from fieldguide.model.vision import load_encoder
    from fieldguide.settings import load_recipe, parse_overrides
    from fieldguide.train.features import embed_pictures, feature_folder
    from fieldguide.train.sharing import speaks

    wanted = load_recipe(recipe, parse_overrides(settings or [])).embed
    examples = load_dataset(dataset)
    encoder = load_encoder(wanted)
    by_content = {  # many rows may be about one picture
        sha256: path
        for example in examples.examples
        for path, sha256 in zip(examples.paths(example), sha256s_of(example), strict=True)
    }
    pictures = [(path, sha256) for sha256, path in by_content.items()]
    announce = typer.echo if speaks() else _silent
    table = embed_pictures(pictures, encoder, batch_size=wanted.batch_size, announce=announce, together=True)
    if not speaks():  # the first of several processes tells of all pictures
        return
    for key, reason in table.failed.items():
        typer.echo(f"left out: {_named(key, pictures)}: {reason}", err=True)
    patches, channels = encoder.grid_shape
    typer.echo(
        f"{len(table.keys)} pictures: features ({patches} × {channels} and {encoder.pooled_size} numbers) "
        f"by {encoder.runtime_name} in {feature_folder(encoder)}"
    )


def _silent(line: str) -> None:
    """Other processes than the first say nothing."""


def _named(key: str, pictures: list[tuple[Path, str]]) -> str:
    return next((str(path) for path, sha256 in pictures if sha256 == key), key)
