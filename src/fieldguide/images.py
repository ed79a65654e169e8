"""The only decoder of pictures: import, training, answering and reports all see the same pixels.

What comes out is always 8-bit sRGB, turned as the camera meant it, on white where it was transparent, the
first frame where there are several. What cannot be read is refused with a reason; nothing is ever guessed or
replaced. Memory is bounded, also for hostile files. Safe to call from many threads.
"""

from __future__ import annotations

import io
import os
import re
import stat
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from PIL import Image, ImageFile

from fieldguide.errors import PictureError
from fieldguide.pixels import WORKING_PIXELS, bounded_rgb, brightened

DECODER_VERSION = "1"  # part of every feature-cache key: raise it whenever the same file gives other pixels
MAX_PIXELS = 180_000_000  # 4 bytes each: what one picture may hold while it is decoded

_LARGE_BYTES = 160_000_000  # decodes above this run one at a time, or two threads would double the peak
_one_large_at_a_time = threading.Lock()

# Bytes that Pillow keeps for a pixel of each mode; modes not named take 4.
_PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}
# These decoders hold several whole copies at once (canvas, planes, transfer buffer): bytes a pixel in all.
_DECODER_BYTES = {"WEBP": 18, "AVIF": 14, "HEIF": 14, "JPEG2000": 20}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Picture:
    """What decoding found."""

    image: Image.Image  # mode RGB, turned by EXIF, sRGB, on white; may be smaller than width × height
    width: int  # pixels of the original after the turn
    height: int
    format: str  # "JPEG", "PNG", … by content
    taken: str = ""  # EXIF DateTimeOriginal, ISO text with fractions of a second if there, "" if none
    camera: str = ""  # EXIF maker, model and serial number, "" if none


class _Refused(Exception):
    """Carries the reason up to `load_picture`, which knows the name of the picture."""


def load_picture(
    source: Path | str | bytes, *, shrink_to: int | None = None, max_pixels: int = MAX_PIXELS
) -> Picture:
    """Decode one picture, from a file or from its bytes.

    Args:
        source: the path, or the file's bytes.
        shrink_to: the shorter side need not exceed this many pixels: JPEGs at least twice as large are then
            decoded at 1/2, 1/4 or 1/8, never below `shrink_to`. Equal values give equal pixels anywhere.
        max_pixels: refuse what needs more memory than this many pixels of 4 bytes while decoding. It never
            changes the pixels of a picture that is not refused.

    Raises:
        PictureError: naming the file and, in a few words, why it cannot be read.
    """
    name = "picture in memory" if isinstance(source, bytes) else str(source)
    try:
        with _open_source(source) as file:
            return _decode(file, shrink_to, max_pixels)
    except _Refused as refused:
        raise PictureError(name, str(refused)) from None
    except Exception as error:  # parsers of broken files raise nearly anything
        raise PictureError(name, _reason(error)) from error


def _open_source(source: Path | str | bytes) -> IO[bytes]:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if stat.S_ISDIR(mode := os.stat(source).st_mode):
        raise _Refused("a folder, not a picture")
    if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
        raise _Refused("not an ordinary file")
    return open(source, "rb")


def _reason(error: Exception) -> str:
    """A few words for a table cell."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    text = (str(error).splitlines() or [""])[0].strip()
    if isinstance(error, EOFError) or "truncated" in text.lower() or "end of file" in text.lower():
        return "truncated: the file ends too early"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return f"damaged or of an unknown kind ({text[:100] or type(error).__name__})"


def _decode(file: IO[bytes], shrink_to: int | None, max_pixels: int) -> Picture:
    image, kind = _identify(file)
    width, height = image.size
    if width < 1 or height < 1:
        raise _Refused("damaged: it has no pixels")
    needed = _draw_down(image, kind, file, shrink_to)
    if needed > 4 * max_pixels:
        raise _Refused(
            f"too large: decoding {width} × {height} pixels would need {needed / 1e9:.1f} GB of memory"
        )
    deep = image.mode in ("RGB", "RGBA", "LA") and any(";16" in str(tile[3]) for tile in image.tile)
    with _one_large_at_a_time if needed > _LARGE_BYTES else nullcontext():
        image.load()
        if kind != "JPEG":  # some formats know their size, or turn themselves, only while loading
            width, height = image.size
        orientation, taken, camera = _exif(image)
        profile = image.info.get("icc_profile") or b""
        # Pillow takes every CMYK JPEG for an inverted one; only Adobe's, which say so, are.
        inverted = kind == "JPEG" and "adobe" not in image.info
        if deep and width * height <= WORKING_PIXELS:
            rgb = bounded_rgb(brightened(image, lambda: _low_bytes(file)), profile)
        elif deep:  # too large to hold three times
            rgb = brightened(bounded_rgb(image, profile))
        else:
            rgb = bounded_rgb(image, profile, inverted_cmyk=inverted)
    if orientation in _TURNS:
        rgb = rgb.transpose(_TURNS[orientation])
        if orientation >= 5:
            width, height = height, width
    elif rgb is image:
        rgb = image._new(image.im)  # a plain picture without the file's other parts; `copy` would cost 10%
    rgb.info = {}  # or a later save would attach the old profile to the new pixels
    return Picture(rgb, width, height, kind, taken, camera)


# ---- which format, and how much memory ----


@cache
def _openers() -> tuple[tuple[str, Callable[[bytes], Any], Callable[..., ImageFile.ImageFile]], ...]:
    """(format, accepts these first bytes?, opener). Formats that run programs or lack a signature are out."""
    Image.init()
    names = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF", "ICO")
    found: list[Any] = [(name, *reversed(Image.OPEN[name])) for name in names if name in Image.OPEN]
    return (*found, ("HEIF", _is_heif, _open_heif))


def _is_heif(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in (
        b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1",
    )  # fmt: skip


def _open_heif(file: IO[bytes], name: str) -> ImageFile.ImageFile:
    try:
        # The class, not `register_heif_opener`: nothing changes for other users of Pillow in this process.
        from pillow_heif.as_plugin import HeifImageFile
    except ImportError:
        raise _Refused("HEIC: reading it needs the package pillow-heif") from None
    return HeifImageFile(file, name)


def _identify(file: IO[bytes]) -> tuple[ImageFile.ImageFile, str]:
    """Open by content. Goes to the format's own opener: `Image.open` would refuse large pictures before
    they can be drawn down, and its limit is a global that belongs to the user."""
    file.seek(0)
    head = file.read(1024)
    failed: Exception | None = None
    for kind, accepts, opener in _openers():
        if accepts(head[:16]) not in (True, 1):  # a text says why the format is not available here
            continue
        file.seek(0)
        try:
            return opener(file, ""), kind
        except (SyntaxError, IndexError, TypeError, KeyError) as error:
            failed = error
    if failed is not None:
        raise failed
    raise _Refused(_what_else(head))


def _what_else(head: bytes) -> str:
    """Name what people really find in a folder of pictures."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not head:
        return "empty: the file has no bytes"
    if not head.strip(b"\0"):
        return "damaged: only zero bytes"
    if b"<svg" in text:
        return "an SVG drawing, which has no pixels: save it as PNG"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script")):
        return "a web page, not a picture (the download failed?)"
    if head[4:8] == b"ftyp":
        return "a video or an unknown kind of HEIF"
    signatures = {
        b"<": "XML text, not a picture",
        b"{": "JSON text, not a picture",
        b"[": "JSON text, not a picture",
        b"%pdf": "a PDF document, not a picture",
        b"%!ps": "a PostScript drawing, not a picture",
        b"pk\x03\x04": "a ZIP archive, not a picture",
        b"simple  =": "a FITS file: export it as 16-bit TIFF or PNG",
    }
    for signature, name in signatures.items():
        if text.startswith(signature):
            return name
    if re.fullmatch(rb"[\t\r\n\x20-\x7e\x80-\xff]+", head) and re.search(rb"[a-zA-Z]{3}", head):
        return "text, not a picture"
    return "not a kind of picture that can be read"


def _draw_down(image: ImageFile.ImageFile, kind: str, file: IO[bytes], shrink_to: int | None) -> int:
    """Ask JPEG for a smaller decode where that is allowed; return how many bytes decoding will hold."""
    width, height = image.size
    scale = 1
    if kind == "JPEG":
        while scale < 8 and (
            width * height > WORKING_PIXELS * scale**2
            or (shrink_to is not None and min(width, height) // (2 * scale) >= shrink_to)
        ):
            scale *= 2
        if scale > 1:
            image.draft(None, (width // scale, height // scale))
    pixels = image.size[0] * image.size[1]
    needed = pixels * _DECODER_BYTES.get(kind, _PIXEL_BYTES.get(image.mode, 4))
    if kind in _DECODER_BYTES:
        needed += os.fstat(file.fileno()).st_size if not isinstance(file, io.BytesIO) else 0
    if kind == "JPEG" and width * height > WORKING_PIXELS and not _one_scan(image, file):
        # Pictures sent in several scans are held whole, two bytes a coefficient, whatever the scale.
        layers = [(layer[1], layer[2]) for layer in image.layer]  # type: ignore[attr-defined]
        most = max(v * h for v, h in layers)
        needed += 2 * width * height * sum(v * h for v, h in layers) // most
    return needed


def _one_scan(image: ImageFile.ImageFile, file: IO[bytes]) -> bool:
    """Whether a JPEG's first scan has all its colour layers (Pillow stops reading just behind its header)."""
    header = 6 + 2 * image.layers  # type: ignore[attr-defined]
    if image.info.get("progressive"):
        return False
    file.seek(-header - 2, os.SEEK_CUR)
    return file.read(header + 2).startswith(b"\xff\xda" + header.to_bytes(2, "big"))


def _low_bytes(file: IO[bytes]) -> Image.Image | None:
    """16 bits a colour: Pillow keeps the high bytes. Decoding in the other byte order yields the low ones."""
    image, _ = _identify(file)
    image.tile = [tile._replace(args=_swapped(tile.args)) for tile in image.tile]
    try:
        image.load()
    except ValueError:
        return None  # a layout that Pillow reads in one order only
    return image


def _swapped(args: Any) -> Any:
    """A Pillow raw mode such as "RGB;16B" (alone, or among a decoder's arguments) in the other byte order."""
    native, other = ("L", "B") if sys.byteorder == "little" else ("B", "L")
    if isinstance(args, tuple):
        return tuple(_swapped(arg) for arg in args)
    if isinstance(args, str) and args[-4:-1] == ";16":
        return args[:-1] + (native if args[-1] == other else other)
    return args


# ---- what the camera wrote ----


def _exif(image: Image.Image) -> tuple[int, str, str]:
    """(orientation, time taken, camera). Damaged EXIF counts as none: the pixels are still good."""
    places = {"exif", "xmp", "Raw profile type exif", "XML:com.adobe.xmp"}
    if image.format != "TIFF" and not places & image.info.keys():
        return 1, "", ""
    try:
        exif = image.getexif()
        details = exif.get_ifd(0x8769)
        orientation = exif.get(0x0112, 1)
        taken = _iso_time(str(details.get(0x9003, "")), str(details.get(0x9291, "")))
        maker, model = _clean(exif.get(0x010F)), _clean(exif.get(0x0110))
        serial = _clean(details.get(0xA431))
    except Exception:  # as in load_picture: any failure here is one of the EXIF block only
        return 1, "", ""
    names = [model] if model.lower().startswith(maker.lower()) else [maker, model]
    return orientation if isinstance(orientation, int) else 1, taken, " ".join(filter(None, [*names, serial]))


def _clean(value: Any) -> str:
    return " ".join(str(value).replace("\0", " ").split()) if isinstance(value, str) else ""


def _iso_time(text: str, fraction: str) -> str:
    match = re.match(r"(\d{4})[:-](\d\d)[:-](\d\d)[ T](\d\d):(\d\d):(\d\d)", text.strip())
    if not match or match[1] == "0000" or not ("01" <= match[2] <= "12" and "01" <= match[3] <= "31"):
        return ""  # cameras without a clock write zeros or blanks
    year, month, day, hour, minute, second = match.groups()
    digits = re.match(r"\d+", fraction.strip())
    return f"{year}-{month}-{day}T{hour}:{minute}:{second}" + (f".{digits[0]}" if digits else "")
