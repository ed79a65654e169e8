"""The group of all commands, and what they share: arguments, order, and errors as one line.

An expected error is one line on standard error, its remedy on the next; `FIELDGUIDE_DEBUG=1` shows the
traceback instead.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fieldguide.errors import FieldguideError

# Help panels, and the order in which `--help` lists the commands, whatever the order below.
EVERYDAY = "Every day"
STAGES = "The stages of build, one by one"
MACHINE = "Models and this machine"
ORDER = (
    "build", "ask", "classify",
    "import", "look", "embed", "train", "evaluate", "merge", "export", "score",
    "models", "doctor",
)  # fmt: skip

# Arguments and options that several commands share.
DatasetFolder = Annotated[Path, typer.Argument(metavar="DATASET", help="A data set.", show_default=False)]
GuideFolder = Annotated[Path, typer.Argument(metavar="GUIDE", help="A guide folder.", show_default=False)]
TopK = Annotated[int | None, typer.Option(min=1, help="Labels listed; the guide's own number if not given.")]
Labels = Annotated[
    str | None,
    typer.Option(metavar="LABELS", help="a,b,c, a .txt of one a line, or a table of notes."),
]
Asking = Annotated[
    Path | None, typer.Option("--asking", metavar="TOML", help="How models that are no guides are asked.")
]
Coverage = Annotated[
    float | None,
    typer.Option(metavar="SHARE", help="List the labels that hold the right one so often, e.g. 0.9."),
]
NoAbstain = Annotated[
    bool, typer.Option("--no-abstain", help='Never say "not in this guide"; saves the time to find out.')
]
Explain = Annotated[
    Path | None,
    typer.Option("--explain", metavar="HTML", help="Write a page that says what can be checked about it."),
]
TrainedOn = Annotated[
    Path | None,
    typer.Option("--dataset", metavar="DATASET", help="What the guide was trained on, else the one inside."),
]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", "-r", metavar="TOML", help="A recipe file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="TABLE.SETTING=VALUE", help="One setting, e.g. train.epochs=5."),
]


class _Commands(TyperGroup):
    """The group of all commands: lists them in ORDER and turns expected errors into one line."""

    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FieldguideError as error:
            if os.environ.get("FIELDGUIDE_DEBUG", "") not in ("", "0"):
                raise
            typer.echo(f"fieldguide: {error.message}", err=True)
            if error.hint:
                typer.echo(f"→ {error.hint}", err=True)
            raise typer.Exit(getattr(error, "code", 2)) from None
        except BrokenPipeError:
            raise
        except OSError as error:  # a full disk, a folder that may not be written: no fault of the program
            if os.environ.get("FIELDGUIDE_DEBUG", "") not in ("", "0") or error.strerror is None:
                raise
            where = f"{error.filename}: " if error.filename is not None else ""
            typer.echo(f"fieldguide: {where}{error.strerror}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo("stopped; run the same command again to continue", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from fieldguide import __version__

        typer.echo(f"fieldguide {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Turn a folder of pictures, and what you know about them, into an AI field guide."""


def main() -> None:
    """Run the command line: the entry point of the `fieldguide` script."""
    try:
        try:
            app(prog_name="fieldguide")
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`| head`) has gone. Python would complain once more while closing standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
