"""What this machine has: devices, packages, models, caches, and what each missing extra would give.

fieldguide doctor
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fieldguide.files import cache_dir

# What an optional extra of pyproject.toml gives; extras for working on fieldguide itself are not listed.
EXTRAS = {
    "openvino": "another way to run the vision encoder, fastest on some Intel processors",
    "quant": "language models in 4 bits (QLoRA), and an 8-bit optimizer on GPUs",
    "logs": "training logged to TensorBoard",
}


@dataclass(frozen=True)
class ModelState:
    """One model of the starter."""

    name: str
    gives: str
    licence: str
    state: str  # present, missing, damaged or outdated
    megabytes: float  # on disk when present, else to download
    command: str  # that fetches it; "" when present


@dataclass(frozen=True)
class ExtraState:
    """One optional extra."""

    name: str
    gives: str
    installed: bool
    command: str  # that installs it; "" when installed


@dataclass(frozen=True)
class Health:
    """All that `doctor` finds out; `to_dict` is what `--json` prints."""

    system: str
    python: str
    cores: int  # that this process may use
    processor: str
    memory_gb: float  # 0 when the system does not tell
    free_disk_gb: float  # where the cache lives
    gpus: tuple[str, ...]
    packages: dict[str, str]  # name → version, "" = not installed
    models: tuple[ModelState, ...]
    extras: tuple[ExtraState, ...]
    cache: str
    cache_mb: dict[str, float]  # features, models, wheels
    runtimes: dict[str, float]  # pictures a second of the encoder's runtimes, as measured here

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data."""
        return asdict(self)


def examine() -> Health:
    """Look at the machine; loads PyTorch to see its devices, and starts nothing."""
    from fieldguide.model.runtime import gpus, measured_rates, processor, threads

    cache = cache_dir()
    return Health(
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        cores=threads(),
        processor=processor(),
        memory_gb=round(_memory() / 1e9, 1),
        free_disk_gb=round(shutil.disk_usage(_existing(cache)).free / 1e9, 1),
        gpus=gpus(),
        packages=_packages(),
        models=_models(),
        extras=_extras(),
        cache=str(cache),
        cache_mb={name: _megabytes(cache / name) for name in ("features", "models", "wheels")},
        runtimes=measured_rates(),
    )


def report(health: Health) -> str:
    """The findings as plain text, for people."""
    lines = [
        f"Machine   {health.system}, Python {health.python}",
        f"          {health.cores} cores ({health.processor or 'unknown processor'}), "
        f"{health.memory_gb:g} GB memory, {health.free_disk_gb:g} GB free disk",
        f"GPU       {', '.join(health.gpus) or 'none that PyTorch can use'}",
    ]
    if health.runtimes:
        rates = ", ".join(f"{name} {rate:.0f}" for name, rate in sorted(health.runtimes.items()))
        lines.append(f"Encoder   {rates} pictures a second")
    present = [f"{name} {version}" for name, version in health.packages.items() if version]
    missing = [name for name, version in health.packages.items() if not version]
    lines.append(f"Packages  {', '.join(present)}")
    if missing:
        lines.append(f"          MISSING: {', '.join(missing)}  →  pip install {' '.join(missing)}")
    lines.append("Models")
    for model in health.models:
        size = f"{model.megabytes:.0f} MB" + ("" if model.state == "present" else " to download")
        lines.append(f"  {model.name:17} {model.state:8} {model.gives} ({size}, {model.licence})")
        if model.command:
            lines.append(f"  {'':17} → {model.command}")
    lines.append("Extras")
    for extra in health.extras:
        lines.append(f"  {extra.name:17} {'present' if extra.installed else 'missing':8} {extra.gives}")
        if extra.command:
            lines.append(f"  {'':17} → {extra.command}")
    sizes = ", ".join(f"{name} {size:.0f} MB" for name, size in health.cache_mb.items())
    lines.append(f"Cache     {health.cache}: {sizes}")
    lines.append("          may be deleted at any time: what is needed is fetched or computed again")
    return "\n".join(lines)


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return 0


def _packages() -> dict[str, str]:
    """Versions of fieldguide and of what it requires, read from its own metadata."""
    versions = {"fieldguide": _version("fieldguide")}
    for requirement in importlib.metadata.requires("fieldguide") or []:
        if "extra ==" not in requirement:
            name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
            versions[name] = _version(name)
    return versions


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _models() -> tuple[ModelState, ...]:
    from fieldguide.model.starter import PARTS
    from fieldguide.model.weights import component_folder, state

    found = []
    for component in PARTS.values():
        now = state(component)
        here = now == "present"
        size = _megabytes(component_folder(component)) if here else component.size / 1e6
        command = "" if here else component.get
        found.append(ModelState(component.name, component.gives, component.licence, now, size, command))
    return tuple(found)


def _extras() -> tuple[ExtraState, ...]:
    found = []
    for name, gives in EXTRAS.items():
        here = importlib.util.find_spec(name) is not None
        found.append(ExtraState(name, gives, here, "" if here else f'pip install "fieldguide[{name}]"'))
    return tuple(found)


def _megabytes(folder: Path) -> float:
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6, 1)


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)
