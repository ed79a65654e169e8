"""An adapter in PEFT's format, read and checked against the network it is to be put on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fieldguide.errors import GuideError, MergeError
from fieldguide.files import read_json
from fieldguide.train.fingerprints import ADAPTER_CONFIG, ADAPTER_WEIGHTS, some

LORA_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.(?P<kind>lora_[A-Za-z_]+)(\.weight)?")


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The adapter's tensors.

    Raises:
        GuideError: when the file is no safetensors file.
        MergeError: naming a tensor that holds NaN or infinity.
    """
    path = folder / ADAPTER_WEIGHTS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise GuideError(f"{path}: cannot be read ({error})") from error
    check_finite(tensors, str(path))
    return tensors


def check_finite(tensors: dict[str, Tensor], where: str) -> None:
    """Refuse tensors that hold NaN or infinity.

    Raises:
        MergeError: naming them.
    """
    bad = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise MergeError(
            f"{where}: not a number in {some(bad)}", "go back to a checkpoint from before the loss became NaN"
        )


def adapted_modules(folder: Path, network: nn.Module) -> list[str]:
    """Names of the network's modules that the adapter has tensors for, each checked to fit.

    Raises:
        GuideError: when the adapter is no LoRA adapter or its sizes are others.
        MergeError: when it matches no module, some of its tensors match none, or hold NaN or infinity.
    """
    config = read_json(folder / ADAPTER_CONFIG)
    if config.get("peft_type") != "LORA":
        raise GuideError(f"{folder}: a {config.get('peft_type')} adapter; only LoRA adapters are merged")
    modules = dict(network.named_modules())
    found: dict[str, dict[str, Tensor]] = {}
    astray: list[str] = []
    tensors = read_tensors(folder)
    for key, tensor in tensors.items():
        match = LORA_KEY.fullmatch(key)
        if match is None or not isinstance(getattr(modules.get(match["module"]), "weight", None), Tensor):
            astray.append(key)
        else:
            found.setdefault(match["module"], {})[match["kind"]] = tensor
    if not found:
        raise MergeError(
            f"{folder}: none of its {len(tensors)} tensors matches a module of {type(network).__name__} "
            f"({some(astray, 1)}): it would do nothing",
            "merge it into the model it was trained on",
        )
    if astray:
        raise MergeError(
            f"{folder}: {len(astray)} of its {len(tensors)} tensors match nothing to adapt in "
            f"{type(network).__name__}: {some(astray)}",
            "fully trained tensors belong in projector.safetensors",
        )
    for name, pair in found.items():
        _check_size(folder, name, modules[name], pair)
    return sorted(found)


def _check_size(folder: Path, name: str, module: Any, pair: dict[str, Tensor]) -> None:
    if not {"lora_A", "lora_B"} <= pair.keys():
        raise GuideError(f"{folder}: {name} has {', '.join(pair)} only, not a pair of LoRA matrices")
    inner, outer = getattr(module, "in_features", None), getattr(module, "out_features", None)
    sizes = (pair["lora_A"].shape[-1], pair["lora_B"].shape[0])
    if inner is not None and sizes != (inner, outer):
        raise GuideError(
            f"{folder}: {name} maps {inner} numbers to {outer} here, the adapter's {sizes[0]} to {sizes[1]}",
            "merge it into the model it was trained on",
        )
