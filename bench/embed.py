"""How close embedding a folder of pictures comes to the bare forward pass of the encoder.

    python bench/embed.py [FOLDER …]

Both are measured in one run, turn and turn about, on one picture set at a time: `bare` runs the encoder on
pictures that are already decoded; `embed` reads, hashes, decodes, prepares, encodes and stores them (an empty
cache every time). `decode` is what reading, decoding and preparing cost alone, on all cores: where all cores
are busy anyway, embedding cannot be faster than `floor` = 1 / (1 / bare + 1 / decode). Without folders: the
real photographs beside the repository if they are there, else JPEGs made for the purpose.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from fieldguide.errors import PictureError
from fieldguide.files import sha256_file
from fieldguide.images import load_picture
from fieldguide.model.runtime import threads
from fieldguide.model.vision import VisionEncoder, load_encoder
from fieldguide.train.features import embed_pictures

RESULTS = Path(__file__).parent / "results" / "embed.json"
ROUNDS = 5
BATCH = 16


def main() -> None:
    """Measure every folder given, or the default ones."""
    encoder = load_encoder()
    print(
        f"runtime {encoder.runtime_name}, {threads()} threads, batches of {BATCH}, {ROUNDS} rounds, medians"
    )
    shared = Path(__file__).resolve().parents[2] / "shared" / "data"
    folders = [Path(name) for name in sys.argv[1:]]
    folders = folders or [folder for name in ("animals", "fish") if (folder := shared / name).is_dir()]
    with tempfile.TemporaryDirectory() as made:
        found = {folder.name: measure(folder, encoder) for folder in folders or [make_pictures(Path(made))]}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"runtime": encoder.runtime_name, "sets": found}, indent=2) + "\n")


def measure(folder: Path, encoder: VisionEncoder) -> dict[str, float]:
    """Print and return pictures a second: bare forward, whole embedding, decoding alone, and the ratio."""
    paths, arrays = [], []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            arrays.append(encoder.prepare(load_picture(path, shrink_to=encoder.shrink_to).image))
            paths.append(path)
        except PictureError:
            continue
    pairs = list({sha256_file(path): path for path in paths}.items())[:128]
    stacked = np.stack(arrays[: len(pairs)])
    bare, whole, decode = [], [], []
    for _ in range(ROUNDS):
        bare.append(len(stacked) / seconds(lambda: forward(encoder, stacked)))
        whole.append(len(pairs) / seconds(lambda: embed(encoder, [(path, key) for key, path in pairs])))
        decode.append(len(pairs) / seconds(lambda: decode_all(encoder, [path for _, path in pairs])))
    ratios = sorted(one / other for one, other in zip(whole, bare, strict=True))
    middle = {
        name: statistics.median(rates)
        for name, rates in (("bare", bare), ("embed", whole), ("decode", decode))
    }
    floor = 1 / (1 + middle["bare"] / middle["decode"])
    print(
        f"{folder.name}: {len(pairs)} pictures, a second: "
        + ", ".join(f"{name} {rate:.1f}" for name, rate in middle.items())
        + f"; embed/bare {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}), "
        f"floor {floor:.3f}"
    )
    return {**middle, "embed/bare": statistics.median(ratios), "floor": floor}


def forward(encoder: VisionEncoder, pictures: np.ndarray) -> None:
    """The encoder alone."""
    for first in range(0, len(pictures), BATCH):
        encoder.encode(pictures[first : first + BATCH])


def embed(encoder: VisionEncoder, pictures: list[tuple[Path, str]]) -> None:
    """The product's own way, into an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        embed_pictures(pictures, encoder, cache=Path(cache), batch_size=BATCH)


def decode_all(encoder: VisionEncoder, paths: list[Path]) -> None:
    """Everything before the encoder."""

    def one(path: Path) -> np.ndarray:
        return encoder.prepare(load_picture(path.read_bytes(), shrink_to=encoder.shrink_to).image)

    with ThreadPoolExecutor(threads()) as pool:
        list(pool.map(one, paths))


def make_pictures(folder: Path) -> Path:
    """128 JPEGs of 1280 × 960 pixels with structure and grain."""
    random = np.random.default_rng(0)
    for number in range(128):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((1280, 960), Image.Resampling.BICUBIC), np.float32)
        grain = np.clip(smooth + random.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(grain).save(folder / f"{number:03}.jpg", quality=88)
    return folder


def seconds(work: object) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
