"""Pictures as they are sent: read by the one decoder, turned, bounded, and encoded again."""

from __future__ import annotations

import hashlib
import io
import stat
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from fieldguide.errors import PictureError
from fieldguide.images import DECODER_VERSION, load_picture

PREPARATION = "1"  # part of every cache key: raise it whenever the same picture is sent as other pixels
_PNG_PIXELS = 500_000  # up to here "auto" sends PNG, which keeps every pixel
_JPEG_QUALITY = 95


@dataclass(frozen=True)
class Shot:
    """A picture file as it was when it was read."""

    path: Path
    data: bytes  # of the file
    sha256: str  # of these bytes

    def preparation(self, side: int, kind: str) -> dict[str, str | int]:
        """What, besides the bytes, decides which pixels are sent."""
        return {"decoder": DECODER_VERSION, "version": PREPARATION, "side": side, "format": kind}

    def encoded(self, side: int, kind: str) -> tuple[str, bytes]:
        """Media type and bytes to send.

        Args:
            side: pixels of the longest side at most; 0 for as it is. Nothing is ever enlarged.
            kind: "png", "jpeg", or "auto" for PNG while it is small.

        Raises:
            PictureError: when it cannot be decoded.
        """
        try:
            image = load_picture(self.data, shrink_to=_shrink_to(side)).image
        except PictureError as error:
            raise PictureError(str(self.path), error.reason) from error
        if side and max(image.size) > side:
            scale = side / max(image.size)
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            image = image.resize(size, Image.Resampling.LANCZOS)
        png = kind == "png" or (kind == "auto" and image.width * image.height <= _PNG_PIXELS)
        written = io.BytesIO()
        if png:
            # Fast before small: at the usual level a picture takes longer to pack than a server to answer.
            image.save(written, "PNG", compress_level=1)
            return "image/png", written.getvalue()
        image.save(written, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        return "image/jpeg", written.getvalue()


def _shrink_to(side: int) -> int | None:
    """The decoder bounds the SHORTER side: at `side`, the longer one is never decoded below it."""
    return side or None


def read_shot(path: Path) -> Shot:
    """Read a picture's file.

    Raises:
        PictureError: when it is missing, no ordinary file, or may not be read.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise PictureError(str(path), "a folder, not a picture")
        if not stat.S_ISREG(status.st_mode):  # to read a pipe is to wait for ever
            raise PictureError(str(path), "not an ordinary file")
        data = path.read_bytes()
    except FileNotFoundError:
        raise PictureError(str(path), "no such file") from None
    except (OSError, ValueError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise PictureError(str(path), reason.lower()) from error
    return Shot(path, data, hashlib.sha256(data).hexdigest())
