"""Score any table of true and predicted labels, wherever the answers came from.

    fieldguide score results.csv -o scores.html

Columns are found by name, with or without a leading `#`, and spaces after the commas do not matter.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fieldguide.data.tables import decode_text
from fieldguide.errors import DataError
from fieldguide.files import write_json
from fieldguide.report.metrics import Metrics, compute_metrics

if TYPE_CHECKING:
    from rich.table import Table

ACTUAL_NAMES = ("actual", "true", "truth", "label", "y_true", "true_label", "actual_label", "ground_truth",
                "expected", "target", "class", "gold")  # fmt: skip
PREDICTED_NAMES = ("predicted", "prediction", "pred", "y_pred", "predicted_label", "predicted_class",
                   "answer", "output", "guess")  # fmt: skip
CONFIDENCE_NAMES = ("probability", "confidence", "prob")
REFERENCE_NAMES = ("reference", "ground_truth", "expected", "truth", "gold", "target")
ANSWER_NAMES = ("answer", "response", "prediction", "predicted", "output", "generated")
SOURCE_NAMES = ("source",)
IMAGE_NAMES = ("image_name", "image", "file_name", "filename", "file", "picture", "path", "id")


@dataclass(frozen=True)
class Results:
    """A results file, read. Row numbers are a spreadsheet's: the header is row 1."""

    path: Path
    actual_column: str
    predicted_column: str
    actual: tuple[str, ...]
    predicted: tuple[str, ...]  # "" where the row has no answer
    confidence: tuple[float | None, ...]
    sources: tuple[str, ...]
    without_truth: tuple[int, ...]  # rows left out, since nothing says what is right
    without_answer: tuple[int, ...]  # rows counted as wrong
    encoding: str = ""  # what to know where the file is not UTF-8
    images: tuple[str, ...] = ()  # what the rows call their pictures; "" where nothing does

    def remarks(self) -> list[str]:
        """What the reader should know about missing values, one line each."""
        found = [self.encoding] if self.encoding else []
        if self.without_truth:
            found.append(
                f"{len(self.without_truth)} without a true label ({self.actual_column!r}), left out: "
                f"{_rows(self.without_truth)}"
            )
        if self.without_answer:
            found.append(
                f"{len(self.without_answer)} without an answer ({self.predicted_column!r}), "
                f"counted as wrong: {_rows(self.without_answer)}"
            )
        return found


def read_results(path: Path | str, actual: str = "", predicted: str = "") -> Results:
    """Read a CSV (comma, semicolon or tab) or Parquet table of true and predicted labels.

    Args:
        path: the file; UTF-8, else read as Windows-1252 with a remark; .parquet as `evaluate` writes it.
        actual: name of the column with the true labels; "" = found by name.
        predicted: name of the column with the answers; "" = found by name.

    Raises:
        DataError: when the file, a column or every true label is missing, or a row has too many values.
    """
    path = Path(path)
    header, rows, encoding = read_rows(path)
    actual_at = _column(path, header, actual, ACTUAL_NAMES, "true labels", "--actual")
    predicted_at = _column(path, header, predicted, PREDICTED_NAMES, "predicted labels", "--predicted")
    confidence_at, source_at = _find(header, CONFIDENCE_NAMES), _find(header, SOURCE_NAMES)
    image_at = _find(header, IMAGE_NAMES)
    kept: list[tuple[str, str, float | None, str, str]] = []
    too_long, no_truth, no_answer = [], [], []
    for number, row in rows:
        if any(value for value in row[len(header) :]):
            too_long.append(number)
            continue
        values = [*row, *[""] * (len(header) - len(row))]
        if not values[actual_at]:
            no_truth.append(number)
            continue
        if not values[predicted_at]:
            no_answer.append(number)
        confidence = _probability(path, number, values[confidence_at]) if confidence_at >= 0 else None
        source, image = (values[at] if at >= 0 else "" for at in (source_at, image_at))
        kept.append((values[actual_at], values[predicted_at], confidence, source, image))
    if too_long:
        raise DataError(
            f"{path}: more values than the {len(header)} columns of the header: {_rows(too_long)}",
            'a label with a comma must stand in quotes: "Kestrel, lesser"',
        )
    if not kept:
        raise DataError(
            f"{path}: no row has a true label in column {header[actual_at]!r}",
            "name another: --actual COLUMN",
        )
    truths, answers, confidences, sources, images = zip(*kept, strict=True)
    return Results(
        path, header[actual_at], header[predicted_at], truths, answers, confidences, sources,
        tuple(no_truth), tuple(no_answer), encoding, images,
    )  # fmt: skip


def read_answers(path: Path | str) -> tuple[list[str], list[str], list[int]]:
    """(references, answers, numbers of rows left out) of a table with columns `reference` and `answer`.

    Rows without a reference are left out; rows without an answer stay.

    Raises:
        DataError: when a column or every reference is missing.
    """
    from fieldguide.report.freetext import tokens_of

    path = Path(path)
    header, rows, _ = read_rows(path)
    wanted = _column(path, header, "", REFERENCE_NAMES, "reference answers", "call it reference; --words")
    said = _column(path, header, "", ANSWER_NAMES, "answers", "call it answer; --words")
    filled = [(number, [*row, *[""] * (len(header) - len(row))]) for number, row in rows]
    kept = [row for _, row in filled if tokens_of(row[wanted])]
    if not kept:
        raise DataError(f"{path}: no row has a reference in column {header[wanted]!r}", "fill it")
    left_out = [number for number, row in filled if not tokens_of(row[wanted])]
    return [row[wanted] for row in kept], [row[said] for row in kept], left_out


def score_results(results: Results) -> Metrics:
    """The figures of a results file."""
    stated = results.confidence if any(value is not None for value in results.confidence) else None
    return compute_metrics(results.actual, results.predicted, confidence=stated, sources=results.sources)


def classification_table(metrics: Metrics) -> list[tuple[str, float, float, float, float]]:
    """Rows (name, precision, recall, f1, support) laid out as scikit-learn's classification report.

    The accuracy row repeats the accuracy in every column, as the report does when it becomes a data frame.
    """
    rows = [(c.label, c.precision, c.recall, c.f1, float(c.support)) for c in metrics.classes]
    accuracy, count = metrics.accuracy, float(metrics.count)
    rows.append(("accuracy", accuracy, accuracy, accuracy, accuracy))
    for name, average in (("macro avg", metrics.macro), ("weighted avg", metrics.weighted)):
        rows.append((name, average.precision, average.recall, average.f1, count))
    return rows


def table_for_terminal(metrics: Metrics) -> Table:
    """The classification table for a rich console, with six decimals."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in ("precision", "recall", "f1-score", "support"):
        table.add_column(name, justify="right")
    for position, (label, precision, recall, f1, support) in enumerate(classification_table(metrics)):
        counted = f"{support:.6f}" if label == "accuracy" else f"{support:.0f}"
        cells = (f"{precision:.6f}", f"{recall:.6f}", f"{f1:.6f}", counted)
        table.add_row(escape(label), *cells, end_section=position == len(metrics.classes) - 1)
    return table


def write_scores(
    results: Results, metrics: Metrics, out: Path | str, compared: Any = None
) -> tuple[Path, Path]:
    """Write the figures as `out`.json and `out`.html (an ending of `out` is replaced); returns both paths.

    Args:
        compared: a `Beside`, with the answers of another table to the same pictures; None for none.
    """
    from fieldguide.files import write_text
    from fieldguide.report.page import render_scores

    out = Path(out)
    stem = out.with_suffix("") if out.suffix.lower() in (".html", ".json", ".csv") else out
    page, figures = stem.with_name(stem.name + ".html"), stem.with_name(stem.name + ".json")
    remarks = results.remarks()
    write_text(page, render_scores(results.path.name, metrics, remarks, compared))
    record = {"file": results.path.name, "remarks": remarks, **metrics.to_dict()}
    write_json(figures, record if compared is None else {**record, "beside": compared.to_dict()})
    return page, figures


def read_rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]], str]:
    """The header, the rows that are not blank with their numbers, all values stripped; what to know."""
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path)
    if path.suffix.lower() == ".jsonl":
        return _read_jsonl(path)
    try:
        text, problems = decode_text(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file", "check its spelling, or give the full path") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder", "give the CSV file itself") from None
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    try:
        lines = list(csv.reader(text.splitlines(keepends=True), delimiter=delimiter, skipinitialspace=True))
    except csv.Error as error:
        raise DataError(f"{path}: not a readable CSV ({error})", "save it as CSV again") from None
    rows = [(number, [value.strip() for value in row]) for number, row in enumerate(lines, start=1)]
    rows = [(number, row) for number, row in rows if any(row)]
    if len(rows) < 2:
        raise DataError(f"{path}: needs a header line and at least one row", "give a CSV of results")
    header = rows[0][1]
    header[0] = header[0].lstrip("#").strip()
    return header, rows[1:], "; ".join(problem.reason for problem in problems)


def _read_parquet(path: Path) -> tuple[list[str], list[tuple[int, list[str]]], str]:
    """As `_read_rows`; columns of lists are left out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else "not a readable Parquet table"
        raise DataError(f"{path}: {reason}", "give a table of results") from None
    plain = [field.name for field in table.schema if not pa.types.is_nested(field.type)]
    rows = [[_cell(row[name]) for name in plain] for row in table.select(plain).to_pylist()]
    if not rows:
        raise DataError(f"{path}: has no rows", "give a table of results")
    return plain, list(enumerate(rows, start=2)), ""


def _read_jsonl(path: Path) -> tuple[list[str], list[tuple[int, list[str]]], str]:
    """As `read_rows`; rows are numbered by lines."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file", "check its spelling, or give the full path") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason})", "save it as UTF-8") from None
    records: list[tuple[int, dict[str, object]]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number}: not a JSON object", "repair that line")
        records.append((number, record))
    header = list(dict.fromkeys(name for _, record in records for name in record))
    if not header:
        raise DataError(f"{path}: has no rows", "give a table of results")
    rows = [(number, [_cell(record.get(name)) for name in header]) for number, record in records]
    return header, rows, ""


def _cell(value: object) -> str:
    return "" if value is None else str(value).strip()


def _find(header: Sequence[str], names: Sequence[str]) -> int:
    plain = [name.casefold().replace(" ", "_") for name in header]
    return next((plain.index(name) for name in names if name in plain), -1)


def _column(path: Path, header: list[str], wanted: str, names: Sequence[str], what: str, option: str) -> int:
    found = header.index(wanted) if wanted in header else -1 if wanted else _find(header, names)
    if found < 0:
        problem = f"no column named {wanted!r}" if wanted else f"no column found that holds the {what}"
        raise DataError(f"{path}: {problem}; it has: {', '.join(header)}", f"name it: {option} COLUMN")
    return found


def _probability(path: Path, number: int, text: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise DataError(
            f"{path}, row {number}: {text!r} is not a probability from 0 to 1",
            "repair that cell, or empty it",
        )
    return value


def _rows(numbers: Sequence[int], most: int = 20) -> str:
    shown = ", ".join(str(number) for number in numbers[:most])
    more = f" and {len(numbers) - most} more" if len(numbers) > most else ""
    return f"row{'s' if len(numbers) > 1 else ''} {shown}{more}"
