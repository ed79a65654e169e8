"""What a source holds, before anything is decoded: rows, and which files are pictures.

Every layout reader (`folders.py`, `read.py`) yields `Row`s in one `Source`. Nothing here opens more than the
first bytes of a file.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fieldguide.files import natural_key
from fieldguide.records import Problem, Turn

PICTURE_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".bmp", ".dib", ".tif", ".tiff",
    ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".tga",
    ".fits", ".fit", ".fts",
))  # fmt: skip
TABLE_SUFFIXES = frozenset((".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".json"))

_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
# "Train", "test_images", "val2017", "training set", "seg_train"
_SPLIT_NAME = re.compile(
    rf"(?:seg[ _-])?({'|'.join(_SPLIT_WORDS)})(?:[ _-]?(?:set|data|images|imgs|split|\d{{4}}))?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Row:
    """One picture as the source tells of it."""

    image: Path  # absolute
    name: str  # path relative to the source, with "/": the example's id, and how reports name it
    label: str = ""
    labels: tuple[str, ...] = ()
    text: str = ""
    captions: tuple[str, ...] = ()
    messages: tuple[Turn, ...] = ()
    split: str = ""  # given by the source: "train", "val", "test" or ""
    group: str = ""
    source: str = ""
    licence: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    ties: tuple[str, ...] = ()  # rows that share one of these belong on one side

    @property
    def pictures(self) -> tuple[Path, ...]:
        return (self.image,)


@dataclass(frozen=True)
class Source:
    """All rows of a source, what was inferred to read them, and what could not be used."""

    root: Path  # absolute folder that the rows' names are relative to
    rows: tuple[Row, ...]
    inferred: dict[str, str]  # ordered plain sentences: {"labels": "7 sub-folders", …}
    problems: tuple[Problem, ...] = ()


def split_of(name: str) -> str:
    """The split that a folder name or table value stands for, or "" when it is none."""
    match = _SPLIT_NAME.fullmatch(name.strip())
    return _SPLIT_WORDS[match[1].lower()] if match else ""


def clean_label(text: str) -> str:
    """A label as it is stored: NFC, no control characters, single blanks, none at the ends."""
    if not text:
        return ""
    text = unicodedata.normalize("NFC", text)
    return " ".join("".join(s for s in text if s.isspace() or unicodedata.category(s) != "Cc").split())


def printable(path: Path | str) -> str:
    """A path as text that can be written as UTF-8, also when the file name is not valid UTF-8."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def utf8_name(path: Path | str) -> bool:
    """Whether a path can be stored as UTF-8 text."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def looks_like_picture(path: Path) -> bool:
    """Whether a file is a picture: by its extension, else by its first 32 bytes.

    A broken file with a picture's extension counts too: decoding then reports it by name.
    """
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return path.is_file() or path.is_symlink()
    if not path.is_file():  # sockets, pipes and devices must not be opened
        return False
    try:
        with open(path, "rb") as file:
            return is_picture_start(file.read(32))
    except OSError:
        return False


def is_picture_start(head: bytes) -> bool:
    """Whether the first 32 bytes of a file are those of a picture format."""
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"SIMPLE  =")):
        return True
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")):
        return True
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return True
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0" and len(head) >= 26:  # "BM" alone may begin a text
        return True
    brands = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1", b"avif", b"avis")
    return head[4:8] == b"ftyp" and head[8:12] in brands


@dataclass
class Found:
    """What a walk through a folder met."""

    pictures: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def walk(root: Path) -> Found:
    """Find all pictures below `root`, in natural order; hidden and system files are skipped silently.

    Links to folders are followed after everything real has been seen, each real folder once, so a loop ends
    and a linked class folder is not read twice under two names. Data set and guide folders are not entered.
    """
    found = Found()
    seen: set[tuple[int, int]] = set()
    links: list[Path] = []
    _walk_into(root, root, seen, links, found)
    while links:
        link = links.pop(0)
        if _identity(link) in seen:
            reason = "a link to a folder that is already read"
            found.problems.append(Problem(_relative(link, root), reason, "not followed", "ignored"))
        else:
            _walk_into(link, root, seen, links, found)
    for listing in (found.pictures, found.others, found.folders):
        listing.sort(key=lambda path: natural_key(_relative(path, root)))
    return found


def _walk_into(folder: Path, root: Path, seen: set[tuple[int, int]], links: list[Path], found: Found) -> None:
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        name = _relative(here, root)
        try:
            seen.add(_identity(here))
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            problem = Problem(name, f"folder cannot be read ({error.strerror})", "left out", "unreadable")
            found.problems.append(problem)
            continue
        if here != root:
            if any(entry.name in ("dataset.json", "guide.json") for entry in entries):
                found.problems.append(Problem(name, "a data set or guide folder", "not entered", "ignored"))
                continue
            found.folders.append(here)
        for entry in entries:
            path = Path(entry.path)
            if _is_system_file(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append(path)
            elif entry.is_dir():
                links.append(path)
            else:
                (found.pictures if looks_like_picture(path) else found.others).append(path)


def _is_system_file(name: str) -> bool:
    return name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini", "__macosx")


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _relative(path: Path, root: Path) -> str:
    return printable(path.relative_to(root).as_posix())


def row_name(image: Path, root: Path) -> str:
    """A picture's path relative to the source, with "/" on every platform; absolute across drives."""
    try:
        return Path(os.path.relpath(image, root)).as_posix()
    except ValueError:
        return image.as_posix()


def ignored(paths: Iterable[Path], root: Path, reason: str = "not a picture") -> list[Problem]:
    """One problem of kind "ignored" a file."""
    return [Problem(printable(row_name(path, root)), reason, "left out", "ignored") for path in paths]
