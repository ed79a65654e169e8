"""How long 150,000 conversations take to import, and how much memory.

python bench/conversations.py [COUNT]

Rows like those of LLaVA-Instruct: three kinds (short answers in several turns, a description, a reasoned
answer) of about 1,500 characters about shared pictures; and the same rows without pictures. Each run is a
process of its own, so that the peak memory is its own.
"""

from __future__ import annotations

import json
import platform
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fieldguide.data.dataset import load_dataset
from fieldguide.data.export import export_examples
from fieldguide.data.importer import import_pictures

PICTURES = 200
RESULTS = Path(__file__).parent / "results" / "conversations.json"
VOCABULARY = """
    the a of in on and with which is are was man woman dog cat street table bus train kitchen field water
    standing sitting holding looking near behind under green red blue large small several people it they
    image scene shows appears suggesting because while possibly background foreground left right
"""


def make_pictures(folder: Path) -> None:
    """Smooth random pictures, no two alike, of the size of COCO's."""
    folder.mkdir()
    for number in range(PICTURES):
        coarse = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:012}.jpg", quality=85)


def make_rows(path: Path, count: int, pictures: bool) -> None:
    """`count` rows, an emoji or accent in some, as one JSON list."""
    dice, vocabulary = random.Random(0), VOCABULARY.split()

    def say(words: int) -> str:
        text = " ".join(dice.choices(vocabulary, k=words))
        return f"{text} – naïve 🙂." if dice.random() < 0.02 else f"{text}."

    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            pairs = ((4, 12, 35), (1, 10, 190), (1, 15, 230))[number % 3]
            turns: list[dict[str, str]] = []
            for _ in range(pairs[0]):
                turns += [{"from": "human", "value": say(pairs[1])}, {"from": "gpt", "value": say(pairs[2])}]
            row: dict[str, Any] = {"id": f"{number // 2:012}", "conversations": turns}
            if pictures:
                row["image"] = f"{dice.randrange(PICTURES):012}.jpg"
                turns[0]["value"] = f"<image>\n{turns[0]['value']}"
            file.write(("[\n" if number == 0 else ",\n") + json.dumps(row))
        file.write("\n]\n")


def peak_bytes() -> int:
    """The most memory this process has held. `ru_maxrss` may count its parent's, so Linux is asked first."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    scale = 1 if platform.system() == "Darwin" else 1024
    return int(found[1]) * 1024 if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def run(what: str, source: str, out: str) -> None:
    started = time.perf_counter()
    if what == "import":
        images = Path(source).with_name("images")
        dataset = import_pictures(source, out, images=images, announce=lambda line: None)
        rows = len(dataset.examples)
    elif what == "load":
        rows = len(load_dataset(source).examples)
    else:
        dataset = load_dataset(source)
        started = time.perf_counter()
        rows = export_examples(dataset, what, out, announce=lambda line: None)
    print(json.dumps({"rows": rows, "seconds": time.perf_counter() - started, "peak_bytes": peak_bytes()}))


def main(count: int) -> None:
    table = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_pictures(folder / "images")
        for kind in ("pictures", "text only"):
            source, dataset = folder / f"{kind}.json", folder / f"{kind}.dataset"
            make_rows(source, count, kind == "pictures")
            steps = (
                ("import", source, dataset),
                ("load", dataset, dataset),
                ("llava", dataset, folder / "out.json"),
                ("parquet", dataset, folder / "out.parquet"),
            )
            for what, first, second in steps:
                command = [sys.executable, __file__, what, str(first), str(second)]
                said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                row = {
                    "kind": kind,
                    "what": what,
                    "megabytes": source.stat().st_size / 1e6,
                    **json.loads(said),
                }
                table.append(row)
                print("{kind:10} {what:8} {rows:8,} rows  {seconds:6.1f} s".format(**row), end="")
                print(f"  peak {row['peak_bytes'] / 1e6:6.0f} MB  of {row['megabytes']:.0f} MB", flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"runs": table}, indent=2) + "\n")


if __name__ == "__main__":
    if len(sys.argv) > 3:
        run(*sys.argv[1:4])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 150_000)
