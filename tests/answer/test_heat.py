"""Where a label comes from: the map lies on what the score depends on, and the deletion test can tell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fieldguide.answer import heat
from fieldguide.answer.heat import CELLS, Heat, covered, deletion_test, drawn, occlusion, save_drawing, where
from fieldguide.errors import GuideError, PictureError
from fieldguide.records import Answer, LabelScore

ROW, COLUMN = 5, 2  # of the cell that the score depends on


@pytest.fixture
def image() -> Image.Image:
    """Noise, and one bright cell."""
    pixels = np.random.default_rng(0).integers(0, 90, (160, 240, 3), dtype=np.uint8)
    pixels[ROW * 20 : (ROW + 1) * 20, COLUMN * 30 : (COLUMN + 1) * 30] = 250
    return Image.fromarray(pixels)


def brightness(images: Sequence[Image.Image]) -> np.ndarray:
    """A score of the brightest spot."""
    return np.array([np.asarray(one.convert("L"), float).max() / 50 for one in images])


def test_the_map_is_hottest_where_the_score_depends_on(image: Image.Image) -> None:
    found = occlusion(image, brightness)
    assert found.cells.shape == (CELLS, CELLS)
    assert np.unravel_index(found.cells.argmax(), found.cells.shape) == (ROW, COLUMN)
    assert found.cells[0, 7] == pytest.approx(0, abs=1e-9)
    assert found.whole == pytest.approx(brightness([image])[0])


def test_the_deletion_test_tells_a_true_map_from_a_wrong_one(image: Image.Image) -> None:
    found = occlusion(image, brightness)
    good = deletion_test(image, found, brightness)
    assert good.matters
    assert good.hottest > 2 * good.random
    wrong = Heat(-found.cells, found.whole)
    assert not deletion_test(image, wrong, brightness).matters


def test_covering_changes_the_covered_cells_alone(image: Image.Image) -> None:
    mask = np.zeros((CELLS, CELLS), bool)
    mask[0, 0] = True
    before, after = np.asarray(image), np.asarray(covered(image, mask))
    assert np.array_equal(before[20:], after[20:])
    assert np.array_equal(before[:, 30:], after[:, 30:])
    assert not np.array_equal(before[:20, :30], after[:20, :30])


def test_the_drawing_is_in_colour_where_it_is_hot(image: Image.Image, tmp_path: Path) -> None:
    colours = Image.merge("RGB", [image.getchannel(0), Image.new("L", image.size, 0), image.getchannel(2)])
    made = np.asarray(drawn(colours, occlusion(image, brightness)), float)
    spread = made.max(2) - made.min(2)
    hot = spread[ROW * 20 : (ROW + 1) * 20, COLUMN * 30 : (COLUMN + 1) * 30].mean()
    assert hot > 10 * spread[:40, 180:].mean() + 10
    flat = Heat(np.zeros((CELLS, CELLS)), 0.0)
    save_drawing(tmp_path / "flat.png", image, flat)
    assert Image.open(tmp_path / "flat.png").size == image.size


class Fake:
    """Chooses by brightness."""

    def __init__(self, labels: tuple[str, ...] = ("bright", "dark")) -> None:
        self.labels = labels

    def classify(self, pictures: Sequence[Path | str], top_k: int = 0) -> list[Answer]:
        scores = tuple(LabelScore(label, 0.5) for label in self.labels)
        return [Answer(str(p), self.labels[0] if scores else "", 0.5, scores) for p in pictures]

    def label_scores(self, images: Sequence[Image.Image], labels: Sequence[str]) -> np.ndarray:
        assert len(images) <= heat.AT_ONCE
        return np.stack([brightness(images), -brightness(images)], 1)


def test_an_answer_is_traced_in_a_picture_file(image: Image.Image, tmp_path: Path) -> None:
    image.save(tmp_path / "a.png")
    found = where(Fake(), tmp_path / "a.png")
    assert found.answer.label == "bright"
    assert "off the log-odds of 'bright'" in found.in_words()
    assert np.unravel_index(found.heat.cells.argmax(), found.heat.cells.shape) == (ROW, COLUMN)
    with pytest.raises(GuideError, match="no label was chosen"):
        where(Fake(()), tmp_path / "a.png")
    with pytest.raises(PictureError, match="missing"):
        where(Fake(), tmp_path / "missing.png")
