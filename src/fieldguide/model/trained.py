"""The starter's frozen parts, their licence cards, and a trained guide's parts put together again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from fieldguide.errors import GuideError
from fieldguide.files import atomic_folder, atomic_path
from fieldguide.model.assemble import Assembled
from fieldguide.model.language import load_adapter, load_language_model, save_adapter
from fieldguide.model.projector import Projector, ProjectorConfig
from fieldguide.model.prompt import Prompt, PromptTemplate
from fieldguide.model.starter import starter_folder
from fieldguide.model.weights import licence_card

BASE_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"  # where plain PEFT finds the starter's language model
ADAPTER_FOLDER = "adapter"
PROJECTOR_FILE = "projector.safetensors"


def model_cards() -> dict[str, dict[str, str]]:
    """Licence, origin and hash of the weights a guide is made from, by role."""
    return {
        role: {**licence_card(starter_folder(part)), "role": role}
        for role, part in (("language model", "language"), ("vision encoder", "encoder"))
    }


def save_assembled(folder: Path, model: Assembled) -> None:
    """Write the trained parts: `adapter/` in PEFT's format and `projector.safetensors`."""
    with atomic_folder(folder / ADAPTER_FOLDER) as adapter:
        save_adapter(model.language_model, adapter)
    with atomic_path(folder / PROJECTOR_FILE) as path:
        save_file({k: v.contiguous().cpu() for k, v in model.projector.state_dict().items()}, path)


def load_assembled(folder: Path, info: Mapping[str, Any]) -> Assembled:
    """Put the trained parts of a guide together for answering.

    Args:
        folder: the guide.
        info: its `guide.json`.

    Raises:
        GuideError: when the language model here is not the one the adapter was trained on.
    """
    here, wanted = model_cards()["language model"]["sha256"], info["base_model"]["sha256"]
    if here != wanted:
        raise GuideError(
            f"{folder}: its adapter was trained on other weights of {info['base_model']['name']} "
            f"(sha256 {wanted[:12]}…, here {here[:12]}…)",
            "fetch the weights it was trained on, or train again",
        )
    tokenizer, language = load_language_model(starter_folder("language"))
    adapted = load_adapter(language, folder / ADAPTER_FOLDER)
    projector = Projector(ProjectorConfig(**info["projector"]))
    projector.load_state_dict(load_file(folder / PROJECTOR_FILE))
    model = Assembled(tokenizer, adapted, projector, Prompt(tokenizer, PromptTemplate(**info["template"])))
    model.eval().requires_grad_(False)
    return model
