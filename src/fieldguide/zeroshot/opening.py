"""Opens whatever can answer, by its name: a guide, the starter, a model of transformers, CLIP, a server.

| name | what |
|---|---|
| a guide's folder | the guide: its labels are its own |
| `starter` | the starter's encoder and sentence embeddings |
| a folder, or OWNER/NAME of a hub | a vision-language model, or CLIP or SigLIP |
| `ollama:NAME`, `openai:NAME` | a model behind a server |
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fieldguide.errors import SettingsError
from fieldguide.guide import MANIFEST, load_guide
from fieldguide.settings import TrainSettings, ZeroShotSettings
from fieldguide.zeroshot.names import LabelNames


def open_answerer(
    model: str,
    names: LabelNames | None = None,
    settings: ZeroShotSettings | None = None,
    announce: Callable[[str], None] = print,
) -> Any:
    """What answers: a `Guide` or a `ZeroShot`, both with `labels`, `classify` and `ask`.

    Args:
        model: as above.
        names: the labels to choose among; a guide has its own.
        settings: None for the usual ones.

    Raises:
        SettingsError: when labels are missing.
        ModelMissing, GuideError, DataError: when the model cannot be found or used.
    """
    if (Path(model).expanduser() / MANIFEST).is_file():
        return load_guide(Path(model).expanduser())
    if names is None:
        raise SettingsError(f"{model}: is no guide, and must be told the labels", "give --labels a,b,c")
    wanted = settings or ZeroShotSettings()
    if model == "starter":
        from fieldguide.zeroshot.semantic import SemanticStarter

        return SemanticStarter(names, wanted)
    return _of_transformers(model, names, wanted, announce)


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
