"""How long the search for near-duplicates takes among a million pictures, and how much memory.

python bench/near_duplicates.py [COUNT]

Random 64-bit hashes, with planted pairs and copies, and one heavy cluster of look-alikes. Each run is a
process of its own, so that the peak memory is its own.
"""

from __future__ import annotations

import json
import platform
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from fieldguide.data.near import near_duplicate_pairs, near_duplicates

DISTANCE = 8
RESULTS = Path(__file__).parent / "results" / "near_duplicates.json"


def flipped(hashes: np.ndarray, bits: int, random: np.random.Generator) -> np.ndarray:
    """Each hash with `bits` different bits turned over."""
    for where in random.permuted(np.tile(np.arange(64), (len(hashes), 1)), axis=1)[:, :bits].T:
        hashes = hashes ^ (np.uint64(1) << where.astype(np.uint64))
    return hashes


def make_hashes(count: int) -> np.ndarray:
    """93% random; 4% pairs at 1 to 8 bits; 2% copies; a cluster of `count`/400 within 3 bits of a centre."""
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, count, dtype=np.uint64)
    pairs, copies, cluster = count // 25, count // 50, count // 400
    for bits in range(1, 9):
        part = slice((bits - 1) * (pairs // 8), bits * (pairs // 8))
        hashes[count // 2 :][part] = flipped(hashes[part], bits, random)
    hashes[-copies:] = hashes[:copies]
    middle = np.full(cluster, random.integers(0, 2**64, dtype=np.uint64))
    hashes[-copies - cluster : -copies] = flipped(middle, 3, random)
    return random.permutation(hashes)


def peak_bytes() -> int:
    """The most memory this process has held. `ru_maxrss` may count its parent's, so Linux is asked first."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    scale = 1 if platform.system() == "Darwin" else 1024
    return int(found[1]) * 1024 if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def run(what: str, count: int) -> None:
    hashes = make_hashes(count)
    if what == "signatures":
        # The long hashes repeat the short one: every candidate is confirmed, which is the most work.
        signatures = [f"{value:016x}" * 5 for value in hashes.tolist()]
    started = time.perf_counter()
    if what == "pairs":
        found = len(near_duplicate_pairs(hashes, DISTANCE))
    else:
        found = len(near_duplicates(signatures, DISTANCE))
    row = {"what": what, "count": count, "seconds": time.perf_counter() - started, "found": found}
    print(json.dumps({**row, "peak_bytes": peak_bytes()}))


def main(count: int) -> None:
    rows = []
    for what in ("pairs", "signatures"):
        command = [sys.executable, __file__, str(count), what]
        rows.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
        print("{what:10} {count:9,} hashes  {seconds:6.1f} s  {found:9,} pairs".format(**rows[-1]), end="")
        print(f"  peak {rows[-1]['peak_bytes'] / 1e6:5.0f} MB", flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"distance": DISTANCE, "runs": rows}, indent=2) + "\n")


if __name__ == "__main__":
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    if len(sys.argv) > 2:
        run(sys.argv[2], size)
    else:
        main(size)
