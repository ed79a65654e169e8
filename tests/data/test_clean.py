"""What the look into every picture finds: unreadable, blank and alike pictures; how labels are spread."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from fieldguide.data import clean
from fieldguide.data.clean import (
    examine_pictures,
    label_problems,
    near_duplicates,
    picture_signature,
)
from fieldguide.settings import ImportSettings

SUFFIXES = (".jpg", ".jpeg", ".png")


def test_every_file_is_examined_in_order_and_bad_ones_stop_nothing(
    make_picture: Callable[..., Path], tmp_path: Path
) -> None:
    """Case 21: corrupt pictures are named and counted; none stops the run or becomes a stand-in."""
    good = [make_picture(f"{n}.jpg", n, (90, 60)) for n in range(20)]
    html, missing, cut = tmp_path / "page.jpg", tmp_path / "missing.jpg", tmp_path / "cut.jpg"
    html.write_text("<html>404</html>")
    cut.write_bytes(good[0].read_bytes()[:-300])
    paths = [*good[:7], html, missing, *good[7:], cut, tmp_path]
    found = examine_pictures(paths, threads=3)
    assert [one.path for one in found] == paths
    reasons = {one.path: one.error for one in found if one.error}
    assert set(reasons) == {html, missing, cut, tmp_path}
    assert "web page" in reasons[html]
    assert "no such file" in reasons[missing]
    assert "truncated" in reasons[cut]
    for one in found:
        if one.error:  # never a stand-in
            assert (one.sha256, one.phash, one.width, one.height, one.blank) == ("", "", 0, 0, False)
        else:
            assert one.sha256 == hashlib.sha256(one.path.read_bytes()).hexdigest()
            assert (one.width, one.height) == (90, 60)
            assert len(one.phash) == 80


def test_a_picture_over_the_limit_is_named_and_the_run_goes_on(make_picture: Callable[..., Path]) -> None:
    """Case 20: the run does not end at a huge picture."""
    paths = [make_picture("large.png", 1, (200, 200)), make_picture("small.png", 2, (20, 20))]
    large, small = examine_pictures(paths, ImportSettings(max_pixels=10_000))
    assert "too large: decoding 200 × 200 pixels" in large.error
    assert (small.error, small.width) == ("", 20)


def test_a_file_that_vanishes_between_decoding_and_hashing_is_reported(
    make_picture: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(path: Path) -> str:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(clean, "sha256_file", gone)
    assert examine_pictures([make_picture("a.jpg")])[0].error == "no such file or directory"


def test_an_interrupt_does_not_wait_for_the_queue(
    make_picture: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(path: Path, max_pixels: int) -> clean.Examined:
        if path.name == "0":
            raise KeyboardInterrupt
        time.sleep(0.02)
        return clean.Examined(path)

    monkeypatch.setattr(clean, "_examine", slow)
    started = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        examine_pictures([Path(str(n)) for n in range(5000)], threads=2)
    assert time.perf_counter() - started < 5  # all of them would take 50 s


def test_one_colour_and_noise_are_blank_but_small_things_are_not(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    noise = np.clip(random.normal(30, 4, (400, 400, 3)), 0, 255).astype(np.uint8)
    stroke = np.full((400, 400, 3), 255, np.uint8)
    stroke[200:208, 200:208] = 0
    gradient = np.tile(np.linspace(0, 40, 400).astype(np.uint8)[:, None], (400, 1, 3)).reshape(400, 400, 3)
    pictures = {
        "white": (np.full((400, 400, 3), 255, np.uint8), True),
        "red": (np.full((50, 400, 3), (200, 10, 10), np.uint8), True),
        "noise": (noise, True),
        "stroke": (stroke, False),
        "gradient": (gradient, False),
    }
    for name, (values, _) in pictures.items():
        Image.fromarray(values).save(tmp_path / f"{name}.jpg")
    found = examine_pictures([tmp_path / f"{name}.jpg" for name in pictures])
    assert [one.blank for one in found] == [blank for _, blank in pictures.values()]
    assert [bool(one.phash) for one in found] == [not one.blank for one in found]


def test_blank_pictures_are_not_near_duplicates_of_each_other(tmp_path: Path) -> None:
    for level in range(0, 250, 25):
        Image.new("RGB", (64, 64), (level,) * 3).save(tmp_path / f"{level}.png")
    found = examine_pictures(sorted(tmp_path.glob("*.png")))
    assert len(found) == 10
    assert near_duplicates([one.phash for one in found], 8) == []


def detail(seed: int) -> Image.Image:
    """Texture, as photographs have and the smooth pictures of `draw` have not."""
    coarse = np.random.default_rng(seed).integers(0, 256, (30, 40), dtype=np.uint8)
    return Image.fromarray(coarse).resize((400, 300), Image.Resampling.BICUBIC).convert("RGB")


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.resize((200, 150), Image.Resampling.LANCZOS),
        lambda image: ImageEnhance.Brightness(image).enhance(0.8),
        lambda image: ImageEnhance.Contrast(image).enhance(1.2),
        lambda image: image.crop((2, 2, image.width, image.height)),
    ],
    ids=["smaller", "darker", "contrast", "cropped"],
)
def test_edited_copies_are_near_duplicates_of_their_original_only(
    change: Callable[[Image.Image], Image.Image], draw: Callable[..., Image.Image], tmp_path: Path
) -> None:
    paths = []
    for seed in range(10):
        original = Image.blend(draw(seed, (400, 300)), detail(seed), 0.4)
        for name, image in (("a", original), ("b", change(original))):
            paths.append(tmp_path / f"{seed}{name}.jpg")
            image.save(paths[-1], quality=70)
    found = examine_pictures(paths)
    assert near_duplicates([one.phash for one in found], 8) == [(i, i + 1) for i in range(0, 20, 2)]


def test_signature_begins_with_the_usual_phash(draw: Callable[..., Image.Image]) -> None:
    import imagehash

    image = draw(1)
    assert picture_signature(image)[:16] == str(imagehash.phash(image))


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("digits", set()),  # on plain black: by the 64-bit hash alone, 87 wrong pairs at 6 bits
        ("animals", set()),
        ("chess", set()),  # king and queen of one set, photographed alike: no duplicates
        ("galaxies", set()),
        (
            "fish",  # the same stock photographs, with other watermarks
            {("hilsa/000003", "hilsa/000056"), ("hilsa/000004", "hilsa/000029"),
             ("hilsa/000024", "hilsa/000058"), ("pabda/000025", "pabda/000058")},
        ),
    ],
)  # fmt: skip
def test_real_collections_have_true_near_duplicates_only(
    shared_data: Path, folder: str, expected: set[tuple[str, str]]
) -> None:
    root = shared_data / folder
    found = examine_pictures(sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES))
    assert len(found) > 200
    assert [one.path for one in found if one.error or one.blank] == []
    names = [str(one.path.relative_to(root).with_suffix("")) for one in found]
    pairs = near_duplicates([one.phash for one in found], ImportSettings().near_duplicate_distance)
    assert {(names[i], names[j]) for i, j in pairs} == expected


def test_one_photo_in_four_encodings_is_found(shared_data: Path) -> None:
    """16-bit grey, GIF, WebP and CMYK copies of one picture."""
    names = ("16bit.png", "animated.gif", "animated.webp", "cmyk.jpg")
    found = examine_pictures([shared_data / "odd" / f"synthetic_{name}" for name in names])
    assert near_duplicates([one.phash for one in found], 8) == [(0, 1), (0, 2), (0, 3)]


def test_tiny_classes_and_imbalance_are_reported() -> None:
    labels = ["cat"] * 60 + ["dog"] * 5 + ["emu"] * 4 + ["yak"] + [""] * 9
    problems = label_problems(labels)
    assert [(p.kind, p.file) for p in problems] == [
        ("tiny_class", "emu"),
        ("tiny_class", "yak"),
        ("imbalance", "cat"),
    ]
    assert problems[0].reason.startswith("only 4 pictures")
    assert problems[1].reason.startswith("only 1 picture:")
    assert problems[2].other == "yak"
    assert problems[2].reason.startswith("60 pictures, 60 times the 1 of 'yak'")
    assert {p.done for p in problems} == {"kept"}


def test_even_classes_and_no_labels_have_no_problem() -> None:
    assert label_problems(["cat"] * 50 + ["dog"] * 5) == []  # ten times: still allowed
    assert label_problems(["", ""]) == []
    assert label_problems([]) == []
