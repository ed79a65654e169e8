"""Stored outputs of a frozen vision tower, in the tower's place.

The rest of the network, the projector and the packing of tiles, is the library's own code and sees no
difference: the stand-in returns what the tower returned for these pictures, to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from fieldguide.errors import GuideError
from fieldguide.files import fingerprint
from fieldguide.images import DECODER_VERSION
from fieldguide.model.families import Family, module_at


class _Layers:
    """The hidden states of the layers that the projector asks for, under whatever number."""

    def __init__(self, numbers: list[int], states: Tensor) -> None:
        self.by_number = dict(zip(numbers, states, strict=True))

    def __getitem__(self, number: int) -> Tensor:
        return self.by_number[number]


class StandIn(nn.Module):
    """Returns stored states (L, T, P, C): L layers that are read, T tiles of P patches."""

    def __init__(self, numbers: list[int], states: Tensor) -> None:
        super().__init__()
        self.numbers, self.states = numbers, states

    def forward(self, *arrays: Tensor, **named: Any) -> BaseModelOutputWithPooling:
        output = BaseModelOutputWithPooling(last_hidden_state=self.states[-1])
        output["hidden_states"] = _Layers(self.numbers, self.states)  # type: ignore[assignment]
        return output


def layers_read(config: Any) -> list[int]:
    """Numbers of the tower's layers that the projector reads; [] for its last output."""
    wanted = getattr(config, "vision_feature_layer", None)
    if wanted is None:
        return []
    return [wanted] if isinstance(wanted, int) else list(wanted)


@contextmanager
def standing_in(network: Any, family: Family, states: Tensor | None) -> Iterator[None]:
    """Within it, the network's tower returns `states`; None leaves the tower as it is."""
    if states is None:
        yield
        return
    if not family.caches:
        raise GuideError(f"the vision tower of {family.name} cannot be replaced by its stored output")
    path, _, name = family.vision[0].rpartition(".")
    holder = module_at(network, path)
    assert holder is not None
    tower = getattr(holder, name)
    setattr(holder, name, StandIn(layers_read(network.config) or [-1], states))
    try:
        yield
    finally:
        setattr(holder, name, tower)


@torch.no_grad()
def tower_states(network: Any, family: Family, joined: dict[str, Tensor]) -> Tensor:
    """(L, T, P, C): what the frozen tower gives for one example's pictures, where the projector reads it.

    Args:
        joined: the arguments of the network's `get_image_features`.
    """
    path, _, name = family.vision[0].rpartition(".")
    holder = module_at(network, path)
    assert holder is not None
    tower = getattr(holder, name)
    caught: list[Any] = []
    hook = tower.register_forward_hook(lambda module, args, output: caught.append(output))
    try:
        network.model.get_image_features(**joined, return_dict=True)
    finally:
        hook.remove()
    numbers = layers_read(network.config)
    if not numbers:
        return caught[0].last_hidden_state[None]
    return torch.stack([caught[0].hidden_states[number] for number in numbers])


def tower_identity(base: str, parts: Mapping[str, str]) -> str:
    """What a guide's tower gives depends on: its base model, and what was trained of it.

    Args:
        base: hash of the base model.
        parts: file → hash of the trained parts. A frozen tower is not told from a trained one: adapters and
            tensors begun from another guide may reach it in either case.
    """
    return fingerprint([base, dict(sorted(parts.items()))])


class TowerEncoder:
    """A model's vision tower as a plain encoder: baselines are computed from what it gives.

    Every picture is squeezed to a square first, so that all give arrays of one shape. The grid is one cell,
    the mean over all patches; the pooled vector is their largest values.

    Args:
        model: a `HubModel` that reads pictures.
        weights: identity of its weights.
    """

    runtime_name = "torch"

    def __init__(self, model: Any, weights: str) -> None:
        self.model = model
        vision = model.bare.config.vision_config
        self.shrink_to = int(getattr(vision, "image_size", None) or 448)
        self.key = fingerprint(["tower mean and maximum", weights, DECODER_VERSION, self.shrink_to])[:16]
        example = self.encode(self.prepare(Image.new("RGB", (8, 8)))[None])
        self.grid_shape = (1, example[0].shape[2])
        self.pooled_size = example[1].shape[1]

    def prepare(self, image: Image.Image) -> np.ndarray:
        """RGB picture of any size → (S, S, 3) uint8."""
        return np.asarray(image.resize((self.shrink_to, self.shrink_to), Image.Resampling.BICUBIC))

    @torch.no_grad()
    def encode(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, S, S, 3) uint8 → grid (N, 1, C) and pooled (N, C), float32."""
        rows = []
        for pixels in pictures:
            joined = self.model.joined([self.model.show(Image.fromarray(pixels))])
            if self.model.family.caches:
                states = tower_states(self.model.bare, self.model.family, joined).flatten(0, 2)
            else:
                found = self.model.bare.model.get_image_features(**joined, return_dict=True)
                states = torch.cat(list(found.pooler_output))
            rows.append((states.float().mean(0), states.float().amax(0)))
        grid = torch.stack([mean for mean, _ in rows])[:, None]
        return grid.cpu().numpy(), torch.stack([largest for _, largest in rows]).cpu().numpy()
