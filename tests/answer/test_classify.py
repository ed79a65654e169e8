"""Naming many pictures: every picture one row, whatever is wrong with it and however often it is killed."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fieldguide.answer.choose import choose
from fieldguide.answer.classify import classify_pictures, find_pictures, ledger_path
from fieldguide.answer.pooling import Member, grouping, pool
from fieldguide.answer.trie import LabelTrie
from fieldguide.errors import DataError, PictureError, ResumeError, SettingsError
from fieldguide.images import load_picture
from fieldguide.records import Answer
from fieldguide.testing import tiny_features, tiny_model

LABELS = ("cat", 'catfish, "big"', "=1+1", "鱼")


class TinyGuide:
    """Chooses by a real tiny model; its features are drawn from a picture's bytes."""

    def __init__(self, fingerprint: str = "one", fail_at: int = -1) -> None:
        self.fingerprint = fingerprint
        self.model = tiny_model(LABELS)
        self.trie = LabelTrie({label: self.model.label_tokens(label) for label in LABELS})
        self.asked: list[Path] = []
        self.fail_at = fail_at

    def classify(self, pictures: Sequence[Path], top_k: int = 5) -> list[Answer]:
        if 0 <= self.fail_at <= len(self.asked):
            raise RuntimeError("out of memory")
        self.asked += pictures
        return [self.answer(path, top_k) for path in pictures]

    def answer(self, path: Path, top_k: int) -> Answer:
        try:
            load_picture(path)
        except PictureError as error:
            return Answer(str(path), error=error.reason)
        features = tiny_features(self.model, 1, seed=sum(path.read_bytes()))
        [scores] = choose(self.model, "What is it?", features, self.trie, top_k=top_k)
        return Answer(str(path), scores[0].label, scores[0].probability, tuple(scores))


@pytest.fixture
def inbox(tmp_path: Path, make_picture: Callable[..., Path]) -> Path:
    for number in range(12):
        make_picture(f"inbox/{number % 3}/img{number}.png", number, (16, 12))
    make_picture("inbox/2/photo.without.extension", 99, (16, 12), format="JPEG")
    (tmp_path / "inbox" / "img1.jpg").write_bytes(b"<!DOCTYPE html><p>404")
    (tmp_path / "inbox" / "notes.txt").write_text("no picture")
    (tmp_path / "inbox" / ".hidden.png").write_bytes(b"")
    return tmp_path / "inbox"


def quiet(message: str) -> None: ...


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_picture_is_a_row_in_natural_order(inbox: Path, tmp_path: Path) -> None:
    guide, said = TinyGuide(), []
    out = tmp_path / "new" / "names.csv"
    summary = classify_pictures(guide, [inbox], out, top_k=3, batch_size=5, announce=said.append)
    rows = read_csv(out)
    assert [Path(row["image"]).name for row in rows] == [
        "img0.png", "img3.png", "img6.png", "img9.png", "img1.png", "img4.png", "img7.png", "img10.png",
        "img2.png", "img5.png", "img8.png", "img11.png", "photo.without.extension", "img1.jpg",
    ]  # fmt: skip
    assert list(rows[0]) == [
        "image", "label", "probability", "runner_up_1", "runner_up_1_probability",
        "runner_up_2", "runner_up_2_probability", "error",
    ]  # fmt: skip
    assert (summary.pictures, summary.unreadable, summary.resumed) == (14, 1, 0)
    assert sum(summary.labels.values()) == 13
    assert said == ["14 pictures", f"{out}: 14 rows, 1 with an error"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["names.csv"]


def test_rows_say_what_the_guide_said(inbox: Path, tmp_path: Path) -> None:
    guide = TinyGuide()
    classify_pictures(guide, [inbox], tmp_path / "n.csv", top_k=9, announce=quiet)
    for row in read_csv(tmp_path / "n.csv"):
        answer = guide.answer(Path(row["image"]), 9)
        assert row["error"] == answer.error
        names = [row["label"], *(row[f"runner_up_{n}"] for n in (1, 2, 3))]  # four labels: three runners-up
        assert names == ([score.label for score in answer.scores] or [""] * 4)
        if answer.label:
            assert float(row["probability"]) == pytest.approx(answer.probability)
            assert float(row["runner_up_3_probability"]) == pytest.approx(answer.scores[3].probability)
    assert "runner_up_4" not in row


class WaryGuide(TinyGuide):
    """Tells of every other picture that it is not in the guide, and lists one label or two."""

    def answer(self, path: Path, top_k: int) -> Answer:
        answer = super().answer(path, top_k)
        if answer.error:
            return answer
        strange = int(path.stem.removeprefix("img")) % 2 == 1 if path.stem.startswith("img") else False
        kept = answer.scores[: 1 if strange else 2]
        return replace(answer, scores=kept, familiarity=0.01 if strange else 0.5, in_guide=not strange)


@pytest.mark.parametrize("end", [".csv", ".jsonl", ".parquet"])
def test_what_is_not_in_the_guide_has_its_columns(inbox: Path, tmp_path: Path, end: str) -> None:
    out = tmp_path / f"names{end}"
    summary = classify_pictures(WaryGuide(), [inbox], out, announce=quiet)
    if end == ".parquet":
        rows = pq.read_table(out).to_pylist()
    elif end == ".csv":
        rows = read_csv(out)
    else:
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert list(rows[0])[-3:] == ["familiarity", "in_guide", "error"]
    strange = [row for row in rows if str(row["in_guide"]) == "False"]
    assert len(strange) == summary.not_in_guide == 6
    assert all(row["label"] and not row["runner_up_1"] for row in strange)
    assert {float(row["familiarity"]) for row in strange} == {0.01}
    [broken] = [row for row in rows if row["error"]]
    assert not broken["in_guide"]
    assert not broken["familiarity"]


def test_all_forms_hold_the_same(inbox: Path, tmp_path: Path) -> None:
    for end in ("csv", "jsonl", "parquet"):
        classify_pictures(TinyGuide(), [inbox], tmp_path / f"n.{end}", top_k=2, announce=quiet)
    lines = [json.loads(line) for line in (tmp_path / "n.jsonl").read_text(encoding="utf-8").splitlines()]
    assert pq.read_table(tmp_path / "n.parquet").to_pylist() == lines
    as_text = [{name: "" if value is None else str(value) for name, value in line.items()} for line in lines]
    assert read_csv(tmp_path / "n.csv") == as_text
    assert lines[-1]["error"].startswith("a web page")
    assert lines[-1]["label"] is None
    assert lines[0]["error"] is None


def test_many_rows_fill_several_parquet_groups(
    inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fieldguide.answer.classify.ROWS_A_WRITE", 4)
    classify_pictures(TinyGuide(), [inbox], tmp_path / "n.parquet", announce=quiet)
    table = pq.ParquetFile(tmp_path / "n.parquet")
    assert table.metadata.num_rows == 14
    assert table.metadata.num_row_groups == 4


def test_a_stopped_run_goes_on_where_it_was(inbox: Path, tmp_path: Path) -> None:
    first, second, said = TinyGuide(fail_at=8), TinyGuide(), []
    out = tmp_path / "n.csv"
    with pytest.raises(RuntimeError, match="out of memory"):
        classify_pictures(first, [inbox], out, batch_size=4, announce=quiet)
    assert not out.exists()
    summary = classify_pictures(second, [inbox], out, batch_size=4, announce=said.append)
    assert summary.resumed == 8
    assert said[0] == "14 pictures, 8 of them already done"
    assert first.asked + second.asked == find_pictures([inbox])
    classify_pictures(TinyGuide(), [inbox], tmp_path / "whole.csv", announce=quiet)
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_picture_changed_in_between_is_answered_anew(
    inbox: Path, tmp_path: Path, make_picture: Callable[..., Path]
) -> None:
    with pytest.raises(RuntimeError):
        classify_pictures(TinyGuide(fail_at=8), [inbox], tmp_path / "n.csv", batch_size=4, announce=quiet)
    changed = make_picture("inbox/0/img0.png", 777, (20, 20))
    guide = TinyGuide()
    classify_pictures(guide, [inbox], tmp_path / "n.csv", announce=quiet)
    assert guide.asked[0] == changed
    rows = read_csv(tmp_path / "n.csv")
    assert len(rows) == 14
    assert float(rows[0]["probability"]) == pytest.approx(guide.answer(changed, 1).probability)


def test_another_guide_or_question_does_not_mix_in(inbox: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        classify_pictures(TinyGuide(fail_at=4), [inbox], tmp_path / "n.csv", batch_size=4, announce=quiet)
    with pytest.raises(ResumeError, match="delete it"):
        classify_pictures(TinyGuide("two"), [inbox], tmp_path / "n.csv", announce=quiet)
    with pytest.raises(ResumeError, match="delete it"):
        classify_pictures(TinyGuide(), [inbox], tmp_path / "n.csv", top_k=1, announce=quiet)
    assert (
        len(read_csv(classify_pictures(TinyGuide(), [inbox], tmp_path / "n.csv", announce=quiet).out)) == 14
    )


def test_an_older_table_stays_until_the_new_one_is_whole(inbox: Path, tmp_path: Path) -> None:
    (tmp_path / "n.csv").write_text("older")
    with pytest.raises(RuntimeError):
        classify_pictures(TinyGuide(fail_at=4), [inbox], tmp_path / "n.csv", batch_size=4, announce=quiet)
    assert (tmp_path / "n.csv").read_text() == "older"


def test_files_are_taken_as_named_and_once(inbox: Path, tmp_path: Path) -> None:
    named = [inbox / "notes.txt", inbox / "0" / "img3.png", inbox / "0"]
    found = find_pictures(named)
    assert [path.name for path in found] == ["notes.txt", "img3.png", "img0.png", "img6.png", "img9.png"]
    classify_pictures(TinyGuide(), named, tmp_path / "n.jsonl", announce=quiet)
    first = json.loads((tmp_path / "n.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first["error"]


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
def test_a_name_that_is_no_text_is_written_readably(
    tmp_path: Path, make_picture: Callable[..., Path]
) -> None:
    picture = make_picture("inbox/a.png", 1)
    os.rename(picture, os.fsencode(picture.parent) + b"/\xff.png")
    for end in ("csv", "jsonl", "parquet"):
        classify_pictures(TinyGuide(), [picture.parent], tmp_path / f"n.{end}", announce=quiet)
    assert read_csv(tmp_path / "n.csv")[0]["image"].endswith("\\udcff.png")


def test_an_unknown_form_is_refused_before_any_work(inbox: Path, tmp_path: Path) -> None:
    guide = TinyGuide()
    with pytest.raises(SettingsError, match=r"must end in \.csv, \.jsonl, \.parquet"):
        classify_pictures(guide, [inbox], tmp_path / "n.xlsx", announce=quiet)
    assert guide.asked == []
    assert not ledger_path(tmp_path / "n.xlsx").exists()


def test_a_folder_in_the_place_of_the_table_is_refused_before_any_work(inbox: Path, tmp_path: Path) -> None:
    guide = TinyGuide()
    (tmp_path / "n.csv").mkdir()
    with pytest.raises(SettingsError, match="is a folder"):
        classify_pictures(guide, [inbox], tmp_path / "n.csv", announce=quiet)
    assert guide.asked == []


@pytest.mark.parametrize("wrong", [{"top_k": 0}, {"batch_size": 0}])
def test_impossible_numbers_are_refused(inbox: Path, tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(SettingsError, match="at least 1"):
        classify_pictures(TinyGuide(), [inbox], tmp_path / "n.csv", announce=quiet, **wrong)


def test_nothing_to_do_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures in"):
        find_pictures([tmp_path / "empty"])
    with pytest.raises(DataError, match="no such file or folder"):
        find_pictures([tmp_path / "absent"])


CLASSIFIER = """
import sys, time
from pathlib import Path
from fieldguide.answer.classify import classify_pictures
from fieldguide.records import Answer, LabelScore

class Slow:
    fingerprint = "slow"
    def classify(self, pictures, top_k):
        time.sleep(0.02)
        with open(sys.argv[3], "a") as log:
            log.writelines(f"{path}\\n" for path in pictures)
        return [Answer(str(p), p.stem, 0.5, (LabelScore(p.stem, 0.5),)) for p in pictures]

classify_pictures(Slow(), [Path(sys.argv[1])], Path(sys.argv[2]), batch_size=3)
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_kill_9_at_half_and_on_again_none_lost_none_repeated(tmp_path: Path) -> None:
    """Case 40: a killed run goes on, and no picture is missing or there twice."""
    inbox, out, log = tmp_path / "inbox", tmp_path / "n.csv", tmp_path / "log"
    inbox.mkdir()
    log.touch()
    for number in range(90):
        (inbox / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    command = [sys.executable, "-c", CLASSIFIER, str(inbox), str(out), str(log)]
    for part in (25, 60):
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        patience = time.monotonic() + 60
        while len(log.read_text().split()) < part:
            assert running.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < patience
            time.sleep(0.005)
        running.kill()
        running.wait()
        assert not out.exists()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)
    rows = read_csv(out)
    assert [row["label"] for row in rows] == [str(number) for number in range(90)]
    # Only a batch whose rows were not yet kept when the process died may have been computed twice.
    assert len(log.read_text().split()) <= 90 + 2 * 3
    assert not ledger_path(out).exists()


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_groups_have_a_table_of_their_own(inbox: Path, tmp_path: Path, ending: str) -> None:
    guide, said = TinyGuide(), []
    guide.labels = LABELS  # type: ignore[attr-defined]
    shutil.copy(inbox / "0" / "img0.png", inbox / "0" / "copy.png")
    out = tmp_path / f"names.{ending}"
    classify_pictures(guide, [inbox], out, top_k=2, group_of=grouping("parent"), announce=said.append)
    plain = tmp_path / f"plain.{ending}"
    classify_pictures(TinyGuide(), [inbox], plain, top_k=2, announce=quiet)
    if ending != "parquet":
        assert out.read_bytes() == plain.read_bytes(), (
            "the table of pictures is the same with groups and without"
        )
    table = tmp_path / f"names.groups.{ending}"
    assert said[-1] == f"{table}: 4 groups"
    if ending == "csv":
        rows = {Path(row["group"]).name: row for row in read_csv(table)}
        counted = {
            name: [row[k] for k in ("pictures", "repeated", "unanswered")] for name, row in rows.items()
        }
        assert counted == {
            "0": ["4", "1", "0"], "1": ["4", "0", "0"], "2": ["5", "0", "0"], "inbox": ["0", "0", "1"],
        }  # fmt: skip
        assert rows["inbox"]["label"] == ""
        assert list(rows["0"])[3:5] == ["runner_up_1", "runner_up_1_probability"]
        assert "runner_up_2" not in rows["0"]
        members = [Member(str(p), guide.answer(p, 4).scores) for p in sorted((inbox / "1").iterdir())]
        expected = pool("1", members)
        assert rows["1"]["label"] == expected.label
        assert float(rows["1"]["probability"]) == pytest.approx(expected.probability)
    assert not ledger_path(out).exists()
