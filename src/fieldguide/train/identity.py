"""What belongs together: a base, the adapter and the trained tensors of one training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fieldguide.errors import GuideError, MergeError
from fieldguide.model.fourbit import four_bit
from fieldguide.train.adapter import check_finite
from fieldguide.train.fingerprints import adapter_files, base_hash, tensors_hash
from fieldguide.train.folder import Licence


@dataclass(frozen=True)
class MergeIdentity:
    """What belongs together, as training recorded it.

    Attributes:
        base: name of the base model.
        base_sha256: `base_hash` of the network training began with, the trained tensors left out.
        adapter: `adapter_files` of the adapter; empty where there is none.
        full_sha256: `tensors_hash` of the fully trained tensors; "" where there are none.
        quantised: whether the base was held in 4 bits.
        licences: a card for each part and each data set.
    """

    base: str
    base_sha256: str
    adapter: Mapping[str, str]
    full_sha256: str
    quantised: bool
    licences: tuple[Licence, ...]


def check_bound(network: Any, adapter: Path | None, full: dict[str, Tensor], identity: MergeIdentity) -> None:
    """Base, adapter and trained tensors must be those of one training.

    Raises:
        GuideError: naming what is not.
        MergeError: when there is nothing to merge, or tensors hold NaN or infinity.
    """
    if adapter is None and not full:
        raise MergeError("neither an adapter nor trained tensors: there is nothing to merge")
    if identity.quantised and not four_bit(network):
        raise GuideError(
            f"{identity.base}: the adapter was trained on its 4-bit weights and belongs to those, "
            "not to the original ones",
            "load the base quantised, as in training",
        )
    found = adapter_files(adapter)
    other = sorted(
        name for name in found.keys() | identity.adapter if found.get(name) != identity.adapter.get(name)
    )
    if other:
        raise GuideError(
            f"{adapter or 'no adapter'}: {', '.join(other)} not as training wrote it: "
            "the adapter was swapped or edited",
            "copy the whole guide folder, or train again",
        )
    check_finite(full, "the trained tensors")
    if tensors_hash(full) != identity.full_sha256:
        raise GuideError(
            "the trained tensors (projector.safetensors) are not those of this training",
            "copy the whole guide folder, or train again",
        )
    names = dict(network.named_parameters(remove_duplicate=False))
    for name, tensor in full.items():
        if name not in names:
            raise GuideError(f"{identity.base}: has no parameter {name}, which was trained")
        if not names[name].is_floating_point():
            raise GuideError(f"{identity.base}: {name} was trained, but is held in 4 bits here")
        if names[name].shape != tensor.shape:
            shapes = f"{tuple(names[name].shape)} here, {tuple(tensor.shape)} as trained"
            raise GuideError(f"{identity.base}: {name} is {shapes}")
    if (here := base_hash(network, full)) != identity.base_sha256:
        raise GuideError(
            f"{identity.base}: not the weights the adapter was trained on "
            f"(sha256 {identity.base_sha256[:12]}…, here {here[:12]}…)",
            "load the base as in training: same revision, precision and quantisation",
        )
