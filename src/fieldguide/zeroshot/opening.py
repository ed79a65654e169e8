"""Opens whatever can answer, by its name: a guide, the starter, a model of transformers, CLIP, a server.

| name | what |
|---|---|
| a guide's folder | the guide: its labels are its own |
| `starter` | the starter's encoder and sentence embeddings |
| a folder, OWNER/NAME of a hub, KIND:NAME | a vision-language model, or CLIP or SigLIP |
| `ollama:NAME`, `openai:NAME` | a model behind a server |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fieldguide.errors import SettingsError
from fieldguide.guide import MANIFEST, load_guide
from fieldguide.remote.settings import RemoteSettings
from fieldguide.settings import TrainSettings, ZeroShotSettings, fill, read_toml
from fieldguide.zeroshot.names import LabelNames

SERVERS = ("ollama", "openai")
TABLES = ("zeroshot", "remote")


@dataclass(frozen=True)
class AskingSettings:
    """How models that were not trained here are asked; TOML tables `[zeroshot]` and `[remote]`."""

    zeroshot: ZeroShotSettings = field(default_factory=ZeroShotSettings)
    remote: RemoteSettings = field(default_factory=RemoteSettings)


def load_asking_settings(path: Path | str | None) -> AskingSettings:
    """Read a TOML file; None for the usual settings.

    Raises:
        SettingsError: when it is missing or no TOML; else listing every fault.
    """
    if path is None:
        return AskingSettings()
    tables = read_toml(path, "settings", "leave --asking out")
    strange = [name for name in tables if name not in TABLES]
    faults = [f"unknown table or setting {name!r} (known: [zeroshot], [remote])" for name in strange]
    parts: dict[str, Any] = {}
    for name, usual in (("zeroshot", ZeroShotSettings()), ("remote", RemoteSettings())):
        values = tables.get(name, {})
        if not isinstance(values, dict):
            faults.append(f"[{name}] must be a table")
            continue
        given = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        parts[name], wrong = fill(usual, given)
        faults += [f"[{name}] {fault}" for fault in wrong]
    if faults:
        raise SettingsError(f"{path}: " + "; ".join(faults), "see docs/zero-shot.md for every setting")
    return AskingSettings(**parts)


def is_guide(model: str) -> bool:
    """Whether a name is that of a guide's folder."""
    return (Path(model).expanduser() / MANIFEST).is_file()


def is_server(model: str) -> bool:
    """Whether a name is that of a model behind a server."""
    return ":" in model and model.partition(":")[0] in SERVERS


def open_answerer(
    model: str,
    names: LabelNames | None = None,
    settings: AskingSettings | None = None,
    announce: Callable[[str], None] = print,
) -> Any:
    """What answers: a `Guide`, a `ZeroShot` or a `RemoteModel`, all with `labels`, `classify` and `ask`.

    Args:
        model: as above.
        names: the labels to choose among; a guide has its own, and a server answers in words without any.
        settings: None for the usual ones.

    Raises:
        SettingsError: when labels are missing.
        ModelMissing, GuideError, DataError: when the model cannot be found or used.
    """
    if is_guide(model):
        return load_guide(Path(model).expanduser())
    wanted = settings or AskingSettings()
    if is_server(model):
        from fieldguide.remote.model import open_remote

        labels, notes = (names.labels, dict(names.notes)) if names is not None else ((), {})
        return open_remote(model, labels, wanted.remote, notes, announce=announce)
    if names is None:
        raise SettingsError(f"{model}: is no guide, and must be told the labels", "give --labels a,b,c")
    if model == "starter":
        from fieldguide.zeroshot.semantic import SemanticStarter

        return SemanticStarter(names, wanted.zeroshot)
    return _of_transformers(model, names, wanted.zeroshot, announce)


def _of_transformers(
    model: str, names: LabelNames, settings: ZeroShotSettings, announce: Callable[[str], None]
) -> Any:
    import transformers

    from fieldguide.model.kinds import kind_of
    from fieldguide.model.opening import find_model, open_model
    from fieldguide.zeroshot.contrastive import MODEL_TYPES, ContrastiveZeroShot
    from fieldguide.zeroshot.vlm import VisionLanguageZeroShot

    if kind_of(model) is None:
        folder = find_model(model, announce)
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        if config.model_type in MODEL_TYPES:
            return ContrastiveZeroShot(model, folder, names, settings)
    opened = open_model(TrainSettings(model=model), announce=announce)
    for line in opened.said:
        announce(line)
    return VisionLanguageZeroShot(model, opened, names, settings)
