"""What a network's weights are, in hashes: the bond between a base, its adapter and its trained tensors.

Values are hashed, not their storage: bf16 weights have the same hash when they are loaded in fp32. Names are
those of the bare network, also while PEFT has wrapped it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fieldguide.errors import GuideError
from fieldguide.files import fingerprint, sha256_file
from fieldguide.model.fourbit import keep_unpacked

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"


def base_name(name: str) -> str | None:
    """The bare network's name of a tensor; None for tensors that PEFT added."""
    if "lora_" in name or ".modules_to_save." in name:
        return None
    name = name.removeprefix("base_model.model.").replace(".original_module.", ".")
    return name.replace(".base_layer.", ".")


def digest(tensor: Tensor) -> str:
    """SHA-256 of shape and values; 16-bit numbers count as the fp32 numbers they are."""
    value = tensor.detach()
    if value.is_floating_point() and value.element_size() < 4:
        value = value.float()
    hashed = hashlib.sha256(repr(tuple(value.shape)).encode())
    hashed.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def digests(network: nn.Module) -> dict[str, str]:
    """The digest of every saved tensor by its bare name; of 4-bit weights, what is stored, scales too."""
    found: dict[str, str] = {}
    for name, tensor in network.state_dict().items():
        if (bare := base_name(name)) is not None:
            found[bare] = digest(tensor)
    return found


def base_hash(network: nn.Module, trained: Collection[str] = ()) -> str:
    """Identity of all tensors that training leaves alone.

    Args:
        network: loaded as for training, wrapped by PEFT or not.
        trained: names of fully trained tensors (a projector); they and those tied to them do not count.

    Raises:
        FieldguideError: when 4-bit weights were repacked by answering with them on a CPU.
    """
    keep_unpacked(network)
    state = {base_name(name): tensor for name, tensor in network.state_dict().items()}
    places = {_place(state[name]) for name in trained if name in state}
    values = digests(network)
    return fingerprint(
        {
            name: value
            for name, value in values.items()
            if name not in trained and _place(state[name]) not in places
        }
    )


def _place(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape)


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Identity of named tensors, such as those of projector.safetensors; "" when there are none."""
    return fingerprint({name: digest(tensor) for name, tensor in tensors.items()}) if tensors else ""


def adapter_files(folder: Path | str | None) -> dict[str, str]:
    """SHA-256 of the files of an adapter in PEFT's format; empty without a folder.

    Raises:
        GuideError: when one is missing.
    """
    if folder is None:
        return {}
    paths = [Path(folder) / name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
    for path in paths:
        if not path.is_file():
            raise GuideError(f"{path}: no such file", "copy the whole guide folder, or train again")
    return {path.name: sha256_file(path) for path in paths}


def tied(network: nn.Module) -> set[tuple[str, ...]]:
    """Names that share one parameter, a tuple for each such parameter."""
    names: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {tuple(sorted(group)) for group in names.values() if len(group) > 1}


def some(names: Iterable[str], count: int = 3) -> str:
    """The first names of many, for an error of one line."""
    listed = sorted(names)
    rest = f" and {len(listed) - count} more" if len(listed) > count else ""
    return ", ".join(listed[:count]) + rest
