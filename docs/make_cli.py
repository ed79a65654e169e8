"""Write docs/cli.md, the reference of all commands, from the commands themselves.

python docs/make_cli.py          (`make docs` calls it; a test holds the page equal to what this writes)
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from fieldguide.cli import app
from fieldguide.files import write_text

PAGE = Path(__file__).with_name("cli.md")
INTRODUCTION = """# Every command

Written by `make docs` from the commands' own help: change that, not this page.

An expected error is one line on standard error, with its remedy on the next, and exit code 2;
`FIELDGUIDE_DEBUG=1` shows the traceback instead. Exit code 130 means that you stopped the command.
"""


def page() -> str:
    """The whole page as Markdown."""
    root: Any = typer.main.get_command(app)
    return INTRODUCTION + "".join(_section(root, "fieldguide"))


def _section(command: Any, name: str) -> Iterator[str]:
    context: Any = typer.Context(command, info_name=name)
    usage = " ".join([name, "[OPTIONS]", *_arguments(command)])
    yield f"\n## `{name}`\n\n{inspect.cleandoc(command.help or '')}\n\n    {usage}\n"
    rows = [_row(parameter) for parameter in command.params if not getattr(parameter, "hidden", False)]
    if rows:
        yield "\n| | | default |\n|---|---|---|\n" + "".join(rows)
    for child in command.list_commands(context) if hasattr(command, "list_commands") else ():
        yield from _section(command.commands[child], f"{name} {child}")


def _arguments(command: Any) -> Iterator[str]:
    """As usage lines have them, the same with every version of typer."""
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            name = parameter.metavar or parameter.name.upper()
            yield (name if parameter.required else f"[{name}]") + ("..." if parameter.nargs == -1 else "")
    if hasattr(command, "list_commands"):
        yield "COMMAND [ARGS]..."


def _row(parameter: Any) -> str:
    is_argument = parameter.param_type_name == "argument"
    names = [parameter.metavar or parameter.name.upper()] if is_argument else parameter.opts
    shown = parameter.default
    if shown is None or shown is False or shown in ((), []) or callable(shown):
        shown = "required" if parameter.required else ""
    cells = (", ".join(f"`{name}`" for name in names), parameter.help or "", str(shown))
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |\n"


if __name__ == "__main__":
    write_text(PAGE, page())
