"""The ledger: rows are there wholly, once, in order, also after a kill -9 at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldguide.errors import ResumeError
from fieldguide.jobs.ledger import Ledger

# Lone surrogates are what Python makes of file names that are not UTF-8.
keys = st.text(st.characters(), max_size=6) | st.sampled_from(["a\udc80.jpg", "", "\0", "'; DROP TABLE rows"])
payloads = st.dictionaries(
    st.text(max_size=4), st.none() | st.floats(allow_nan=False) | st.text(), max_size=3
)
batches = st.lists(st.lists(st.tuples(keys, payloads), max_size=5), max_size=6)


@settings(max_examples=60)
@given(batches, st.sets(st.integers(0, 5)))
def test_it_is_an_ordered_dictionary_that_keeps_the_first(
    puts: list[list[tuple[str, dict]]], reopened_after: set[int]
) -> None:
    expected: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "x.ledger", "job")
        for number, rows in enumerate(puts):
            ledger.put(rows)
            for key, payload in rows:
                expected.setdefault(key, payload)
            if number in reopened_after:
                ledger.close()
                ledger = Ledger(Path(folder) / "x.ledger", "job")
            assert ledger.done() == set(expected)
        assert list(ledger.rows()) == list(expected.items())
        backwards = list(reversed(expected))
        assert list(ledger.rows(backwards)) == [(key, expected[key]) for key in backwards]
        assert len(ledger) == len(expected)
        ledger.discard()
        assert list(Path(folder).iterdir()) == []


def test_a_put_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with Ledger(tmp_path / "x", "job") as ledger:
        ledger.put([("a", {})])
        with pytest.raises(TypeError):
            ledger.put([("b", {}), ("c", {"wrong": object()})])
        assert ledger.done() == {"a"}
        ledger.put([("b", {})])
        assert ledger.done() == {"a", "b"}


def test_a_key_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with Ledger(tmp_path / "x", "job") as ledger, pytest.raises(KeyError, match="absent"):
        list(ledger.rows(["absent"]))


def test_other_work_is_refused_and_left_alone(tmp_path: Path) -> None:
    with Ledger(tmp_path / "x", "one") as ledger:
        ledger.put([("a", {"n": 1})])
    with pytest.raises(ResumeError, match="delete it to start anew"):
        Ledger(tmp_path / "x", "other")
    with Ledger(tmp_path / "x", "one") as ledger:
        assert list(ledger.rows()) == [("a", {"n": 1})]


def test_a_file_that_is_no_ledger_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"my only copy of something" * 100)
    with pytest.raises(ResumeError, match="not a ledger"):
        Ledger(tmp_path / "x", "job")
    assert (tmp_path / "x").read_bytes() == b"my only copy of something" * 100


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match="absent"):
        Ledger(tmp_path / "absent" / "x", "job")


WRITER = """
import sys
from fieldguide.jobs.ledger import Ledger
with Ledger(sys.argv[1], "job") as ledger:
    number = len(ledger)
    while True:
        ledger.put([(str(n), {"square": n * n}) for n in range(number, number + 7)])
        number += 7
        print(number, flush=True)  # what was said to be safe
"""


def start_writer(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)


def test_only_one_process_holds_it(tmp_path: Path) -> None:
    writer = start_writer(tmp_path / "x")
    try:
        assert writer.stdout
        writer.stdout.readline()
        with pytest.raises(ResumeError, match="another process is working on it"):
            Ledger(tmp_path / "x", "job")
    finally:
        writer.kill()
        writer.wait()
    Ledger(tmp_path / "x", "job").close()  # the dead hold nothing


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_kill_9_loses_no_row_that_was_put_and_repeats_none(tmp_path: Path) -> None:
    """Case 40."""
    path, promised = tmp_path / "x", 0
    for wait in (0.0, 0.013, 0.05):
        writer = start_writer(path)
        assert writer.stdout
        writer.stdout.readline()
        time.sleep(wait)
        writer.send_signal(signal.SIGKILL)
        lines = writer.stdout.read().split()
        writer.wait()
        with Ledger(path, "job") as ledger:
            rows = list(ledger.rows())
        assert [key for key, _ in rows] == [str(n) for n in range(len(rows))]
        assert all(payload == {"square": int(key) ** 2} for key, payload in rows)
        assert len(rows) % 7 == 0
        promised = max(promised, int(lines[-1]) if lines else 7)
        assert len(rows) >= promised


def test_a_row_costs_less_than_a_millisecond(tmp_path: Path) -> None:
    with Ledger(tmp_path / "x", "job") as ledger:
        payload = {"scores": [[f"label {n}", 0.2] for n in range(5)]}
        start = time.process_time()
        for batch in range(125):
            ledger.put([(f"{batch} {n}", payload) for n in range(16)])
        assert len(list(ledger.rows())) == 2000
        assert (time.process_time() - start) / 2000 < 1e-3
