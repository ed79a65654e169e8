"""Two real processes divide the pictures among them: each is seen once, and all get every figure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fieldguide.testing.hub import save_tiny
from fieldguide.train.sharing import divide, first_says, process_count, speaks

# FOLDER [late]: embeds pictures and lets a tower see them; writes what this process saw and got. `late`: the
# second process looks at the cache when the first has long begun.
SCRIPT = """
import hashlib, json, os, sys, time
from pathlib import Path
import numpy as np, torch
from fieldguide.files import sha256_file
from fieldguide.model.opening import open_model
from fieldguide.settings import TrainSettings
from fieldguide.train import features
from fieldguide.train.features import embed_pictures
from fieldguide.train.pictures import LazyPictures, TowerStore
from fieldguide.train.sharing import group

NUMBER = int(os.environ.get("RANK", "0"))

class Encoder:
    key, grid_shape, pooled_size, shrink_to = "tiny", (4, 3), 5, 8
    seen = []
    def prepare(self, image):
        return np.asarray(image.resize((8, 8)))
    def encode(self, pictures):
        self.seen += [hashlib.sha256(p.tobytes()).hexdigest() for p in pictures]
        flat = pictures.reshape(len(pictures), -1).astype(np.float32) / 255
        return np.sin(flat[:, :12].reshape(-1, 4, 3)), np.cos(flat[:, -5:])

def main(folder, late=""):
    torch.set_num_threads(1)
    group()  # as in a training, where nothing waits for the late one here
    features.SHARD_PICTURES = 2
    paths = sorted((folder / "in").glob("*.png"))
    pairs = [(path, sha256_file(path)) for path in paths]
    encoder, said = Encoder(), []
    if late and NUMBER == 1:
        time.sleep(3)
    table = embed_pictures(pairs, encoder, cache=folder / "cache", batch_size=2, announce=said.append,
                           together=True)
    np.savez(folder / f"table-{NUMBER}.npz", keys=np.array(table.keys), grid=table.grid, pooled=table.pooled)
    told = {"seen": encoder.seen, "failed": table.failed, "said": said}

    opened = open_model(TrainSettings(model=str(folder / "tiny"), vision_part="frozen"))
    store = TowerStore(opened.model, opened.sha256, folder / "towers")
    written, write = [], store.write
    def counted(key, shown):
        written.append(key)
        return write(key, shown)
    store.write = counted
    lazy = LazyPictures(opened.model, tuple((path,) for path, _ in pairs),
                        tuple((key,) for _, key in pairs), store)
    left_out = []
    visual, failed = lazy.look_through(left_out.append, "seeing", together=True)
    told |= {"written": written, "visual": sorted(visual.items()), "failed examples": sorted(failed.items()),
             "left out": left_out}
    (folder / f"told-{NUMBER}.json").write_text(json.dumps(told))

if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
"""


def make(folder: Path) -> None:
    """Nine pictures, one of which is none, and a tiny model."""
    (folder / "in").mkdir(parents=True)
    noise = np.random.default_rng(0)
    for number in range(9):
        pixels = noise.integers(0, 256, (12, 10 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "in" / f"{number}.png")
    (folder / "in" / "4.png").write_bytes(b"no picture")
    save_tiny("llava", folder / "tiny")


def run(folder: Path, processes: int, *arguments: str) -> list[dict[str, Any]]:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [sys.executable, *(launch if processes > 1 else []), str(script), str(folder), *arguments],
        capture_output=True, text=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"told-{number}.json").read_text()) for number in range(processes)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    make(folder)
    run(folder, 1)
    return folder


@pytest.mark.parametrize("late", [False, True])
def test_two_processes_see_each_picture_once_and_both_get_all(
    alone: Path, tmp_path: Path, late: bool
) -> None:
    make(tmp_path)
    told = run(tmp_path, 2, *(["late"] if late else []))
    one = json.loads((alone / "told-0.json").read_text())
    assert len(one["seen"]) == len(one["written"]) == 8
    for what in ("seen", "written"):
        assert sorted(told[0][what] + told[1][what]) == sorted(one[what])
        assert abs(len(told[0][what]) - len(told[1][what])) <= 1
    whole = np.load(alone / "table-0.npz")
    for number in (0, 1):
        for name in ("failed", "visual", "failed examples", "said"):
            assert told[number][name] == one[name]
        assert len(told[number]["left out"]) == 1
        table = np.load(tmp_path / f"table-{number}.npz")
        assert all(np.array_equal(table[name], whole[name]) for name in ("keys", "grid", "pooled"))


def test_what_is_there_already_is_seen_by_none(tmp_path: Path) -> None:
    make(tmp_path)
    run(tmp_path, 1)
    told = run(tmp_path, 2)
    assert [len(part["seen"]) + len(part["written"]) for part in told] == [0, 0]
    assert told[0]["failed"] == told[1]["failed"]
    assert len(told[0]["failed"]) == 1


def test_one_process_does_all_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    assert (process_count(), speaks(), first_says([3])) == (1, True, [3])
    assert divide(range(4), lambda mine: {n: n * n for n in mine}) == {0: 0, 1: 1, 2: 4, 3: 9}
