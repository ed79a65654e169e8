"""`ask` and `classify` on the command line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from fieldguide import cli, guide
from fieldguide.errors import PictureError
from fieldguide.records import Answer, LabelScore
from fieldguide.settings import AnswerSettings

SCORES = (LabelScore("cat, tabby", 0.9), LabelScore("鱼", 0.08), LabelScore("dog", 0.02))


class SpokenGuide:
    """Gives one fixed answer, and remembers what it was asked."""

    fingerprint = "spoken"
    answer_settings = AnswerSettings(top_k=2, batch_size=3)

    def __init__(self) -> None:
        self.asked: list[tuple] = []
        self.changed: dict[str, object] = {}
        self.strange: dict[str, object] = {}

    def answering(self, **settings: object) -> SpokenGuide:
        self.changed = settings
        return self

    def ask(self, picture: Path, question: str = "", top_k: int = 0) -> Answer:
        self.asked.append((picture, question, top_k))
        if not picture.exists():
            raise PictureError(str(picture), "no such file")
        return Answer(str(picture), "cat, tabby", 0.9, SCORES, "It has whiskers.", **self.strange)

    def classify(self, pictures: Sequence[Path], top_k: int = 0) -> list[Answer]:
        self.asked.append((len(pictures), top_k))
        return [Answer(str(path), "cat, tabby", 0.9, SCORES[:top_k], **self.strange) for path in pictures]


@pytest.fixture
def spoken(monkeypatch: pytest.MonkeyPatch) -> SpokenGuide:
    made = SpokenGuide()
    monkeypatch.setattr(guide, "load_guide", lambda folder: made)
    return made


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_ask_prints_labels_in_columns_and_the_reason(
    spoken: SpokenGuide, make_picture: Callable[..., Path]
) -> None:
    picture = make_picture("a.png")
    result = run("ask", "x.guide", picture, "Why?", "--top-k", "3")
    assert result.exit_code == 0, result.output
    assert (
        result.stdout == "cat, tabby   90.00%\n鱼            8.00%\ndog           2.00%\n\nIt has whiskers.\n"
    )
    assert spoken.asked == [(picture, "Why?", 3)]


def test_ask_prints_json(spoken: SpokenGuide, make_picture: Callable[..., Path]) -> None:
    picture = make_picture("a.png")
    result = run("ask", "x.guide", picture, "--json")
    assert json.loads(result.stdout) == {
        "image": str(picture),
        "label": "cat, tabby",
        "probability": 0.9,
        "scores": [{"label": score.label, "probability": score.probability} for score in SCORES],
        "text": "It has whiskers.",
        "familiarity": None,
        "in_guide": None,
        "coverage": None,
    }
    assert spoken.asked == [(picture, "", 0)]


def test_ask_says_what_is_not_in_the_guide_and_what_it_would_be(
    spoken: SpokenGuide, make_picture: Callable[..., Path]
) -> None:
    spoken.strange = {"familiarity": 0.013, "in_guide": False}
    result = run("ask", "x.guide", make_picture("a.png"))
    told = "not in this guide: of the pictures it knows, 1.3% look as strange; it would be cat, tabby\n\ncat"
    assert result.stdout.startswith(told)
    spoken.strange = {"familiarity": 0.5, "in_guide": True}
    assert run("ask", "x.guide", make_picture("a.png")).stdout.startswith("cat, tabby   90.00%")


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ([], {}),
        (["--coverage", "0.8"], {"coverage": 0.8}),
        (["--no-abstain"], {"abstain": False}),
        (["--no-abstain", "--coverage", "0"], {"abstain": False, "coverage": 0.0}),
    ],
)
@pytest.mark.parametrize("command", ["ask", "classify"])
def test_how_far_to_trust_is_asked_for_on_the_command_line(
    spoken: SpokenGuide,
    make_picture: Callable[..., Path],
    tmp_path: Path,
    command: str,
    options: list[str],
    changed: dict[str, object],
) -> None:
    out = ["-o", tmp_path / "n.csv"] if command == "classify" else []
    result = run(command, "x.guide", make_picture("a.png"), *options, *out)
    assert result.exit_code == 0, result.output
    assert spoken.changed == changed


def test_ask_says_what_a_set_is(spoken: SpokenGuide, make_picture: Callable[..., Path]) -> None:
    spoken.strange = {"coverage": 0.9}
    result = run("ask", "x.guide", make_picture("a.png"), "--coverage", "0.9")
    assert "the right label is among these in 90% of pictures like the guide's own" in result.stdout


def test_classify_counts_what_is_not_in_the_guide(
    spoken: SpokenGuide, make_picture: Callable[..., Path], tmp_path: Path
) -> None:
    spoken.strange = {"familiarity": 0.01, "in_guide": False}
    result = run("classify", "x.guide", make_picture("a.png"), "-o", tmp_path / "n.csv")
    assert "1 rows, 1 not in this guide" in result.stdout


def test_ask_names_a_picture_that_cannot_be_read(spoken: SpokenGuide, tmp_path: Path) -> None:
    result = run("ask", "x.guide", tmp_path / "absent.png")
    assert result.exit_code == 2
    assert result.stderr == f"fieldguide: {tmp_path / 'absent.png'}: no such file\n"


def test_classify_uses_the_guides_own_numbers(
    spoken: SpokenGuide, make_picture: Callable[..., Path], tmp_path: Path
) -> None:
    for number in range(4):
        make_picture(f"inbox/{number}.png", number)
    result = run("classify", "x.guide", tmp_path / "inbox", "-o", tmp_path / "n.csv")
    assert result.exit_code == 0, result.output
    assert spoken.asked == [(3, 2), (1, 2)]
    with open(tmp_path / "n.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["label"], row["runner_up_1"]) for row in rows] == [("cat, tabby", "鱼")] * 4
    assert "4 rows" in result.stdout


def test_classify_takes_other_numbers_and_several_sources(
    spoken: SpokenGuide, make_picture: Callable[..., Path], tmp_path: Path
) -> None:
    pictures = [make_picture(f"{number}.png", number) for number in range(3)]
    result = run(
        "classify", "x.guide", *pictures, "--top-k", "1", "--batch-size", "2", "-o", tmp_path / "n.jsonl"
    )
    assert result.exit_code == 0, result.output
    assert spoken.asked == [(2, 1), (1, 1)]


def test_classify_without_an_output_or_with_a_wrong_one_says_so(spoken: SpokenGuide, tmp_path: Path) -> None:
    assert "--out" in run("classify", "x.guide", tmp_path).output
    result = run("classify", "x.guide", tmp_path, "-o", "names.txt")
    assert result.exit_code == 2
    assert "must end in .csv, .jsonl, .parquet" in result.stderr
    assert spoken.asked == []
