"""The one decoder: every kind of picture to the same pixels, every other file refused with a reason."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageCms, ImageFile

from fieldguide.errors import PictureError
from fieldguide.images import load_picture

T = Image.Transpose
# What a camera stores for each EXIF orientation, so that turning it gives the scene.
STORED = {
    1: None, 2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM,
    5: T.TRANSPOSE, 6: T.ROTATE_90, 7: T.TRANSVERSE, 8: T.ROTATE_270,
}  # fmt: skip


def encoded(image: Image.Image, kind: str, **save: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **save)
    return file.getvalue()


def pixels(source: Path | bytes, **how: Any) -> np.ndarray:
    image = load_picture(source, **how).image
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def flat(colour: Any, mode: str = "RGB", size: tuple[int, int] = (32, 16)) -> Image.Image:
    return Image.new(mode, size, colour)


# ---- turned as the camera meant it ----


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(
    ("kind", "save"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_all_eight_exif_orientations_come_out_upright(
    kind: str, save: dict[str, Any], orientation: int, draw: Callable[..., Image.Image]
) -> None:
    """Case 22: the EXIF turn is made once, by the one loader."""
    scene = draw(3, (64, 40))
    turn = STORED[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(scene.transpose(turn) if turn is not None else scene, kind, exif=exif, **save)
    picture = load_picture(data)
    assert (picture.width, picture.height) == picture.image.size == (64, 40)
    difference = np.abs(np.asarray(picture.image).astype(int) - np.asarray(scene))
    assert difference.mean() < (3 if kind == "JPEG" else 0.01)
    assert picture.image.getexif().get(0x0112, 1) == 1  # nobody can turn it again


def test_heic_is_read_turned_once(draw: Callable[..., Image.Image]) -> None:
    """Case 25: phones' own format is read like any other."""
    pillow_heif = pytest.importorskip("pillow_heif")
    scene, exif, file = draw(3, (64, 40)), Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    stored = scene.transpose(T.ROTATE_90)
    heif = pillow_heif.from_pillow(stored)
    heif.save(file, quality=95, exif=exif.tobytes())
    picture = load_picture(file.getvalue())
    assert picture.format == "HEIF"
    assert picture.image.size == (picture.width, picture.height) == (64, 40)
    assert np.abs(np.asarray(picture.image).astype(int) - np.asarray(scene)).mean() < 9
    assert type(picture.image) is Image.Image
    assert "HEIF" not in Image.OPEN, "reading HEIC changes nothing for other users of Pillow"


def test_heic_without_its_package_is_one_clear_line(
    draw: Callable[..., Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 25: never refused without words."""
    pillow_heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    pillow_heif.from_pillow(draw(3)).save(file)
    monkeypatch.setitem(sys.modules, "pillow_heif.as_plugin", None)
    with pytest.raises(PictureError) as caught:
        load_picture(file.getvalue())
    assert caught.value.reason == "HEIC: reading it needs the package pillow-heif"


def test_avif_is_read(draw: Callable[..., Image.Image]) -> None:
    scene = draw(4)
    assert np.abs(pixels(encoded(scene, "AVIF", quality=95)) - np.asarray(scene)).mean() < 6


def test_real_photo_with_orientation_6(shared_data: Path) -> None:
    picture = load_picture(shared_data / "odd" / "imagenet_can_opener_exif6.JPEG")
    assert picture.image.size == (picture.width, picture.height) == (294, 392)
    assert picture.taken == "2009-01-26T12:09:08"
    assert picture.camera == "Canon PowerShot A590 IS"


def test_time_and_camera_are_read_from_exif() -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "NIKON CORPORATION\0", " Z 6 "
    details = exif.get_ifd(0x8769)
    details[0x9003], details[0x9291], details[0xA431] = "2024:05:01 12:30:45", "07", "6012345"
    picture = load_picture(encoded(flat("red"), "JPEG", exif=exif))
    assert picture.taken == "2024-05-01T12:30:45.07"
    assert picture.camera == "NIKON CORPORATION Z 6 6012345"


@pytest.mark.parametrize(
    "text", ["0000:00:00 00:00:00", "    :  :     :  :  ", "yesterday", "2024:13:01 00:00:00"]
)
def test_cameras_without_a_clock_have_no_time(text: str) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = text
    assert load_picture(encoded(flat("red"), "JPEG", exif=exif)).taken == ""


def test_damaged_exif_does_not_lose_the_picture() -> None:
    data = encoded(flat("red"), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert abs(pixels(data)[0, 0] - (254, 0, 0)).max() < 3


# ---- colours ----


def profile_with_red_and_green_exchanged() -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"????", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"????", b"gXYZ", 1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_icc_profile_becomes_srgb(kind: str) -> None:
    save = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(flat((250, 10, 30)), kind, icc_profile=profile_with_red_and_green_exchanged(), **save)
    assert abs(pixels(data)[3, 3] - (10, 250, 30)).max() <= 5


def test_icc_profile_also_counts_under_transparency_and_palette() -> None:
    profile = profile_with_red_and_green_exchanged()
    clear = flat((250, 10, 30, 128), "RGBA")
    assert abs(pixels(encoded(clear, "PNG", icc_profile=profile))[0, 0] - (132, 252, 142)).max() <= 5
    palette = flat((250, 10, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert abs(pixels(encoded(palette, "PNG", icc_profile=profile))[0, 0] - (10, 250, 30)).max() <= 5


def test_srgb_profile_and_broken_profile_leave_pixels_as_they_are(draw: Callable[..., Image.Image]) -> None:
    scene = draw(5)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, b"not a profile", srgb[:200]):
        assert (pixels(encoded(scene, "PNG", icc_profile=profile)) == np.asarray(scene)).all()


def cmyk_profile() -> bytes:
    """A small ICC profile of process inks: an 8-bit table from the 16 corners of CMYK to CIELAB."""
    inks = {
        "": (100, 0, 0), "c": (55, -37, -50), "m": (48, 74, -3), "y": (89, -5, 93),
        "cm": (24, 22, -46), "cy": (50, -68, 33), "my": (47, 68, 48), "cmy": (20, 0, 0),
    }  # fmt: skip
    table = b""
    for corner in range(16):
        present = "".join(ink for ink, bit in zip("cmy", (8, 4, 2), strict=True) if corner & bit)
        light, a, b = (10, 0, 0) if corner & 1 else inks[present]
        table += bytes((round(light * 2.55), a + 128, b + 128))
    identity = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    ramp = bytes(range(256))
    lut = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + identity + ramp * 4 + table + ramp * 3
    head = b"\0\0\0\0" + bytes((2, 0x40, 0, 0)) + b"prtrCMYKLab " + bytes(12) + b"acsp" + bytes(28)
    head += struct.pack(">3i", 63190, 65536, 54061) + bytes(48)
    body = struct.pack(">I4sII", 1, b"A2B0", 128 + 16, len(lut)) + lut
    return struct.pack(">I", len(head) + 4 + len(body)) + head + body


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
@pytest.mark.parametrize(
    ("ink", "plain", "printed"),
    [
        ((255, 0, 0, 0), (0, 255, 255), (0, 146, 220)),
        ((0, 255, 0, 0), (255, 0, 255), (216, 6, 120)),
        ((0, 0, 255, 0), (255, 255, 0), (249, 224, 0)),
        ((0, 0, 0, 0), (255, 255, 255), (255, 255, 255)),
        ((0, 0, 0, 255), (0, 0, 0), (0, 0, 0)),
    ],
)
def test_cmyk_has_the_right_colours(
    kind: str, ink: tuple[int, ...], plain: tuple[int, ...], printed: tuple[int, ...]
) -> None:
    """Case 23: by the profile where there is one, else by the plain sum of inks."""
    image = flat(ink, "CMYK")
    assert abs(pixels(encoded(image, kind))[4, 4] - plain).max() <= 4
    assert abs(pixels(encoded(image, kind, icc_profile=cmyk_profile()))[4, 4] - printed).max() <= 12


def test_cmyk_jpeg_is_inverted_only_where_adobe_says_so() -> None:
    """Case 23: neither green nor a negative."""
    inked = (200, 20, 90, 10)
    adobe = encoded(flat(inked, "CMYK"), "JPEG", quality=95)
    upright = encoded(ImageChops.invert(flat(inked, "CMYK")), "JPEG", quality=95)
    start = upright.index(b"\xff\xee\x00\x0eAdobe")
    unmarked = upright[:start] + upright[start + 16 :]
    expected = [(255 - c) * (255 - inked[3]) / 255 for c in inked[:3]]
    for data in (adobe, unmarked):
        assert abs(pixels(data)[4, 4] - expected).max() <= 6


def test_cmyk_of_a_real_photo_equals_its_rgb(shared_data: Path) -> None:
    plain = pixels(shared_data / "chess" / "knight" / "00000000.jpg")
    cmyk = load_picture(shared_data / "odd" / "synthetic_cmyk.jpg").image
    small = np.asarray(cmyk.resize((8, 8), Image.Resampling.BOX)).astype(int)
    same = np.asarray(Image.fromarray(plain.astype(np.uint8)).resize((8, 8), Image.Resampling.BOX), dtype=int)
    assert np.abs(small - same).max() < 12


# ---- more than 8 bits ----


def deep(low: float, high: float, dtype: Any) -> np.ndarray:
    """A ramp of 64 columns from low to high."""
    return np.tile(np.linspace(low, high, 64), (32, 1)).astype(dtype)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (deep(0, 1023, np.uint16), "PNG"),  # 10 bits in 16: black when merely shifted
        (deep(30_000, 31_000, np.uint16), "PNG"),  # a narrow range: white when clipped
        (deep(0, 65535, np.uint16), "TIFF"),
        (deep(-500, 90_000, np.int32), "TIFF"),
        (deep(0.1, 0.3, np.float32), "TIFF"),
    ],
)
def test_deep_grey_is_stretched_over_the_range_it_uses(values: np.ndarray, kind: str) -> None:
    """Case 24: pictures of more than 8 bits do not come out near black."""
    found = pixels(encoded(Image.fromarray(values), kind))
    assert np.abs(found[0, :, 0] - np.linspace(0, 255, 64)).max() <= 3
    assert (found == found[..., :1]).all()


def test_single_bright_points_and_missing_values_are_no_obstacle() -> None:
    sky = np.full((64, 64), 100.0, np.float32)
    sky[3, 3], sky[9, 9], sky[20, 20] = 5000, np.nan, np.inf
    found = pixels(encoded(Image.fromarray(sky), "TIFF"))[..., 0]
    assert (found[3, 3], found[20, 20]) == (255, 255)
    assert (found[9, 9], found[0, 0]) == (0, 0)


def test_constant_deep_grey_stays_constant() -> None:
    found = pixels(encoded(Image.fromarray(np.full((20, 20), 4000, np.uint16)), "PNG"))
    assert found.min() == found.max()


def png_of_deep_colour(values: np.ndarray) -> bytes:
    """(H, W, 3) uint16 as a 16-bit colour PNG, which Pillow cannot write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(values.shape[1], values.shape[0], 16, 2, zlib.compress(rows))


def png(width: int, height: int, bits: int, colour: int, data: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_dark_deep_colour_is_stretched_from_all_16_bits() -> None:
    ramp = deep(0, 511, np.uint16)  # two levels only in the high bytes
    found = pixels(png_of_deep_colour(np.stack([ramp, ramp // 2, np.zeros_like(ramp)], -1)))
    assert np.abs(found[0, :, 0] - np.linspace(0, 255, 64)).max() <= 3
    assert np.abs(found[0, :, 1] - np.linspace(0, 127, 64)).max() <= 3
    assert found[..., 2].max() == 0


def test_bright_deep_colour_keeps_its_values() -> None:
    ramp = deep(0, 65535, np.uint16)
    found = pixels(png_of_deep_colour(np.stack([ramp, ramp // 2, ramp // 4], -1)))
    assert (found[0, :, 1] == (ramp[0] // 2) >> 8).all()


# ---- palettes, transparency, frames ----


@pytest.mark.parametrize(
    ("image", "kind", "save", "expected"),
    [
        (flat((255, 0, 0, 0), "RGBA"), "PNG", {}, (255, 255, 255)),
        (flat((255, 0, 0, 128), "RGBA"), "PNG", {}, (255, 127, 127)),
        (flat((0, 0), "LA"), "PNG", {}, (255, 255, 255)),
        (flat((40, 255), "LA"), "PNG", {}, (40, 40, 40)),
        (flat(0, "1"), "PNG", {}, (0, 0, 0)),
        (flat(1, "1"), "TIFF", {}, (255, 255, 255)),
        (flat(0, "P"), "PNG", {"transparency": 0}, (255, 255, 255)),
        (flat(0, "P"), "GIF", {"transparency": 0}, (255, 255, 255)),
        (flat(7, "L"), "PNG", {"transparency": 7}, (255, 255, 255)),
        (flat((1, 2, 3)), "PNG", {"transparency": (1, 2, 3)}, (255, 255, 255)),
        (flat((255, 0, 0, 0), "RGBA"), "WEBP", {"lossless": True, "exact": True}, (255, 255, 255)),
    ],
)
def test_every_mode_becomes_rgb_on_white(
    image: Image.Image, kind: str, save: dict[str, Any], expected: tuple[int, ...]
) -> None:
    assert (pixels(encoded(image, kind, **save)) == expected).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_the_first_frame_counts(kind: str) -> None:
    frames = [flat("red"), flat("lime"), flat("blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert abs(pixels(data)[5, 5] - (255, 0, 0)).max() <= 3


def test_type_is_told_by_content_not_by_name(shared_data: Path) -> None:
    expected = {
        "chess_king_00000139.fcgi": "JPEG", "chess_queen_00000170.php": "JPEG",
        "chess_bishop_00000044.png": "JPEG", "fish_baim_000028.jpg": "PNG", "fish_baim_000031.jpg": "WEBP",
        "animal_snake (1).jpg": "WEBP", "chess_bishop_00000095.gif": "GIF", "npu_LA.png": "PNG",
        "chess_rook_00000098_mode1.png": "PNG", "background_2frames.tiff": "TIFF",
    }  # fmt: skip
    for name, kind in expected.items():
        picture = load_picture(shared_data / "odd" / name)
        assert (picture.format, picture.image.mode) == (kind, "RGB"), name
        assert picture.image.size == (picture.width, picture.height), name


# ---- refused, with the reason ----


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (bytes(5000), "zero bytes"),
        (b"<!DOCTYPE html><html>404 not found</html>", "web page"),
        (b"\xef\xbb\xbf  <html lang='de'>", "web page"),
        (b'{"error": "not found"}', "JSON"),
        (b"<?xml version='1.0'?><svg xmlns='x'></svg>", "SVG"),
        (b"<?xml version='1.0'?><a/>", "XML"),
        (b"%PDF-1.7 ...", "PDF"),
        (b"SIMPLE  =                    T / standard FITS", "a FITS file: export it"),  # case 24
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"PK\x03\x04 ...", "ZIP"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2", "video"),
        (b"label,picture\ncat,1.jpg\n", "text"),
        (b"\x13\x37" * 40, "not a kind of picture"),
        (b"\xff\xd8\xff\xe0 nothing behind", "damaged|truncated"),
        (b"\x89PNG\r\n\x1a\n", "damaged|truncated"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(60), "damaged|truncated"),
    ],
)
def test_other_files_are_refused_with_the_reason(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(data)
    with pytest.raises(PictureError) as caught:
        load_picture(path)
    assert re.search(reason, caught.value.reason)
    assert caught.value.path == str(path)
    assert len(caught.value.reason) < 160
    assert str(tmp_path) not in caught.value.reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_truncated_pictures_are_refused_never_filled_up(
    kind: str, share: float, draw: Callable[..., Image.Image]
) -> None:
    """Case 21: what is missing is never made up of grey or zeros."""
    noisy = Image.effect_noise((90, 70), 80).convert("RGB")
    whole = encoded(Image.blend(draw(1, (90, 70)), noisy, 0.5), kind)
    load_picture(whole)
    with pytest.raises(PictureError):
        load_picture(whole[: int(len(whole) * share)])


def test_truncated_real_photo_says_so(shared_data: Path) -> None:
    for shrink_to in (None, 32):
        with pytest.raises(PictureError, match="truncated"):
            load_picture(shared_data / "odd" / "synthetic_truncated.jpg", shrink_to=shrink_to)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_folders_missing_files_pipes_and_closed_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PictureError, match="a folder"):
        load_picture(tmp_path)
    with pytest.raises(PictureError, match="no such file"):
        load_picture(tmp_path / "missing.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(PictureError, match="not an ordinary file"):
        load_picture(tmp_path / "pipe.jpg")
    (tmp_path / "mine.jpg").write_bytes(encoded(flat("red"), "JPEG"))

    def forbidden(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", forbidden)
    with pytest.raises(PictureError, match="no permission"):
        load_picture(tmp_path / "mine.jpg")


# ---- bounded ----


def write_flat_jpeg(path: Path, side: int) -> None:
    """A grey JPEG of one colour: of each 8 × 8 block only "as before" and "end", six bits."""
    small = encoded(flat(128, "L", (8, 8)), "JPEG")
    frame = small.index(b"\xff\xc0") + 5
    scan = small.index(b"\xff\xda") + 10
    blocks = (-(-side // 8)) ** 2
    head = small[:frame] + struct.pack(">HH", side, side) + small[frame + 4 : scan]
    path.write_bytes(head + b"\x28\xa2\x8a" * (blocks // 4 + 1) + b"\xff\xd9")


def write_flat_png(path: Path, side: int, bits: int, colour: int) -> None:
    packer, row = zlib.compressobj(1), bytes(1 + -(-side * bits * (3 if colour == 2 else 1) // 8))
    data = b"".join([packer.compress(row) for _ in range(side)]) + packer.flush()
    path.write_bytes(png(side, side, bits, colour, data))


MEASURE = """
import json, re, resource, sys
from fieldguide.errors import PictureError
from fieldguide.images import load_picture
try:
    picture = load_picture(sys.argv[1])
    found = {"size": [picture.width, picture.height], "decoded": picture.image.size}
except PictureError as error:
    found = {"reason": error.reason}
try:  # ru_maxrss may count what the parent held before it became this process
    peak = int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) * 1024
except OSError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({**found, "peak": peak}))
"""


def measured(path: Path) -> dict[str, Any]:
    """Decode in a process of its own, where Pillow's warning of large pictures is an error."""
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", MEASURE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["peak"] < 1_000_000_000, found
    return found


def test_jpeg_of_30000_by_30000_is_drawn_down_within_a_gigabyte(tmp_path: Path) -> None:
    """Case 20: a huge picture costs bounded memory, and Pillow's own limit does not abort the run."""
    write_flat_jpeg(tmp_path / "huge.jpg", 30_000)
    found = measured(tmp_path / "huge.jpg")
    assert found["size"] == [30_000, 30_000]
    assert found["decoded"] == [3750, 3750]


@pytest.mark.parametrize(("bits", "colour"), [(1, 0), (8, 0)])
def test_png_of_30000_by_30000_is_refused_by_name(tmp_path: Path, bits: int, colour: int) -> None:
    """Case 20: where it cannot be drawn down while decoding, it is refused with its size."""
    write_flat_png(tmp_path / "huge.png", 30_000, bits, colour)
    assert re.match(r"too large: decoding 30000 × 30000 pixels", measured(tmp_path / "huge.png")["reason"])


@pytest.mark.parametrize(("side", "bits", "colour"), [(20_000, 1, 0), (13_000, 8, 2), (13_000, 16, 2)])
def test_large_png_is_drawn_down_within_a_gigabyte(tmp_path: Path, side: int, bits: int, colour: int) -> None:
    write_flat_png(tmp_path / "large.png", side, bits, colour)
    found = measured(tmp_path / "large.png")
    assert found["size"] == [side, side]
    assert found["decoded"][0] ** 2 <= 36_000_000


def test_progressive_jpeg_that_must_be_held_whole_is_refused(tmp_path: Path) -> None:
    small = encoded(flat((1, 2, 3), size=(8, 8)), "JPEG", progressive=True)
    frame = small.index(b"\xff\xc2") + 5
    path = tmp_path / "huge.jpg"
    path.write_bytes(small[:frame] + struct.pack(">HH", 30_000, 30_000) + small[frame + 4 :])
    assert "too large" in measured(path)["reason"]


def test_a_huge_size_in_a_tiny_file_is_refused_without_the_memory(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png(60_000, 60_000, 8, 6, b"x"))
    found = measured(tmp_path / "bomb.png")
    assert "too large" in found["reason"]
    assert found["peak"] < 200_000_000
    (tmp_path / "hollow.png").write_bytes(png(9_000, 9_000, 8, 6, b"x"))  # of a size that would be allowed
    assert "reason" in measured(tmp_path / "hollow.png")


def test_the_limit_is_the_callers(draw: Callable[..., Image.Image]) -> None:
    data = encoded(draw(1, (100, 100)), "PNG")
    assert load_picture(data, max_pixels=10_000).width == 100
    with pytest.raises(PictureError, match="too large"):
        load_picture(data, max_pixels=9_999)


def test_large_pictures_keep_colours_and_places_when_drawn_down(monkeypatch: pytest.MonkeyPatch) -> None:
    from fieldguide import pixels as module

    corners = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [250, 250, 0]]], np.uint8)
    scene = Image.fromarray(corners).resize((700, 900), Image.Resampling.NEAREST)
    monkeypatch.setattr(module, "WORKING_PIXELS", 50_000)
    for image in (scene, scene.convert("RGBA"), scene.convert("P", palette=Image.Palette.ADAPTIVE)):
        picture = load_picture(encoded(image, "PNG"))
        assert (picture.width, picture.height) == (700, 900)
        assert picture.image.size == (175, 225)
        small = np.asarray(picture.image)
        assert (small[[5, 5, -5, -5], [5, -5, 5, -5]] == corners.reshape(4, 3)).all()


# ---- the same everywhere ----


@pytest.mark.parametrize(
    ("shrink_to", "size"),
    [(None, (800, 600)), (301, (800, 600)), (300, (400, 300)), (100, (200, 150)), (9, (100, 75))],
)
def test_shrinking_decodes_jpeg_at_a_fraction_but_never_below_what_is_asked(
    shrink_to: int | None, size: tuple[int, int], draw: Callable[..., Image.Image]
) -> None:
    scene = draw(2, (800, 600))
    picture = load_picture(encoded(scene, "JPEG"), shrink_to=shrink_to)
    assert picture.image.size == size
    assert (picture.width, picture.height) == (800, 600)
    expected = np.asarray(scene.resize(size, Image.Resampling.BOX)).astype(int)
    assert np.abs(np.asarray(picture.image) - expected).mean() < 4
    assert load_picture(encoded(scene, "PNG"), shrink_to=shrink_to).image.size == (800, 600)


def test_path_bytes_and_threads_all_see_the_same_pixels(make_picture: Callable[..., Path]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    profile = profile_with_red_and_green_exchanged()
    path = make_picture("a.jpg", 7, (400, 300), exif=exif, icc_profile=profile)
    once = pixels(path, shrink_to=64)
    with ThreadPoolExecutor(8) as pool:
        for again in pool.map(lambda _: pixels(path.read_bytes(), shrink_to=64), range(40)):
            assert (again == once).all()


def test_nothing_of_the_old_file_clings_to_the_picture(make_picture: Callable[..., Path]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = make_picture("a.png", 7, exif=exif, icc_profile=profile_with_red_and_green_exchanged())
    image = load_picture(path).image
    again = Image.open(io.BytesIO(encoded(image, "PNG")))
    assert "icc_profile" not in again.info
    assert again.getexif().get(0x0112, 1) == 1
    assert (np.asarray(pickle.loads(pickle.dumps(image))) == np.asarray(image)).all()  # noqa: S301
    path.unlink()
    image.copy().load()  # the file is not needed any more


def test_all_odd_files_give_a_picture_or_a_reason(shared_data: Path) -> None:
    refused = {}
    for path in sorted((shared_data / "odd").iterdir()):
        try:
            assert load_picture(path).image.mode == "RGB"
        except PictureError as error:
            refused[path.name] = error.reason
    assert set(refused) == {
        "NOTES.md", "no-take-fish.broken.json", "synthetic_empty.jpg", "synthetic_html.jpg",
        "synthetic_truncated.jpg",
    }  # fmt: skip
