"""Looks into every picture: can it be read, is it blank, what does it resemble; and at how labels are spread.

One bad picture never stops a run, and none is replaced: what cannot be read comes back with its reason.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fieldguide.data.near import near_duplicate_pairs, near_duplicates, near_matches
from fieldguide.errors import PictureError
from fieldguide.files import sha256_file
from fieldguide.images import load_picture
from fieldguide.progress import track
from fieldguide.records import Problem
from fieldguide.settings import ImportSettings

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "Examined",
    "examine_pictures",
    "label_problems",
    "near_duplicate_pairs",
    "near_duplicates",
    "near_matches",
    "picture_signature",
]

TINY_CLASS = 5  # a class with fewer pictures is reported
IMBALANCE = 10  # so is a largest class this many times the smallest
_HASHED_SIDE = 256  # hashes are made from JPEGs drawn down as far as this allows
_BLANK_SPREAD = 6  # levels of 255: all that noise and compression leave of one colour


@dataclass(frozen=True)
class Examined:
    """What was found out about one picture file."""

    path: Path
    sha256: str = ""  # of the file's bytes; "" when it cannot be read
    width: int = 0  # pixels after the EXIF turn
    height: int = 0
    phash: str = ""  # perceptual signature, see `near.py`; "" for blank and unreadable pictures
    taken: str = ""  # ISO time, "" if unknown
    camera: str = ""
    blank: bool = False  # one colour, or next to it
    error: str = ""  # why it cannot be read


def examine_pictures(
    paths: Sequence[Path], settings: ImportSettings | None = None, *, threads: int | None = None
) -> list[Examined]:
    """Read every picture once, in parallel; the answers come in the order of `paths`.

    Args:
        settings: `max_pixels` is used.
        threads: how many pictures at once; None for one a core.
    """
    limit = (settings or ImportSettings()).max_pixels
    threads = threads or os.cpu_count() or 1
    return list(track(_examined(paths, limit, threads), "checking pictures", total=len(paths)))


def _examined(paths: Sequence[Path], max_pixels: int, threads: int) -> Iterator[Examined]:
    # Decoding and hashing release the interpreter's lock, so threads do. Few are queued at a time: an
    # interrupt then ends the run at once, and a million paths do not become a million futures.
    waiting: deque[Future[Examined]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for path in paths:
                waiting.append(pool.submit(_examine, path, max_pixels))
                if len(waiting) > 4 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _examine(path: Path, max_pixels: int) -> Examined:
    try:
        picture = load_picture(path, shrink_to=_HASHED_SIDE, max_pixels=max_pixels)
        sha256 = sha256_file(path)
    except PictureError as error:
        return Examined(path, error=error.reason)
    except OSError as error:  # gone, or unreadable, since it was decoded
        return Examined(path, error=(error.strerror or type(error).__name__).lower())
    blank = _is_blank(picture.image)
    return Examined(
        path,
        sha256,
        picture.width,
        picture.height,
        "" if blank else picture_signature(picture.image),  # of one colour, a hash sees only the noise
        picture.taken,
        picture.camera,
        blank,
    )


def _is_blank(image: Image.Image) -> bool:
    """Whether all of the picture has one colour. Averages of cells, so that noise does not count but a
    small thing does."""
    from PIL.Image import Resampling

    cells = np.asarray(image.resize((64, 64), Resampling.BOX), dtype=np.int16).reshape(-1, 3)
    return bool((cells.max(0) - cells.min(0)).max() <= _BLANK_SPREAD)


def picture_signature(image: Image.Image) -> str:
    """The perceptual signature of an RGB picture: 80 hex digits, see `near.py`."""
    import imagehash

    grey = image.convert("L")
    return f"{imagehash.phash(grey)}{imagehash.phash(grey, hash_size=16)}"


def label_problems(labels: Sequence[str]) -> list[Problem]:
    """What is wrong with how pictures are spread over labels. Pictures without a label ("") do not count.

    Returns:
        A problem of kind "tiny_class" for each label with fewer than 5 pictures, and one of kind "imbalance"
        when the largest has more than 10 times the pictures of the smallest. `file` holds the label.
    """
    counts = Counter(label for label in labels if label)
    if not counts:
        return []
    problems = [
        Problem(
            label,
            f"only {count} picture{'s' if count > 1 else ''}: too few to learn from and to test on",
            "kept",
            "tiny_class",
        )
        for label, count in sorted(counts.items())
        if count < TINY_CLASS
    ]
    (largest, most), (smallest, least) = counts.most_common()[0], counts.most_common()[-1]
    if most > IMBALANCE * least:
        reason = f"{most} pictures, {most / least:.0f} times the {least} of {smallest!r}: rare labels suffer"
        problems.append(Problem(largest, reason, "kept", "imbalance", smallest))
    return problems
