"""The command line itself: quick help, one-line errors, exit codes, and a reference page that is true."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import fieldguide
from fieldguide.cli import group as cli
from fieldguide.errors import DataError, FieldguideError

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "transformers", "sklearn", "scipy", "polars", "pyarrow", "PIL", "numpy", "matplotlib"}


def run_fieldguide(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fieldguide", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "100", **more},
    )


def app_that_raises(error: BaseException) -> typer.Typer:
    """An application of the same kind as fieldguide's, with one command that fails."""
    app = typer.Typer(cls=cli._Commands, pretty_exceptions_enable=False)

    @app.callback()
    def root() -> None: ...

    @app.command()
    def fail() -> None:
        raise error

    return app


@pytest.fixture(autouse=True)
def _no_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FIELDGUIDE_DEBUG", raising=False)


def test_an_expected_error_is_one_line_and_its_remedy() -> None:
    error = DataError("photos/: holds no pictures", "point it at a folder with .jpg files")
    result = CliRunner().invoke(app_that_raises(error), ["fail"])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == "fieldguide: photos/: holds no pictures\n→ point it at a folder with .jpg files\n"


def test_an_error_without_a_remedy_is_one_line() -> None:
    result = CliRunner().invoke(app_that_raises(FieldguideError("no")), ["fail"])
    assert (result.exit_code, result.stderr) == (2, "fieldguide: no\n")


def test_what_the_system_refuses_is_one_line() -> None:
    error = PermissionError(13, "Permission denied", "/locked/guide")
    result = CliRunner().invoke(app_that_raises(error), ["fail"])
    assert (result.exit_code, result.stderr) == (2, "fieldguide: /locked/guide: Permission denied\n")


def test_debugging_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    error = FieldguideError("inner")
    monkeypatch.setenv("FIELDGUIDE_DEBUG", "1")
    assert CliRunner().invoke(app_that_raises(error), ["fail"]).exception is error
    monkeypatch.setenv("FIELDGUIDE_DEBUG", "0")
    assert CliRunner().invoke(app_that_raises(error), ["fail"]).exit_code == 2


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    error = ZeroDivisionError("ours")
    assert CliRunner().invoke(app_that_raises(error), ["fail"]).exception is error


def test_stopping_says_how_to_go_on() -> None:
    result = CliRunner().invoke(app_that_raises(KeyboardInterrupt()), ["fail"])
    assert result.exit_code == 130
    assert "run the same command again to continue" in result.stderr


def test_version_and_module() -> None:
    result = run_fieldguide("--version")
    assert (result.returncode, result.stdout) == (0, f"fieldguide {fieldguide.__version__}\n")


def test_no_arguments_print_help() -> None:
    assert "Usage: fieldguide" in run_fieldguide().stdout + run_fieldguide().stderr


def test_an_unknown_command_is_refused() -> None:
    result = run_fieldguide("clasify")
    assert result.returncode == 2
    assert "clasify" in result.stderr
    assert "Traceback" not in result.stderr


def test_help_loads_nothing_heavy() -> None:
    code = """
import json, sys
from fieldguide.cli import app
try:
    app(["--help"], prog_name="fieldguide")
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    loaded = set(json.loads(result.stderr.splitlines()[-1]))
    assert "typer" in loaded
    assert loaded & HEAVY == set()


@pytest.mark.skipif(os.name == "nt", reason="needs resource")
def test_help_answers_within_half_a_second() -> None:
    """Processor time, the best of three: what the command costs, whatever else the machine is doing."""
    import resource

    def processor_seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run_fieldguide("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(processor_seconds() for _ in range(3)) < 0.5


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_reader_who_leaves_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        result = subprocess.run(
            [sys.executable, "-m", "fieldguide", "--version"],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
    assert result.stderr == ""
    assert result.returncode == 1


def commands() -> dict[str, typer.models.CommandInfo]:
    return {str(command.name): command for command in cli.app.registered_commands}


def test_every_command_has_its_place_and_its_help() -> None:
    names = set(commands()) | {str(one.name) for one in cli.app.registered_groups}
    assert names - set(cli.ORDER) == set(), "add it to ORDER in cli/group.py"
    for name, command in commands().items():
        assert command.rich_help_panel in (cli.EVERYDAY, cli.STAGES, cli.MACHINE), name
        assert command.callback
        assert command.callback.__doc__, name


def test_help_lists_the_commands_in_order() -> None:
    root = typer.main.get_command(cli.app)
    listed = root.list_commands(typer.Context(root))  # type: ignore[attr-defined]
    assert listed == sorted(listed, key=cli.ORDER.index)


def test_the_reference_page_is_the_real_help() -> None:
    spec = importlib.util.spec_from_file_location("make_cli", ROOT / "docs" / "make_cli.py")
    assert spec
    assert spec.loader
    make_cli = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_cli)
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == make_cli.page(), "run `make docs`"


def test_the_documents_name_only_commands_that_exist() -> None:
    names = set(commands()) | {str(one.name) for one in cli.app.registered_groups}
    called = re.compile(r"(?:^| {4}|`|/)fieldguide ([a-z]+)\b", re.MULTILINE)
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "Makefile"]
    wrong = {
        f"{page.name}: fieldguide {name}"
        for page in pages
        for name in called.findall(page.read_text(encoding="utf-8"))
        if name not in names
    }
    assert wrong == set()
