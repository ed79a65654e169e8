import base64
import io
import re
from pathlib import Path

import pytest
from PIL import Image

from fieldguide.records import LabelScore
from fieldguide.report.charts import Bar, comparison_chart, line_chart, reliability_chart
from fieldguide.report.evaluation import Prediction
from fieldguide.report.metrics import Interval, compute_metrics
from fieldguide.report.page import confusions, heat_rows, render_scores, thumbnail
from fieldguide.report.wording import (
    loss_curves,
    model_cards,
    part_rows,
    percent,
    pick_right,
    pick_wrong,
    training_facts,
)

EVIL = '<script>alert("x")</script>\''


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0.0%"), (0.9417, "94.2%"), (0.99999, "99.9%"), (1, "100%"), (1 / 3, "33.3%")]
)
def test_percent_never_rounds_up_to_perfect(value, text):
    assert percent(value) == text


def test_thumbnail_is_small_and_never_a_stand_in(make_picture, tmp_path):
    uri, why_not = thumbnail(make_picture("big.jpg", size=(900, 400)), 160)
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))
    assert image.size == (160, 71)
    assert why_not == ""
    (tmp_path / "broken.jpg").write_bytes(b"<html>not a picture</html>")
    uri, why_not = thumbnail(tmp_path / "broken.jpg")
    assert uri == ""
    assert why_not
    assert thumbnail(tmp_path / "gone.jpg")[0] == ""


def test_labels_are_escaped_everywhere():
    metrics = compute_metrics([EVIL, "b", EVIL], ["b", EVIL, "off " + EVIL], sources=[EVIL, "y", "z"])
    html = render_scores(EVIL, metrics, [EVIL])
    assert EVIL not in html
    assert "<script" not in html, "the score page has no script at all"


def test_charts_escape_names_and_place_bars():
    chart = comparison_chart([Bar(EVIL, 0.5, Interval(0.4, 0.6), ours=True)])
    assert "<script" not in chart
    left, right = (
        float(x) for x in re.search(r'<line class="grid" x1="([\d.]+)".*x1="([\d.]+)"', chart).groups()
    )
    assert f'width="{(right - left) / 2:.1f}"' in chart, "half of what lies between 0% and 100%"
    assert "<script" not in line_chart({EVIL: [(1, 2.0), (2, 1.0)]}, EVIL, EVIL)
    assert line_chart({}, "epoch", "loss") == ""
    metrics = compute_metrics(["a", "b"], ["a", "a"], confidence=[0.95, 1.0])
    drawn = reliability_chart(metrics.calibration)
    assert "right 50%, 2 answers" in drawn


def test_confusions_and_heat():
    metrics = compute_metrics(["a"] * 4 + ["b"] * 2, ["a", "b", "b", "", "b", "zebra"])
    pairs = [(p.actual, p.predicted, p.count, p.support) for p in confusions(metrics)]
    assert pairs[0] == ("a", "b", 2, 4)
    assert set(pairs[1:]) == {("a", "(no answer)", 1, 4), ("b", "(other answer)", 1, 2)}
    rows = heat_rows(metrics)
    assert [[cell.count for cell in row.cells] for row in rows] == [[1, 2, 0, 1], [0, 1, 1, 0]]
    assert rows[0].cells[0].right
    assert not rows[0].cells[1].right
    many = [f"label {i}" for i in range(50)]
    assert heat_rows(compute_metrics(many, many)) == []


def prediction(label: str, predicted: str, probability: float) -> Prediction:
    scores = (LabelScore(predicted, probability),)
    return Prediction("i", "i", Path("i"), "", label, predicted, probability, scores, "", "", "")


def test_wrong_examples_are_the_surest_and_not_all_of_one_kind():
    wrong = [prediction("a", "b", 0.5 + i / 100) for i in range(10)] + [prediction("b", "c", 0.1)]
    picked = pick_wrong(wrong)
    assert [p.probability for p in picked] == pytest.approx([0.59, 0.58, 0.57, 0.1])


def test_right_examples_cover_the_labels():
    predictions = [prediction(label, label, p) for label in "abc" for p in (0.4, 0.6, 0.9)]
    predictions.append(prediction("a", "b", 0.99))
    picked = pick_right(predictions, most=5)
    assert {p.label for p in picked} == set("abc")
    assert all(p.right for p in picked)


def test_model_cards_take_a_mapping_or_a_list():
    card = {"name": "SmolLM2", "license": "Apache-2.0", "source": "wheel", "sha256": "ff"}
    assert model_cards([card]) == model_cards({"": card})
    assert model_cards({"language model": card})[0].role == "language model"
    assert model_cards(None) == []


def test_training_record_in_words_and_curves():
    record = {
        "epochs": 2,
        "supervised_tokens": 12345,
        "parts": {"projector": {"parameters": 100, "trained": 100}, "base": {"parameters": 9, "trained": 0}},
        "changes": {"projector": {"tensors": 2, "changed": 2, "relative_change": 0.5}},
        "changed_parts": ["adapter", "projector"],
        "history": [{"epoch": 1, "train_loss": 2.0, "val_loss": 1.0}, {"epoch": 2, "train_loss": 1.5}],
    }
    facts = dict(training_facts(record))
    assert facts["supervised tokens"] == "12,345"
    assert facts["changed parts"] == "adapter, projector"
    assert "history" not in facts
    assert "parts" not in facts
    projector, base = part_rows(record)
    assert (projector.trained, projector.changed, projector.relative_change) == (100, 2, 0.5)
    assert (base.trained, base.tensors) == (0, 0)
    assert loss_curves(record) == {"training": [(1.0, 2.0), (2.0, 1.5)], "validation": [(1.0, 1.0)]}
    assert training_facts(None) == []
    assert loss_curves(None) == {}
