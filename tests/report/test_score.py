import csv
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldguide.errors import DataError
from fieldguide.report.score import classification_table, read_results, score_results, write_scores


@pytest.mark.parametrize("name", ["mnist", "animals", "chess"])
def test_reproduces_the_published_tables_to_every_printed_decimal(shared_data, name):
    folder = shared_data / "seed-results"
    table = {
        row[0]: row[1:]
        for row in classification_table(score_results(read_results(folder / f"{name}-res.csv")))
    }
    lines = (folder / f"{name}-performance-results.txt").read_text().splitlines()[1:]
    assert len(lines) == len(table)
    for line in lines:
        label, *printed = re.split(r"\s{2,}", line.strip())
        for text, value in zip(printed, table[label], strict=True):
            decimals = len(text.partition(".")[2])
            assert f"{value:.{decimals}f}" == text, (label, text, value)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_hash_headers_spaces_and_marks_of_spreadsheets(tmp_path):
    for text in (
        "#image_name, actual, predicted, score\nx.jpg, cat, cat, pass\ny.jpg, dog, cat, fail\n",
        "\ufeffTrue Label;Prediction\r\ncat;cat\r\ndog;cat\r\n",
        "label\tpred\ncat\tcat\n\ndog\tcat\n",
    ):
        results = read_results(write(tmp_path / "r.csv", text))
        assert (results.actual, results.predicted) == (("cat", "dog"), ("cat", "cat"))


def test_columns_by_name(tmp_path):
    path = write(tmp_path / "r.csv", "what,who\ncat,dog\n")
    with pytest.raises(DataError, match=r"it has: what, who.*--actual"):
        read_results(path)
    results = read_results(path, actual="what", predicted="who")
    assert results.predicted == ("dog",)
    with pytest.raises(DataError, match="no column named 'whom'"):
        read_results(path, actual="what", predicted="whom")


def test_missing_values_are_named_by_row_and_not_dropped_in_silence(tmp_path):
    path = write(tmp_path / "r.csv", "actual,predicted\ncat,cat\n,dog\ndog,\ncat\n")
    results = read_results(path)
    assert results.without_truth == (3,)
    assert results.without_answer == (4, 5)
    metrics = score_results(results)
    assert (metrics.count, metrics.correct, metrics.unanswered) == (3, 1, 2)
    remarks = results.remarks()
    assert "row 3" in remarks[0]
    assert "rows 4, 5" in remarks[1]


def test_a_comma_without_quotes_is_an_error_that_names_the_row(tmp_path):
    path = write(
        tmp_path / "r.csv", 'actual,predicted\ncat,cat\n"Kestrel, lesser",cat\nKestrel, lesser,cat\n'
    )
    with pytest.raises(DataError, match="row 4"):
        read_results(path)


@pytest.mark.parametrize("text", ["", "actual,predicted\n", "actual,predicted\n,cat\n"])
def test_nothing_to_score(tmp_path, text):
    with pytest.raises(DataError):
        read_results(write(tmp_path / "r.csv", text))


def test_files_that_are_not_tables(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(DataError, match=re.escape(str(path))):
            read_results(path)
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        read_results(tmp_path / "bytes.csv")


def test_a_table_saved_by_an_older_spreadsheet_is_read_and_said(tmp_path):
    path = tmp_path / "r.csv"
    path.write_bytes("actual,predicted\nHäher,Häher\n".encode("cp1252"))
    results = read_results(path)
    assert results.predicted == ("Häher",)
    assert "Windows-1252" in results.remarks()[0]


def test_probabilities_give_calibration_and_a_wrong_one_names_its_row(tmp_path):
    path = write(tmp_path / "r.csv", "actual,predicted,probability\na,a,0.9\na,b,0.6\n")
    calibration = score_results(read_results(path)).calibration
    assert calibration is not None
    assert calibration.count == 2
    with pytest.raises(DataError, match="row 3"):
        read_results(write(tmp_path / "r.csv", "actual,predicted,probability\na,a,0.9\na,b,sure\n"))


labels = (
    st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=8)
    .map(str.strip)
    .filter(bool)
)


@given(st.lists(st.tuples(labels, labels), min_size=1, max_size=20))
def test_any_quoted_table_comes_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("t") / "r.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerows([("actual", "predicted"), *rows])
    results = read_results(path)
    assert list(zip(results.actual, results.predicted, strict=True)) == rows


def test_writes_page_and_figures_with_everything_escaped(tmp_path):
    evil = "<script>alert('x')</script>"
    path = tmp_path / "r.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("actual", "predicted"), (evil, evil), ('say "hi"', "other"), ("a", "")])
    results = read_results(path)
    page, figures = write_scores(results, score_results(results), tmp_path / "out.html")
    assert (page.name, figures.name) == ("out.html", "out.json")
    html = page.read_text()
    assert evil not in html
    assert "&lt;script&gt;alert(" in html
    assert "row 4" in html
    assert json.loads(figures.read_text())["count"] == 3
