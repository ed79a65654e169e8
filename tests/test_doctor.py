"""What `fieldguide doctor` says."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fieldguide import doctor
from fieldguide.cli import app

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "not" / "yet"
    monkeypatch.setenv("FIELDGUIDE_CACHE", str(cache))
    return cache


def test_missing_models_come_with_their_command() -> None:
    health = doctor.examine()
    assert {model.state for model in health.models} == {"missing"}
    text = doctor.report(health)
    for command in ("starter", "starter-text", "starter-speech"):
        assert f"→ fieldguide models get {command}\n" in text
    assert health.cores >= 1
    assert health.packages["torch"]
    assert f"{health.cores} cores" in text


def test_cache_sizes(empty_cache: Path) -> None:
    (empty_cache / "features" / "deep").mkdir(parents=True)
    (empty_cache / "features" / "deep" / "x").write_bytes(bytes(2_500_000))
    assert doctor.examine().cache_mb == {"features": 2.5, "models": 0, "wheels": 0}


def test_only_extras_that_exist_are_named_and_all_of_them() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(doctor.EXTRAS) == set(project["optional-dependencies"]) - {"dev"}


def test_a_missing_extra_says_what_it_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "EXTRAS", {"no_such_package": "wings"})
    health = doctor.examine()
    assert health.extras == (
        doctor.ExtraState("no_such_package", "wings", False, 'pip install "fieldguide[no_such_package]"'),
    )
    assert "missing  wings" in doctor.report(health)


def test_a_missing_requirement_is_shouted(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: "" if name == "timm" else real(name))
    assert "MISSING: timm  →  pip install timm" in doctor.report(doctor.examine())


def test_json() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0
    health = json.loads(result.stdout)
    assert health["models"][0]["command"] == "fieldguide models get starter"
    assert {"cores", "memory_gb", "gpus", "packages", "extras", "cache_mb"} <= set(health)


def test_models_commands() -> None:
    listed = CliRunner().invoke(app, ["models", "list"])
    assert listed.exit_code == 0
    assert listed.stdout.count("missing") == 4
    assert "Apache-2.0" in listed.stdout
    missing = CliRunner().invoke(app, ["models", "path"])
    assert missing.exit_code == 2
    assert "fieldguide models get starter" in missing.output
    unknown = CliRunner().invoke(app, ["models", "get", "gpt"])
    assert unknown.exit_code == 2
    assert "known: starter, starter-text, starter-speech" in unknown.output
