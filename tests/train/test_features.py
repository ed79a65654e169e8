"""The feature cache: computed once, never stale, safe against kills and neighbours."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fieldguide.errors import FieldguideError
from fieldguide.files import sha256_file
from fieldguide.train import features
from fieldguide.train.features import embed_pictures, feature_folder

SIDE = 8


class TinyEncoder:
    """Exact, fast features: the pixels themselves. Counts the pictures it has seen."""

    grid_shape = (4, 3)
    pooled_size = 5
    shrink_to = SIDE

    def __init__(self, key: str = "tiny-1", pause: float = 0.0) -> None:
        self.key = key
        self.pause = pause
        self.seen = 0

    def prepare(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image.resize((SIDE, SIDE)))

    def encode(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        time.sleep(self.pause)
        self.seen += len(pictures)
        flat = pictures.reshape(len(pictures), -1).astype(np.float32) / 255
        return np.sin(flat[:, :12].reshape(-1, 4, 3)), np.cos(flat[:, -5:])


def make_pictures(folder: Path, count: int, seed: int = 0) -> list[tuple[Path, str]]:
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed)
    pairs = []
    for number in range(count):
        path = folder / f"{number:04}.png"
        Image.fromarray(noise.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(path)
        pairs.append((path, sha256_file(path)))
    return pairs


def test_order_values_and_one_computation(tmp_path: Path) -> None:
    pairs = make_pictures(tmp_path / "in", 7)
    encoder = TinyEncoder()
    first = embed_pictures(pairs, encoder, cache=tmp_path / "cache", batch_size=3)
    assert first.keys == tuple(key for _, key in pairs)
    assert encoder.seen == 7
    for number, (path, _) in enumerate(pairs):
        grid, pooled = TinyEncoder().encode(encoder.prepare(Image.open(path))[None])
        assert np.array_equal(first.grid[number], grid[0])
        assert np.array_equal(first.pooled[number], pooled[0])
    again = embed_pictures(pairs[::-1], encoder, cache=tmp_path / "cache")
    assert encoder.seen == 7, "all came from the cache"
    assert np.array_equal(again.grid, first.grid[::-1])
    assert first.grid.dtype == first.pooled.dtype == np.float32
    assert first.failed == {}


def test_duplicates_are_computed_once_and_hashes_may_be_missing(tmp_path: Path) -> None:
    pairs = make_pictures(tmp_path / "in", 2)
    copy = tmp_path / "in" / "copy.png"
    copy.write_bytes(pairs[0][0].read_bytes())
    encoder = TinyEncoder()
    table = embed_pictures([pairs[0], (copy, ""), pairs[1], pairs[0]], encoder, cache=tmp_path / "cache")
    assert encoder.seen == 2
    assert table.keys == (pairs[0][1], pairs[0][1], pairs[1][1], pairs[0][1])
    assert np.array_equal(table.grid[0], table.grid[1])


def test_no_pictures(tmp_path: Path) -> None:
    table = embed_pictures([], TinyEncoder(), cache=tmp_path)
    assert table.grid.shape == (0, 4, 3)
    assert table.pooled.shape == (0, 5)


def test_unreadable_pictures_are_named_not_replaced(tmp_path: Path) -> None:
    """Case 21: a picture that cannot be read has no features; none are made up."""
    pairs = make_pictures(tmp_path / "in", 3)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(pairs[0][0].read_bytes()[:60])
    changed = tmp_path / "changed.png"
    changed.write_bytes(pairs[0][0].read_bytes())
    gone = tmp_path / "gone.png"
    rows = [(broken, ""), pairs[1], (changed, "0" * 64), (gone, ""), (gone, "1" * 64), pairs[2]]
    table = embed_pictures(rows, TinyEncoder(), cache=tmp_path / "cache")
    assert table.keys == (pairs[1][1], pairs[2][1])
    assert len(table.grid) == len(table.pooled) == 2
    assert set(table.failed) == {sha256_file(broken), "0" * 64, str(gone), "1" * 64}
    assert table.failed["0" * 64] == "changed since it was imported"
    assert "no such file" in table.failed[str(gone)]


def test_changed_preprocessing_or_weights_compute_anew(tmp_path: Path) -> None:
    """Case 39: a cache is never reused after preprocessing or model changed; changing back finds it again."""
    pairs = make_pictures(tmp_path / "in", 3)
    for key, expected in (("weights-1", 3), ("weights-2", 3), ("weights-1", 0)):
        encoder = TinyEncoder(key)
        embed_pictures(pairs, encoder, cache=tmp_path / "cache")
        assert encoder.seen == expected


def test_a_new_decoder_computes_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 39, with the key of the real encoder."""
    from fieldguide.model import vision

    folders = set()
    for version in ("1", "2"):
        monkeypatch.setattr(vision, "DECODER_VERSION", version)
        folders.add(feature_folder(TinyEncoder(vision.encoder_key("weights", 4, 260)), tmp_path))
    assert len(folders) == 2


def test_changed_bytes_are_another_picture(tmp_path: Path) -> None:
    ((path, _),) = make_pictures(tmp_path / "in", 1)
    before = embed_pictures([(path, "")], TinyEncoder(), cache=tmp_path / "cache")
    make_pictures(tmp_path / "in", 1, seed=1)
    after = embed_pictures([(path, "")], TinyEncoder(), cache=tmp_path / "cache")
    assert before.keys != after.keys
    assert not np.array_equal(before.grid, after.grid)


def test_runtimes_are_kept_apart(tmp_path: Path) -> None:
    one, other = TinyEncoder(), TinyEncoder()
    one.runtime_name, other.runtime_name = "torch", "onnxruntime"  # type: ignore[attr-defined]
    assert feature_folder(one, tmp_path) != feature_folder(other, tmp_path)


def test_many_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "SHARD_PICTURES", 4)
    pairs = make_pictures(tmp_path / "in", 11)
    table = embed_pictures(pairs, TinyEncoder(), cache=tmp_path / "cache", batch_size=2)
    shards = list(feature_folder(TinyEncoder(), tmp_path / "cache").glob("shard-*.safetensors"))
    assert len(shards) == 3
    encoder = TinyEncoder()
    assert np.array_equal(embed_pictures(pairs, encoder, cache=tmp_path / "cache").grid, table.grid)
    assert encoder.seen == 0


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-5], lambda data: data[:4], lambda data: b"", lambda data: b"x" * 99]
)
def test_a_damaged_shard_is_computed_again(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    pairs = make_pictures(tmp_path / "in", 3)
    table = embed_pictures(pairs, TinyEncoder(), cache=tmp_path / "cache")
    (shard,) = feature_folder(TinyEncoder(), tmp_path / "cache").glob("shard-*")
    shard.write_bytes(damage(shard.read_bytes()))
    encoder = TinyEncoder()
    again = embed_pictures(pairs, encoder, cache=tmp_path / "cache")
    assert encoder.seen == 3
    assert np.array_equal(again.grid, table.grid)


def test_wrong_numbers_are_never_cached(tmp_path: Path) -> None:
    class Broken(TinyEncoder):
        def encode(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            grid, pooled = super().encode(pictures)
            grid[0, 0, 0] = np.nan
            return grid, pooled

    with pytest.raises(FieldguideError, match="not finite"):
        embed_pictures(make_pictures(tmp_path / "in", 2), Broken(), cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_features_of_another_shape_are_refused_before_they_reach_a_model(tmp_path: Path) -> None:
    """Case 18: features and visual tokens that do not match are noticed at once, not deep in a run."""

    class Larger(TinyEncoder):
        def encode(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            grid, pooled = super().encode(pictures)
            return np.concatenate([grid, grid], axis=1), pooled

    pairs = make_pictures(tmp_path / "in", 2)
    with pytest.raises(FieldguideError, match=r"the encoder gave \(2, 8, 3\) .*, not \(\(2, 4, 3\)"):
        embed_pictures(pairs, Larger(), cache=tmp_path / "cache")
    embed_pictures(pairs, TinyEncoder(), cache=tmp_path / "cache")
    other = TinyEncoder()
    other.grid_shape = (2, 6)  # the same key with another shape: a shard that does not fit is not used
    with pytest.raises(FieldguideError, match="the encoder gave"):
        embed_pictures(pairs, other, cache=tmp_path / "cache")


def test_finished_pictures_survive_an_interruption(tmp_path: Path) -> None:
    class Stops(TinyEncoder):
        def encode(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            if self.seen >= 4:
                raise KeyboardInterrupt
            return super().encode(pictures)

    pairs = make_pictures(tmp_path / "in", 10)
    with pytest.raises(KeyboardInterrupt):
        embed_pictures(pairs, Stops(), cache=tmp_path / "cache", batch_size=2)
    encoder = TinyEncoder()
    embed_pictures(pairs, encoder, cache=tmp_path / "cache")
    assert encoder.seen == 6


WORKER = """
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from test_features import TinyEncoder
    from fieldguide.train import features
    features.SHARD_PICTURES = 16
    pictures = [(path, "") for path in sorted(Path(sys.argv[2]).iterdir())]
    features.embed_pictures(pictures, TinyEncoder(pause=0.02), cache=Path(sys.argv[3]), batch_size=4)
"""


def start_worker(pictures: Path, cache: Path) -> subprocess.Popen[bytes]:
    code = textwrap.dedent(WORKER)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(pictures), str(cache)]
    )


def test_killed_at_random_moments_the_result_is_bit_identical(tmp_path: Path) -> None:
    """Case 40 for embedding: SIGKILL at five random moments loses nothing but the shard being filled."""
    pairs = make_pictures(tmp_path / "in", 200)
    whole = embed_pictures(pairs, TinyEncoder(), cache=tmp_path / "whole")
    cache, moments = tmp_path / "cache", random.Random(0)
    folder = feature_folder(TinyEncoder(), cache)
    killed_at = []
    for _ in range(5):
        before = len(list(folder.glob("shard-*")))
        process = start_worker(tmp_path / "in", cache)
        until = time.monotonic() + 60
        while len(list(folder.glob("shard-*"))) == before and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed_at.append(len(list(folder.glob("shard-*"))))
    assert killed_at[0] < 200 / 16, "the first kill came in the middle"
    assert killed_at == sorted(killed_at)
    encoder = TinyEncoder()
    resumed = embed_pictures(pairs, encoder, cache=cache)
    assert encoder.seen < 200, "what was finished before the kills was kept"
    assert resumed.keys == whole.keys
    assert resumed.grid.tobytes() == whole.grid.tobytes()
    assert resumed.pooled.tobytes() == whole.pooled.tobytes()


def test_two_processes_at_once(tmp_path: Path) -> None:
    pairs = make_pictures(tmp_path / "in", 60)
    workers = [start_worker(tmp_path / "in", tmp_path / "cache") for _ in range(2)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    encoder = TinyEncoder()
    table = embed_pictures(pairs, encoder, cache=tmp_path / "cache")
    assert encoder.seen == 0
    assert np.array_equal(table.grid, embed_pictures(pairs, TinyEncoder(), cache=tmp_path / "alone").grid)


def test_old_leftovers_are_removed_and_new_ones_left_alone(tmp_path: Path) -> None:
    folder = feature_folder(TinyEncoder(), tmp_path)
    folder.mkdir(parents=True)
    old, new = folder / ".shard-a.safetensors.x.tmp", folder / ".shard-b.safetensors.y.tmp"
    old.write_bytes(b"")
    new.write_bytes(b"")
    os.utime(old, (1, 1))
    embed_pictures([], TinyEncoder(), cache=tmp_path)
    assert not old.exists()
    assert new.exists()


@pytest.mark.starter
def test_the_real_encoder_resumes_bit_identical(tmp_path: Path) -> None:
    from fieldguide.model.vision import load_encoder

    encoder = load_encoder()
    noise = np.random.default_rng(0)
    pairs = []
    for number in range(6):
        path = tmp_path / f"{number}.jpg"
        Image.fromarray(noise.integers(0, 256, (20, 30, 3), dtype=np.uint8)).resize((640, 480)).save(path)
        pairs.append((path, hashlib.sha256(path.read_bytes()).hexdigest()))
    whole = embed_pictures(pairs, encoder, cache=tmp_path / "whole", batch_size=6)
    embed_pictures(pairs[:2], encoder, cache=tmp_path / "parts", batch_size=1)
    resumed = embed_pictures(pairs, encoder, cache=tmp_path / "parts", batch_size=4)
    assert whole.grid.shape == (6, 16, 520)
    assert resumed.grid.tobytes() == whole.grid.tobytes()
    assert resumed.pooled.tobytes() == whole.pooled.tobytes()


@pytest.mark.starter
def test_the_command_fills_the_cache_and_names_what_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from fieldguide.cli import app
    from fieldguide.data.dataset import write_dataset
    from fieldguide.model.starter import starter_folder
    from fieldguide.records import Example

    weights = starter_folder("encoder")
    monkeypatch.setenv("FIELDGUIDE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "models").mkdir(parents=True)
    (tmp_path / "cache" / "models" / weights.name).symlink_to(weights)
    pairs = make_pictures(tmp_path / "in", 3)
    examples = [
        Example(path.stem, os.path.relpath(path, tmp_path / "set"), sha256, label="a", split="train")
        for path, sha256 in pairs
    ]
    write_dataset(tmp_path / "set", examples, [], {}, [], {})
    pairs[1][0].write_bytes(b"")
    command = ["embed", str(tmp_path / "set"), "--set", "embed.runtime=torch", "--set", "embed.grid=2"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "2 pictures: features (4 × 520 and 1280 numbers" in result.output
    assert "by torch" in result.output
    assert f"left out: {pairs[1][0]}: changed since it was imported" in result.output
    assert len(list((tmp_path / "cache" / "features").rglob("shard-*"))) == 1
