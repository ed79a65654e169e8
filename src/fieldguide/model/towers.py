"""Stored outputs of a frozen vision tower, in the tower's place.

The rest of the network, the projector and the packing of tiles, is the library's own code and sees no
difference: the stand-in returns what the tower returned for these pictures, to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from fieldguide.errors import GuideError
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
