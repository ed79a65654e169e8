"""Two tables of results side by side: the same pictures, joined by name, and nothing guessed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from fieldguide.errors import DataError
from fieldguide.report.beside import _coded, _macro_f1, beside
from fieldguide.report.score import read_results, score_results, write_scores


def table(path: Path, rows: list[tuple[str, str, str]], header: str = "image_name,actual,predicted") -> Path:
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n", encoding="utf-8")
    return path


ROWS = [
    ("a/1.jpg", "cat", "cat"),
    ("a/2.jpg", "dog", "cat"),
    ("a/3.jpg", "dog", "dog"),
    ("a/4.jpg", "cat", "ox"),
]


def test_rows_are_joined_by_file_name_whatever_their_order_and_folder(tmp_path: Path) -> None:
    other = [
        ("3.jpg", "dog", "cat"),
        ("b\\2.jpg", "dog", "dog"),
        ("1.jpg", "Cat", "Cat"),
        ("9.jpg", "cat", "cat"),
    ]
    found = beside(
        read_results(table(tmp_path / "one.csv", ROWS)), read_results(table(tmp_path / "two.csv", other))
    )
    assert (found.first.count, found.first.correct, found.second.correct) == (3, 2, 2)
    assert (found.only_first, found.only_second) == (1, 1)
    assert (found.test.only_first, found.test.only_second, found.test.p) == (1, 1, 1.0)
    assert found.accuracy_difference == 0
    assert found.accuracy_interval.low <= 0 <= found.accuracy_interval.high
    assert "left out: 1 pictures only in one.csv, 1 only in two.csv" in found.in_words()


def test_a_parquet_of_predictions_is_read_too(tmp_path: Path) -> None:
    columns = {
        "id": ["x", "y"], "image": ["../p/1.jpg", "../p/2.jpg"], "label": ["cat", "dog"],
        "predicted": ["cat", ""], "probability": [0.5, None], "top_labels": [["cat"], []],
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "predictions.parquet")
    read = read_results(tmp_path / "predictions.parquet")
    assert read.images == ("../p/1.jpg", "../p/2.jpg")
    assert read.confidence == (0.5, None)
    assert score_results(read).unanswered == 1
    found = beside(read_results(table(tmp_path / "one.csv", ROWS)), read)
    assert (found.first.count, found.accuracy_difference) == (2, 0.0)
    page, figures = write_scores(read, score_results(read), tmp_path / "out", found)
    assert '"only_in_first": 2' in figures.read_text(encoding="utf-8")
    assert "Beside predictions.parquet" in page.read_text(encoding="utf-8")
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(DataError, match=r"bad\.parquet: not a readable Parquet"):
        read_results(tmp_path / "bad.parquet")


@pytest.mark.parametrize(
    ("rows", "header", "reason"),
    [
        (
            [("1.jpg", "dog", "cat")],
            "image_name,actual,predicted",
            r"1 pictures have another true label.*'1\.jpg'",
        ),
        ([("1.jpg", "cat", "a"), ("x/1.jpg", "cat", "b")], "image,actual,predicted", r"two rows \(2 and 3\)"),
        ([("8.jpg", "cat", "cat")], "image,actual,predicted", "no picture in common"),
        ([("1.jpg", "cat", "cat")], "colour,actual,predicted", "no column names the pictures"),
        ([("", "cat", "cat")], "image,actual,predicted", "no column names the pictures"),
        ([("1.jpg", "cat", "cat"), ("", "cat", "cat")], "image,actual,predicted", "row 3 names no picture"),
    ],
)
def test_what_cannot_be_joined_is_refused(
    tmp_path: Path, rows: list[tuple[str, str, str]], header: str, reason: str
) -> None:
    one = read_results(table(tmp_path / "one.csv", ROWS))
    with pytest.raises(DataError, match=reason):
        beside(one, read_results(table(tmp_path / "two.csv", rows, header)))


def test_a_clear_difference_has_an_interval_away_from_zero(tmp_path: Path) -> None:
    labels = ["cat", "dog"] * 50
    good = [(f"{i}.jpg", label, label) for i, label in enumerate(labels)]
    bad = [(f"{i}.jpg", label, "cat") for i, label in enumerate(labels)]
    found = beside(
        read_results(table(tmp_path / "b.csv", bad)), read_results(table(tmp_path / "g.csv", good))
    )
    assert found.accuracy_difference == pytest.approx(0.5)
    assert 0.35 < found.accuracy_interval.low < 0.5 < found.accuracy_interval.high < 0.65
    assert found.macro_f1_difference == pytest.approx(1 - 1 / 3)
    assert found.macro_f1_interval.low > 0.5
    assert found.test.p < 1e-10


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcd")), min_size=1, max_size=40))
def test_macro_f1_is_that_of_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    actual, predicted = [a for a, _ in pairs], [p for _, p in pairs]
    found = _macro_f1(*_coded(actual, predicted), np.arange(len(pairs)))
    assert found == pytest.approx(
        f1_score(actual, predicted, labels=sorted(set(actual)), average="macro", zero_division=0)
    )


def test_the_tables_of_an_earlier_effort_come_out_as_they_were_published(shared_data: Path) -> None:
    published = {"mnist": (0.792, 0.804210), "animals": (0.774, 0.775512), "chess": (0.165591, 0.136602)}
    for name, (accuracy, f1) in published.items():
        metrics = score_results(read_results(shared_data / "seed-results" / f"{name}-res.csv"))
        assert round(metrics.accuracy, 6) == accuracy
        assert round(metrics.macro.f1, 6) == f1
