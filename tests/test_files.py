"""Files: whole or absent, also after kill -9; keys that sort and identify."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldguide import files
from fieldguide.errors import FieldguideError

names = st.text(alphabet="ab01 29.é²٣", max_size=8)


def leftovers(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".")]


def run_until_killed(code: str, *arguments: object) -> None:
    """Run `code`, which prints a line at the moment to be killed at; kill -9 it there."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "now\n"
    process.kill()
    process.stdout.close()
    assert process.wait(timeout=30) == -signal.SIGKILL


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
@pytest.mark.parametrize("old", [None, "old and whole"])
def test_a_killed_write_leaves_the_old_file_whole(tmp_path: Path, old: str | None) -> None:
    path = tmp_path / "guide.json"
    if old is not None:
        path.write_text(old, encoding="utf-8")
    code = """
import sys, time
from fieldguide.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_text("new, but not yet whole")
    print("now", flush=True)
    time.sleep(60)
"""
    run_until_killed(code, path)
    assert (path.read_text(encoding="utf-8") if path.exists() else None) == old
    files.write_text(path, "new")  # and what the killed one left behind is in nobody's way
    assert path.read_text(encoding="utf-8") == "new"


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_killed_folder_leaves_the_old_folder_whole(tmp_path: Path) -> None:
    folder = tmp_path / "fish.guide"
    with files.atomic_folder(folder) as temporary:
        (temporary / "a").write_text("1", encoding="utf-8")
    code = """
import sys, time
from fieldguide.files import atomic_folder
with atomic_folder(sys.argv[1]) as temporary:
    (temporary / "a").write_text("2")
    print("now", flush=True)
    time.sleep(60)
"""
    run_until_killed(code, folder)
    assert [(p.name, p.read_text(encoding="utf-8")) for p in folder.iterdir()] == [("a", "1")]


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with pytest.raises(RuntimeError), files.atomic_path(path) as temporary:  # noqa: PT012
        temporary.write_text("half", encoding="utf-8")
        raise RuntimeError
    assert os.listdir(path.parent) == []
    folder = tmp_path / "new" / "folder"
    with pytest.raises(RuntimeError), files.atomic_folder(folder) as temporary:  # noqa: PT012
        (temporary / "half").write_text("half", encoding="utf-8")
        raise RuntimeError
    assert os.listdir(path.parent) == []


def test_a_new_folder_takes_the_place_of_the_old(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    for generation in ("first", "second"):
        with files.atomic_folder(folder) as temporary:
            (temporary / generation).mkdir()
            (temporary / generation / "file").write_text(generation, encoding="utf-8")
        assert os.listdir(folder) == [generation]
    assert leftovers(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="POSIX rights")
def test_written_files_have_ordinary_rights(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    files.write_bytes(tmp_path / "ours", b"x")
    assert (tmp_path / "ours").stat().st_mode == plain.stat().st_mode


def test_text_is_utf8_with_plain_line_ends(tmp_path: Path) -> None:
    files.write_text(tmp_path / "t", "Äpfel, 苹果\nzweite\n")
    assert (tmp_path / "t").read_bytes() == "Äpfel, 苹果\nzweite\n".encode()


def test_json_round_trip_and_faults(tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    files.write_json(path, {"label": 'Ü, "x"', "n": [1, 2.5, None]})
    assert files.read_json(path) == {"label": 'Ü, "x"', "n": [1, 2.5, None]}
    assert "Ü" in path.read_text(encoding="utf-8")  # readable, not escaped
    with pytest.raises(FieldguideError, match=r"absent\.json: no such file"):
        files.read_json(tmp_path / "absent.json")
    path.write_text('{"a": 1,\n "b": }', encoding="utf-8")
    with pytest.raises(FieldguideError, match=r"v\.json: not valid JSON .*line 2"):
        files.read_json(path)
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(FieldguideError, match="not valid JSON"):
        files.read_json(path)


def test_hash_of_a_file_is_the_known_one(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256_file(tmp_path / "abc") == known


def test_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FIELDGUIDE_CACHE", str(tmp_path))
    assert files.cache_dir() == tmp_path
    monkeypatch.setenv("FIELDGUIDE_CACHE", "")
    assert files.cache_dir().name == "fieldguide"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=3), values, max_size=4), st.randoms())
def test_fingerprint_ignores_the_order_of_keys_only(value: dict[str, object], random: object) -> None:
    items = list(value.items())
    random.shuffle(items)  # type: ignore[attr-defined]
    assert files.fingerprint(dict(items)) == files.fingerprint(value)
    assert files.fingerprint({**value, "one more": 1}) != files.fingerprint(value)


def test_fingerprint_sees_order_type_and_script() -> None:
    different = [[1, 2], [2, 1], ["1", 2], [1.5, 2], "12", {"1": 2}, ["é", 2], ["e\u0301", 2]]
    assert len({files.fingerprint(value) for value in different}) == len(different)


def test_natural_order() -> None:
    right = ["", "2", "10", "img", "img01", "img1", "img2", "img2b", "img10", "img10.png", "imh"]
    assert sorted(sorted(right), key=files.natural_key) == right
    long = "9" * 5000  # more digits than Python turns into a number
    assert sorted([long + "0", long], key=files.natural_key) == [long, long + "0"]


@given(names, names, names)
def test_natural_order_is_total(a: str, b: str, c: str) -> None:
    key = files.natural_key
    assert (key(a) == key(b)) == (a == b)
    assert (key(a) < key(b)) or (key(b) < key(a)) or a == b
    if key(a) <= key(b) <= key(c):
        assert key(a) <= key(c)


@given(st.integers(0, 10**6), st.integers(0, 10**6), names)
def test_numbers_sort_as_numbers(first: int, second: int, stem: str) -> None:
    stem = stem + "_"  # so that the stem's own digits stay apart
    assert (files.natural_key(f"{stem}{first}") < files.natural_key(f"{stem}{second}")) == (first < second)
