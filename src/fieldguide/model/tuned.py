"""What a guide holds of a tuned model: an adapter in PEFT's format, and tensors trained whole."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from fieldguide.errors import GuideError
from fieldguide.files import atomic_folder, atomic_path
from fieldguide.model.families import plain_name
from fieldguide.model.hub import HubModel
from fieldguide.model.language import load_adapter, save_adapter
from fieldguide.model.opening import open_model
from fieldguide.model.prompt import PromptTemplate
from fieldguide.model.trained import ADAPTER_FOLDER, PROJECTOR_FILE
from fieldguide.settings import Recipe


def save_tuned(folder: Path, network: Any, kept: Set[str]) -> list[str]:
    """Write the trained parts; the files written, relative to `folder`.

    Args:
        kept: plain names of the tensors that were trained whole.
    """
    files: list[str] = []
    if hasattr(network, "peft_config"):
        with atomic_folder(folder / ADAPTER_FOLDER) as adapter:
            save_adapter(network, adapter)
        files += [f"{ADAPTER_FOLDER}/{name}" for name in ("adapter_config.json", "adapter_model.safetensors")]
    if kept:
        tensors = {
            plain: parameter.detach().contiguous().cpu()
            for name, parameter in network.named_parameters()
            if (plain := plain_name(name)) in kept and "lora_" not in name
        }
        with atomic_path(folder / PROJECTOR_FILE) as path:
            save_file(tensors, path)
        files.append(PROJECTOR_FILE)
    return files


def full_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a guide that were trained whole, by plain name."""
    path = folder / PROJECTOR_FILE
    return load_file(path) if path.is_file() else {}


@torch.no_grad()
def put_tensors(network: Any, folder: Path) -> set[str]:
    """Put a guide's wholly trained tensors into a network; their names.

    Raises:
        GuideError: when one of them has no place there.
    """
    tensors = full_tensors(folder)
    places = {
        plain_name(name): parameter for name, parameter in network.named_parameters() if "lora_" not in name
    }
    for name, tensor in tensors.items():
        if name not in places or places[name].shape != tensor.shape:
            raise GuideError(
                f"{folder / PROJECTOR_FILE}: {name} has no place in this model", "use its own model"
            )
        places[name].copy_(tensor)
    return set(tensors)


def put_adapter(network: Any, folder: Path) -> None:
    """Continue a guide's adapter in a network that has a fresh one of the same shape.

    Raises:
        GuideError: when their tensors are not the same.
    """
    path = folder / ADAPTER_FOLDER / "adapter_model.safetensors"
    if not path.is_file():
        return
    try:
        outcome: Any = set_peft_model_state_dict(network, load_file(path))
    except RuntimeError as error:
        raise GuideError(
            f"{path}: does not fit the adapter of this recipe", "set the same lora_rank"
        ) from error
    if outcome.unexpected_keys:
        raise GuideError(f"{path}: {outcome.unexpected_keys[0]} has no place in this recipe's adapter")


def load_tuned(folder: Path, info: Mapping[str, Any]) -> HubModel:
    """Put the parts of a guide together for answering.

    Raises:
        ModelMissing, GuideError: when the base model is not here, or is another.
    """
    settings = replace(Recipe.of_guide(info["settings"]).train, precision="auto", attention="auto")
    opened = open_model(settings, PromptTemplate(**info["template"]), sha256=info["base_model"]["sha256"])
    model = opened.model
    put_tensors(model.network, folder)
    if (folder / ADAPTER_FOLDER).is_dir():
        model.network = load_adapter(model.network, folder / ADAPTER_FOLDER)
    model.eval().requires_grad_(False)
    return model
