"""Where in a picture the answer comes from: parts are covered, and what that costs the label is measured.

Occlusion (Zeiler, Fergus 2014) asks nothing of a model but answers, so it holds for every kind. That the map
means something is tested, not hoped: covering its hottest fifth must cost the label more than covering as
much at random (`deletion_test`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageFilter

from fieldguide.errors import GuideError, PictureError
from fieldguide.files import atomic_path
from fieldguide.images import load_picture
from fieldguide.records import Answer

CELLS = 8  # a side of the map
COVER = 2  # cells a side that are covered at once: small things are hidden as a whole
SHARE = 0.2  # of the picture that the deletion test covers
DRAWS = 8  # random covers that it is held against
SIDE = 512  # pixels of the longer side, of what is answered and drawn

RIVALS = 5  # likeliest labels that the answer is held against
AT_ONCE = 16  # pictures

# How much speaks for one label in each of several pictures, in nats.
Score = Callable[[Sequence[Image.Image]], np.ndarray]


class Answering(Protocol):
    """What is asked: a guide, or a model that knows the labels by name only."""

    def classify(self, pictures: Sequence[Path | str], top_k: int = 0) -> list[Answer]:
        """Name pictures."""
        ...

    def label_scores(self, images: Sequence[Image.Image], labels: Sequence[str]) -> np.ndarray:
        """(B, len(labels)) log-probabilities of some labels among each other."""
        ...


@dataclass(frozen=True)
class Heat:
    """What each cell of a picture is worth to a label."""

    cells: (
        np.ndarray
    )  # (CELLS, CELLS) nats that the label loses when the cell is covered, mean over its covers
    whole: float  # score of the label for the whole picture


@dataclass(frozen=True)
class Deletion:
    """What the label loses, in nats, when a fifth of the picture is covered."""

    hottest: float
    random: float  # mean over the draws

    @property
    def matters(self) -> bool:
        return self.hottest > self.random


@dataclass(frozen=True)
class Where:
    """An answer, where it comes from, and whether that matters."""

    answer: Answer
    image: Image.Image  # as it was tried
    heat: Heat
    deletion: Deletion

    def in_words(self) -> str:
        """The deletion test in a sentence."""
        return (
            f"covering the hottest fifth takes {self.deletion.hottest:.2f} nats off the log-odds of "
            f"{self.answer.label!r}, a fifth at random {self.deletion.random:.2f}"
        )


def where(answering: Answering, picture: Path | str) -> Where:
    """Ask for a picture's label, and find where in the picture it comes from.

    Raises:
        PictureError: when it cannot be read.
        GuideError: when there is no label to look for.
    """
    [answer] = answering.classify([picture], RIVALS)
    if answer.error:
        raise PictureError(str(picture), answer.error)
    labels = [score.label for score in answer.scores]
    if len(labels) < 2:
        raise GuideError(f"{picture}: no label was chosen, so there is nothing to look for")
    image = small(load_picture(picture).image)

    def score(images: Sequence[Image.Image]) -> np.ndarray:
        parts = [images[start : start + AT_ONCE] for start in range(0, len(images), AT_ONCE)]
        found = np.concatenate([answering.label_scores(part, labels) for part in parts])
        # Log-odds: a probability near 1 hardly falls at all, however much of the evidence is covered.
        return found[:, 0] - np.logaddexp.reduce(found[:, 1:], axis=1)

    heat = occlusion(image, score)
    return Where(answer, image, heat, deletion_test(image, heat, score))


def small(image: Image.Image) -> Image.Image:
    """The picture as it is tried: at most SIDE pixels a side."""
    copy = image.convert("RGB")
    copy.thumbnail((SIDE, SIDE))
    return copy


def occlusion(image: Image.Image, score: Score) -> Heat:
    """The map of one picture: (CELLS − COVER + 1)² + 1 answers.

    Args:
        image: in RGB; see `small`.
        score: of the label in question.
    """
    span = CELLS - COVER + 1
    places = [(row, column) for row in range(span) for column in range(span)]
    covers = []
    for row, column in places:
        mask = np.zeros((CELLS, CELLS), bool)
        mask[row : row + COVER, column : column + COVER] = True
        covers.append(mask)
    found = score([image, *(covered(image, mask) for mask in covers)])
    lost = found[0] - found[1:]
    total, count = np.zeros((CELLS, CELLS)), np.zeros((CELLS, CELLS))
    for mask, value in zip(covers, lost, strict=True):
        total += mask * value
        count += mask
    return Heat(total / count, float(found[0]))


def covered(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """The picture with some cells replaced by itself, blurred until nothing can be told: no new edges, no new
    colours, which a grey patch would bring."""
    blurred = image.filter(ImageFilter.GaussianBlur(max(image.size) / 8))
    shade = Image.fromarray((mask * 255).astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST)
    return Image.composite(blurred, image, shade)


def deletion_test(image: Image.Image, heat: Heat, score: Score, seed: int = 0) -> Deletion:
    """Cover the hottest fifth, and as many cells at random."""
    count = round(SHARE * CELLS**2)
    generator = np.random.default_rng(seed)
    orders = [np.argsort(-heat.cells, axis=None, kind="stable")]
    orders += [generator.permutation(CELLS**2) for _ in range(DRAWS)]
    masks = []
    for order in orders:
        mask = np.zeros(CELLS**2, bool)
        mask[order[:count]] = True
        masks.append(mask.reshape(CELLS, CELLS))
    lost = heat.whole - score([covered(image, mask) for mask in masks])
    return Deletion(float(lost[0]), float(lost[1:].mean()))


def drawn(image: Image.Image, heat: Heat) -> Image.Image:
    """The picture: grey where covering costs nothing, in colour where it does, red where it costs most."""
    warm = np.clip(heat.cells, 0, None)
    share = warm / warm.max() if warm.max() > 0 else warm
    shade = Image.fromarray((share * 255).astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)
    plain = image.convert("L").convert("RGB")
    pale = Image.blend(plain, Image.new("RGB", image.size, (255, 255, 255)), 0.35)
    mixed = Image.composite(image, pale, shade)
    red = Image.blend(mixed, Image.new("RGB", image.size, (220, 30, 20)), 0.35)
    hot = Image.fromarray(((share > 0.6) * 255).astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)
    return Image.composite(red, mixed, hot)


def save_drawing(path: Path, image: Image.Image, heat: Heat) -> None:
    """Write the drawing as PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        drawn(image, heat).save(temporary, "PNG")
