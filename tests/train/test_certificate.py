"""What training must leave alone, down to the packed bytes of 4-bit weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fieldguide.errors import FieldguideError
from fieldguide.train.certificate import check_first_step, frozen_hash, parts, weight_changes


class Parted(nn.Module):
    """Two layers, each a part of its own."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.adapter = base.requires_grad_(False), nn.Linear(64, 2)
        self.register_buffer("angles", torch.ones(2), persistent=False)

    def part_of(self, name: str) -> str:
        return name.split(".")[0]


def four_bit() -> Any:
    """The same at every call."""
    made = pytest.importorskip("bitsandbytes").nn
    torch.manual_seed(0)
    return Parted(made.Linear4bit(64, 32, quant_type="nf4", compress_statistics=True).to("cpu"))


def raise_one(tensor: Tensor) -> None:
    tensor.reshape(-1)[0] += 1


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: raise_one(layer.weight.data),
        lambda layer: raise_one(layer.weight.quant_state.absmax),
        lambda layer: raise_one(layer.weight.quant_state.code),
        lambda layer: raise_one(layer.weight.quant_state.state2.absmax),
        lambda layer: raise_one(layer.weight.quant_state.offset),
        lambda layer: raise_one(layer.bias.data),
    ],
    ids=["packed", "scales", "values", "scales of scales", "offset", "bias"],
)
def test_no_bit_of_a_4_bit_weight_can_change_unseen(change: Callable[[Any], None]) -> None:
    before = frozen_hash(four_bit())
    assert frozen_hash(four_bit()) == before
    model = four_bit()
    change(model.base)
    assert frozen_hash(model) != before


def test_what_trains_and_what_is_made_anew_is_not_in_the_hash() -> None:
    model: Any = Parted(nn.Linear(64, 32))
    before = frozen_hash(model)
    raise_one(model.adapter.weight.data)
    raise_one(model.angles)
    assert frozen_hash(model) == before


def test_4_bit_weights_are_counted_as_the_weights_that_they_stand_for() -> None:
    found = parts(four_bit())
    assert found["base"] == {"parameters": 64 * 32 + 32, "trained": 0}
    assert found["adapter"] == {"parameters": 64 * 2 + 2, "trained": 64 * 2 + 2}


def test_a_part_that_stands_still_is_named_and_changes_are_measured() -> None:
    model: Any = Parted(nn.Linear(64, 32))
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    with pytest.raises(FieldguideError, match=r"adapter: not changed by the first training step"):
        check_first_step(model, before)
    with torch.no_grad():
        model.adapter.weight.mul_(1.1)
    check_first_step(model, before)
    found = weight_changes(model, before)["adapter"]
    assert (found["tensors"], found["changed"]) == (2, 1)
    assert 0.05 < found["relative_change"] < 0.1001
