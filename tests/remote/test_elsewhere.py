"""What the rest of the project makes of such a model: tables, evaluation, the settings in the documents."""

from __future__ import annotations

import csv
import re
import tomllib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from server import FakeServer

from fieldguide.answer.classify import classify_pictures
from fieldguide.data.dataset import load_dataset, write_dataset
from fieldguide.files import read_json, sha256_file
from fieldguide.records import Example
from fieldguide.remote.model import RemoteModel
from fieldguide.remote.settings import RemoteSettings, load_remote_settings
from fieldguide.report.evaluate import evaluate_guide

Remote = Callable[..., RemoteModel]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def mixed(server: FakeServer) -> None:
    said = iter(["cat", "It is a wolf!", "dog", "a cat or a dog", "cat", "cat"])
    server.reply = lambda asked: next(said)


@pytest.mark.usefixtures("mixed")
def test_a_table_keeps_replies_apart_from_labels(remote: Remote, photos: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "photos" / "bad.png"
    bad.write_bytes(b"")
    out, lines = tmp_path / "names.csv", []
    model = remote(structured="off", concurrency=1)
    summary = classify_pictures(model, [*photos, bad], out, announce=lines.append)
    with open(out, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["cat", "", "dog", "", "cat", "cat", ""]
    assert [row["reply"] for row in rows] == ["", "It is a wolf!", "", "a cat or a dog", "", "", ""]
    assert [bool(row["error"]) for row in rows] == [False] * 6 + [True]
    assert {row["probability"] for row in rows} == {""}
    assert (summary.off_list, summary.unreadable, summary.labels) == (2, 1, {"cat": 3, "dog": 1})
    assert "2 with a reply that is none of the labels" in lines[-1]


@pytest.mark.usefixtures("mixed")
def test_an_evaluation_counts_them_as_wrong(remote: Remote, photos: list[Path], tmp_path: Path) -> None:
    examples = [
        Example(
            f"{n}.png",
            f"../photos/{n}.png",
            sha256=sha256_file(path),
            label="cat",
            group=str(n),
            split="test",
        )
        for n, path in enumerate(photos)
    ]
    write_dataset(tmp_path / "data", examples, [], {}, [], {}, source=str(tmp_path / "photos"))
    model = remote(structured="off", concurrency=1)
    found = evaluate_guide(model, load_dataset(tmp_path / "data"), out=tmp_path / "report")
    assert found.metrics.accuracy == pytest.approx(3 / 6)
    assert found.metrics.unanswered == 2
    assert found.metrics.calibration is None, "no probability was told, so none is judged"
    rows = pq.read_table(tmp_path / "report" / "predictions.parquet").to_pylist()
    assert [row["predicted"] for row in rows] == ["cat", "", "dog", "", "cat", "cat"]
    assert rows[0]["top_probabilities"] == [None]
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "replied: It is a wolf!" in page
    assert "None" not in re.sub(r"<[^>]*>", " ", page)
    assert read_json(tmp_path / "report" / "metrics.json")["guide"]["accuracy"] == pytest.approx(0.5)


def test_the_document_lists_every_setting_with_its_default(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "remote.md").read_text(encoding="utf-8")
    block = re.search(r"```toml\n(.*?)```", page, re.DOTALL)
    assert block
    assert tomllib.loads(block[1]) == asdict(RemoteSettings())
    path = tmp_path / "settings.toml"
    path.write_text(block[1], encoding="utf-8")
    assert load_remote_settings(path) == RemoteSettings()
