import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from fieldguide.data.dataset import load_dataset, write_dataset
from fieldguide.errors import DataError, FieldguideError, LeakError
from fieldguide.files import sha256_file
from fieldguide.records import Answer, Example, LabelScore, Problem
from fieldguide.report.baselines import BaselineInputs
from fieldguide.report.evaluate import evaluate_guide

LABELS = ("cat", "dog", "fox")


class FakeGuide:
    """Answers by file name, wrong on every `wrong`th picture, and unable to read files named bad*."""

    def __init__(self, folder, training=(), wrong=5, labels=LABELS):
        self.folder, self.labels, self.wrong = Path(folder), tuple(labels), wrong
        self.training = list(training)
        self.info = {
            "models": {
                "vision_encoder": {"name": "Encoder <b>", "licence": "Apache-2.0", "sha256": "ab" * 32}
            },
            "training": {
                "epochs": 2,
                "history": [
                    {"epoch": 1, "train_loss": 2.0, "val_loss": 1.5},
                    {"epoch": 2, "train_loss": 1.0},
                ],
            },
            "settings": {"train": {"epochs": 2}},
        }
        self.batches: list[int] = []

    def training_pictures(self):
        return self.training

    def classify(self, pictures, top_k=5):
        self.batches.append(len(pictures))
        return [self.answer(path) for path in pictures]

    def answer(self, path):
        if path.name.startswith("bad"):
            return Answer(str(path), error="file is truncated")
        label, number = path.parent.name, int(re.search(r"\d+", path.name)[0])
        said = label if number % self.wrong else LABELS[(LABELS.index(label) + 1) % 3]
        scores = (LabelScore(said, 0.8), *(LabelScore(name, 0.1) for name in LABELS if name != said))
        return Answer(str(path), said, 0.8, scores, text="pointed ears & <i>whiskers</i>")


@pytest.fixture
def dataset(tmp_path, make_picture):
    examples = []
    for index in range(60):
        label = LABELS[index % 3]
        name = f"{label}/{index}.png" if index != 31 else f"{label}/bad31.png"
        path = make_picture(f"photos/{name}", seed=index, size=(48, 40))
        if index == 31:
            path.write_bytes(path.read_bytes()[:100])
        examples.append(
            Example(
                id=name,
                image=f"../photos/{name}",
                sha256=sha256_file(path),
                label=label,
                group=name,
                split="test" if index >= 30 else "train",
                source="north" if index % 2 else "south",
                licence="CC-BY-4.0",
            )
        )
    problems = [Problem("x.jpg", "empty file", "left out", "unreadable")]
    write_dataset(tmp_path / "data", examples, [], {}, problems, {}, source=str(tmp_path / "photos"))
    return load_dataset(tmp_path / "data")


def features(dataset, noise=0.1) -> BaselineInputs:
    random = np.random.default_rng(0)

    def embed(examples):
        x = np.array([np.eye(3)[LABELS.index(e.label)] for e in examples])
        return (x + random.normal(scale=noise, size=x.shape)).astype(np.float32)

    train, test = dataset.of("train"), dataset.of("test")
    train_x, test_x = embed(train), embed(test)
    return BaselineInputs(
        train_x[:, None], train_x, tuple(e.label for e in train), test_x[:, None], test_x,
        tuple(e.sha256 for e in test),
    )  # fmt: skip


def seen(dataset):
    return [
        {"image": e.id, "sha256": e.sha256, "phash": e.phash, "split": e.split} for e in dataset.of("train")
    ]


def test_writes_page_figures_and_predictions(dataset, tmp_path):
    guide = FakeGuide(tmp_path / "pets.guide", seen(dataset))
    found = evaluate_guide(guide, dataset, features(dataset), batch_size=8)
    assert found.folder == tmp_path / "pets.guide" / "report"
    assert sorted(path.name for path in found.folder.iterdir()) == [
        "index.html",
        "metrics.json",
        "predictions.parquet",
    ]
    assert guide.batches == [8, 8, 8, 6]

    figures = json.loads((found.folder / "metrics.json").read_text())
    assert figures["guide"]["count"] == 30
    assert figures["guide"]["unanswered"] == 1
    rows = pq.read_table(found.folder / "predictions.parquet").to_pylist()
    assert len(rows) == 30
    assert sum(row["right"] for row in rows) == figures["guide"]["correct"] == found.metrics.correct
    bad = next(row for row in rows if row["error"])
    assert (bad["id"], bad["predicted"], bad["error"]) == ("dog/bad31.png", "", "file is truncated")
    good = next(row for row in rows if not row["error"])
    assert good["top_labels"][0] == good["predicted"]
    assert good["top_probabilities"] == [0.8, 0.1, 0.1]
    assert {score.source for score in found.metrics.sources} == {"north", "south"}


def test_a_better_baseline_is_said_at_the_top(dataset, tmp_path):
    found = evaluate_guide(FakeGuide(tmp_path / "g", wrong=2), dataset, features(dataset))
    assert found.baseline_wins
    html = (found.folder / "index.html").read_text()
    assert html.index("A simpler method does better than this guide") < html.index('class="headline"')
    figures = json.loads((found.folder / "metrics.json").read_text())
    assert figures["baseline_wins"] is True
    assert figures["mcnemar"]["only_second"] > figures["mcnemar"]["only_first"]

    better = evaluate_guide(FakeGuide(tmp_path / "h", wrong=10**9), dataset, features(dataset, noise=30))
    assert not better.baseline_wins
    assert "A simpler method" not in (better.folder / "index.html").read_text()


def test_without_features_the_page_says_that_baselines_are_missing(dataset, tmp_path):
    found = evaluate_guide(FakeGuide(tmp_path / "g"), dataset)
    assert found.baselines == ()
    assert "No baselines" in (found.folder / "index.html").read_text()


def test_refuses_pictures_seen_in_training_and_marks_forced_figures(dataset, tmp_path):
    leaked = dataset.of("test")[4]
    training = [*seen(dataset), {"image": "old.jpg", "sha256": leaked.sha256, "phash": "", "split": "train"}]
    guide = FakeGuide(tmp_path / "g", training)
    with pytest.raises(LeakError, match=re.escape(leaked.id)):
        evaluate_guide(guide, dataset)
    assert not (tmp_path / "g" / "report").exists()
    assert guide.batches == [], "refused before any work"
    with pytest.raises(LeakError):
        evaluate_guide(guide, dataset, split="all")
    found = evaluate_guide(guide, dataset, force=True)
    html = (found.folder / "index.html").read_text()
    assert "These figures are too good" in html
    assert "never seen" not in html


def test_pictures_without_label_and_labels_never_taught_are_reported(dataset, tmp_path):
    examples = [
        dataclasses.replace(
            e, label="" if e.id == "cat/33.png" else "owl" if e.id == "fox/32.png" else e.label
        )
        for e in dataset.examples
    ]
    changed = dataclasses.replace(dataset, examples=tuple(examples))
    guide = FakeGuide(tmp_path / "g")
    found = evaluate_guide(guide, changed)
    assert found.unlabelled == 1
    assert found.unknown_labels == {"owl": 1}
    assert found.metrics.count == 29
    assert "never taught these labels" in (found.folder / "index.html").read_text()


def test_unknown_or_empty_split(dataset, tmp_path):
    with pytest.raises(DataError, match="choose one of"):
        evaluate_guide(FakeGuide(tmp_path / "g"), dataset, split="exam")
    with pytest.raises(DataError, match=r"no picture of the val split has a label.*train: 30"):
        evaluate_guide(FakeGuide(tmp_path / "g"), dataset, split="val")


def test_replaces_an_old_report_but_never_another_folder(dataset, tmp_path):
    guide = FakeGuide(tmp_path / "g")
    evaluate_guide(guide, dataset)
    evaluate_guide(guide, dataset)
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "beach.jpg").write_bytes(b"precious")
    with pytest.raises(FieldguideError, match=r"beach\.jpg"):
        evaluate_guide(guide, dataset, out=tmp_path / "holiday")
    assert (tmp_path / "holiday" / "beach.jpg").read_bytes() == b"precious"


def test_a_failure_leaves_the_old_report_whole(dataset, tmp_path, monkeypatch):
    guide = FakeGuide(tmp_path / "g")
    evaluate_guide(guide, dataset)
    before = (tmp_path / "g" / "report" / "metrics.json").read_bytes()

    def broken(evaluation):
        raise RuntimeError("power cut")

    monkeypatch.setattr("fieldguide.report.page.render_report", broken)
    with pytest.raises(RuntimeError):
        evaluate_guide(guide, dataset)
    assert (tmp_path / "g" / "report" / "metrics.json").read_bytes() == before


def test_page_is_one_offline_file_that_names_models_and_licences(dataset, tmp_path):
    found = evaluate_guide(FakeGuide(tmp_path / "g"), dataset, features(dataset))
    html = (found.folder / "index.html").read_text()
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", html), "nothing may be loaded from elsewhere"
    assert "http:" not in html
    assert "https:" not in html
    assert "Encoder &lt;b&gt;" in html
    assert "Apache-2.0" in html
    assert "CC-BY-4.0" in html
    assert "data:image/jpeg;base64," in html
    assert "pointed ears &amp; &lt;i&gt;whiskers" in html
    assert "file is truncated" in html
    assert "unreadable" in html
    for heading in (
        "Label by label",
        "Confusions",
        "Can the probabilities be believed?",
        "By source",
        "Loss",
    ):
        assert heading in html
