"""Begin with what another guide has learnt (`train.start_from`): its tensors; its adapter comes later.

Whatever would make something else of it than it was is refused: another model, other scales of the adapter,
4-bit weights in place of whole ones, parts that have no adapter here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fieldguide.errors import GuideError
from fieldguide.files import read_json
from fieldguide.model.families import Family
from fieldguide.model.kinds import Opened
from fieldguide.model.trained import ADAPTER_FOLDER
from fieldguide.model.tuned import put_tensors
from fieldguide.settings import TrainSettings
from fieldguide.train.adapter import read_tensors
from fieldguide.train.fingerprints import ADAPTER_CONFIG

MERGE = "fieldguide merge it first, and name the merged folder as train.model"


def begin_from(opened: Opened, settings: TrainSettings, folder: Path, info: Mapping[str, Any]) -> set[str]:
    """Put another guide's wholly trained tensors into a model; their names.

    Args:
        opened: of the model that the other guide was trained on.
        settings: of the training that begins.
        folder, info: the other guide and its `guide.json`.

    Raises:
        GuideError: when it was trained on another model, or cannot be gone on from with these settings.
    """
    base = info["base_model"]
    if base["sha256"] != opened.sha256:
        raise GuideError(
            f"{folder}: was trained on another model ({base['name']})", "start from a guide of this one"
        )
    if (folder / ADAPTER_FOLDER).is_dir():
        _check_adapter(folder, info, opened.model.family, settings)
    return put_tensors(opened.model.network, folder)


def _check_adapter(folder: Path, info: Mapping[str, Any], family: Family, settings: TrainSettings) -> None:
    modes = {part: getattr(settings, f"{part}_part") for part in ("language", "vision", "projector")}
    parts = {family.part_of(name) for name in read_tensors(folder / ADAPTER_FOLDER)}
    for part in sorted(parts):
        if modes[part] != "lora":
            raise GuideError(
                f"{folder}: its {part} part has an adapter, and train.{part}_part={modes[part]} has none",
                f"set train.{part}_part=lora; or {MERGE}",
            )
    config = read_json(folder / ADAPTER_FOLDER / ADAPTER_CONFIG)
    for name, key in (("lora_rank", "r"), ("lora_alpha", "lora_alpha")):
        if config[key] != getattr(settings, name):
            raise GuideError(
                f"{folder}: its adapter was trained with {name}={config[key]}, not with "
                f"{getattr(settings, name)}, which would make another of it",
                f"set train.{name}={config[key]}",
            )
    was = str(info["settings"]["train"].get("quantise", ""))
    if was != settings.quantise:
        raise GuideError(
            f"{folder}: its adapter belongs to weights with quantise={was!r}, not to those with "
            f"quantise={settings.quantise!r}",
            f"set train.quantise={was}; or {MERGE}" if was else f"leave out train.quantise; or {MERGE}",
        )
