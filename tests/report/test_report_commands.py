"""The commands score and look, run as a user would; evaluate needs a guide and is tested with one."""

import pytest
from typer.testing import CliRunner

from fieldguide.cli import app
from fieldguide.data.dataset import write_dataset
from fieldguide.files import sha256_file
from fieldguide.records import Example


def test_score_prints_the_table_and_writes_both_files(tmp_path):
    (tmp_path / "r.csv").write_text("actual,predicted\ncat,cat\ncat,[red]tiger\ndog,\n")
    result = CliRunner().invoke(app, ["score", str(tmp_path / "r.csv"), "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[1].split() == ["cat", "1.000000", "0.500000", "0.666667", "2"]
    assert "row 4" in result.output
    assert "[red]tiger (1)" in result.output
    assert (tmp_path / "out.html").exists()
    assert (tmp_path / "out.json").exists()


def test_score_of_a_missing_file_is_one_line(tmp_path):
    result = CliRunner().invoke(app, ["score", str(tmp_path / "none.csv")])
    assert result.exit_code == 2
    assert "no such file" in result.output
    assert "Traceback" not in result.output


@pytest.fixture
def dataset(tmp_path, make_picture):
    examples = []
    for index in range(8):
        path = make_picture(f"photos/{index}.png", seed=index)
        examples.append(
            Example(
                id=f"{index}.png",
                image=f"../photos/{index}.png",
                sha256=sha256_file(path),
                label="ab"[index % 2],
                group=str(index),
                split="train",
            )
        )
    return write_dataset(tmp_path / "data", examples, [], {}, [], {}, source=str(tmp_path / "photos"))


def test_look_without_models_still_shows_the_rest(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("FIELDGUIDE_CACHE", str(tmp_path / "empty"))
    result = CliRunner().invoke(app, ["look", str(dataset.folder), "-o", str(tmp_path / "page.html")])
    assert result.exit_code == 0, result.output
    assert "fieldguide models get starter" in result.output
    assert "fieldguide embed DATASET" in (tmp_path / "page.html").read_text()


@pytest.mark.starter
def test_look_uses_features_once_they_are_cached(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("fieldguide.train.features.cache_dir", lambda: tmp_path / "cache")
    look = ["look", str(dataset.folder), "-o", str(tmp_path / "page.html")]
    before = CliRunner().invoke(app, look)
    assert f"fieldguide embed {dataset.folder}" in before.output
    assert CliRunner().invoke(app, ["embed", str(dataset.folder)]).exit_code == 0
    after = CliRunner().invoke(app, look)
    assert after.exit_code == 0, after.output
    assert "doubtful labels" in after.output
    assert (tmp_path / "suspects.csv").exists()
