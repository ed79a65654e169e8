"""Decoded pixels of any kind to 8-bit sRGB on white: colour profiles, CMYK, transparency, deep greys.

Used by `images.py` only, which is what the rest of the project calls.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageCms

WORKING_PIXELS = 36_000_000  # pictures above this are drawn down before they are turned or converted
DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")


def bounded_rgb(image: Image.Image, profile: bytes, *, inverted_cmyk: bool = False) -> Image.Image:
    """Any decoded picture as 8-bit sRGB on white.

    Pictures above `WORKING_PIXELS` go strip by strip and come out reduced by a whole number, so that only
    the decoded original is ever held whole.

    Args:
        image: as Pillow decoded it, any mode.
        profile: its ICC profile, or b"".
        inverted_cmyk: whether CMYK values are upside down.
    """
    if image.mode in DEEP_GREY:
        image = _stretched_grey(image)
    inverted = inverted_cmyk and image.mode == "CMYK"
    width, height = image.size
    if width * height <= WORKING_PIXELS:
        return _to_rgb(ImageChops.invert(image) if inverted else image, profile)
    factor = math.ceil(math.sqrt(width * height / WORKING_PIXELS))
    reduced = Image.new("RGB", (math.ceil(width / factor), math.ceil(height / factor)))
    rows = max(1, 4_000_000 // width // factor) * factor
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        strip = _to_rgb(ImageChops.invert(strip) if inverted else strip, profile)
        reduced.paste(strip.reduce(factor), (0, top // factor))
    return reduced


def _to_rgb(image: Image.Image, profile: bytes) -> Image.Image:
    alpha = None
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB")
    elif image.mode == "P":
        image = image.convert("RGB")
    transform = _transform_to_srgb(profile, image.mode) if profile or image.mode == "LAB" else None
    if transform is not None:
        image = transform.apply(image)
    elif image.mode != "RGB":
        image = image.convert("RGB")
    if alpha is not None:
        paper = Image.new("RGB", image.size, "white")
        paper.paste(image, mask=alpha)
        image = paper
    return image


@lru_cache(maxsize=64)
def _transform_to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """How pixels of `mode` described by an ICC profile become sRGB; None where they may stay as they are.

    A profile that is broken or belongs to another kind of pixels is passed over, as browsers do.
    """
    try:
        if mode == "LAB":
            source = ImageCms.createProfile("LAB")
        else:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile
            if {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}.get(mode) != source.xcolor_space.strip():
                return None
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(source),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.PERCEPTUAL,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode in ("RGB", "L"):
            # Most profiles are sRGB under one of many names: ask what they do to colours, not what they say.
            steps = np.arange(0, 256, 51 if mode == "RGB" else 1, dtype=np.uint8)
            cube = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
            before = Image.fromarray(cube if mode == "RGB" else steps[None])
            after = np.asarray(transform.apply(before), dtype=np.int16)
            if np.abs(after - np.asarray(before.convert("RGB"), dtype=np.int16)).max() <= 3:
                return None
        return transform
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Darkest and brightest value that count: the 0.1 and 99.9 percentiles, or the extremes where those
    coincide (a few bright points on black)."""
    sample = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if not sample.size:
        return 0.0, 0.0
    low, high = (float(value) for value in np.percentile(sample, (0.1, 99.9)))
    return (low, high) if high > low else (float(sample.min()), float(sample.max()))


def _stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map low … high to 0 … 255. A constant picture becomes mid-grey; NaN becomes black."""
    if not high > low:
        return np.full(values.shape, 128, np.uint8)
    scaled = (values.astype(np.float32) - low) * (255 / (high - low))
    return np.clip(np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0) + 0.5, 0, 255).astype(np.uint8)


def _strips(*images: Image.Image) -> Iterator[tuple[int, list[np.ndarray]]]:
    """(top row, the rows from there of each picture): whole arrays would double the memory."""
    width, height = images[0].size
    for top in range(0, height, 256):
        box = (0, top, width, min(top + 256, height))
        yield top, [np.asarray(image.crop(box)) for image in images]


def _sample(image: Image.Image) -> np.ndarray:
    """At most 2048 × 2048 of the pixels, evenly spaced."""
    return np.asarray(
        image.resize((min(image.width, 2048), min(image.height, 2048)), Image.Resampling.NEAREST)
    )


def _stretched_grey(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit or float grey as 8 bits: the range that is used, not the range that could be."""
    low, high = _limits(_sample(image))
    grey = Image.new("L", image.size)
    for top, (rows,) in _strips(image):
        grey.paste(Image.fromarray(_stretch(rows, low, high)), (0, top))
    return grey


def brightened(high: Image.Image, fetch_low: Callable[[], Image.Image | None] = lambda: None) -> Image.Image:
    """Colours of 16 bits, given as the picture of their high bytes and a way to get that of the low bytes.

    The high bytes alone are near black where cameras use 10 or 12 of the 16 bits. Where less than half of the
    range is used all colours are stretched alike; otherwise `high` comes back as it is.
    """
    bands = 1 if high.mode == "LA" else 3  # never the alpha
    if np.percentile(_sample(high)[..., :bands], 99.9) >= 128:
        return high
    low = fetch_low()
    parts = [high] if low is None else [high, low]
    darkest, brightest = _limits(_joined([_sample(part) for part in parts])[..., :bands])
    bright = high.copy()
    for top, rows in _strips(*parts):
        strip = rows[0].copy()
        strip[..., :bands] = _stretch(_joined(rows)[..., :bands], darkest, brightest)
        bright.paste(Image.fromarray(strip), (0, top))
    return bright


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else parts[0].astype(np.uint16) * 256 + parts[1]
