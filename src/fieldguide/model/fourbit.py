"""Weights held in 4 bits by bitsandbytes: found, and kept as they were quantised."""

from __future__ import annotations

from typing import Any

from torch import nn

from fieldguide.errors import FieldguideError


def four_bit(network: nn.Module) -> list[Any]:
    """The layers that bitsandbytes holds in 4 bits."""
    return [module for module in network.modules() if type(module).__name__ == "Linear4bit"]


def keep_unpacked(network: nn.Module) -> None:
    """Hold 4-bit weights as they were quantised; to be called as soon as they are loaded.

    On CPUs with AVX512-BF16, bitsandbytes rewrites them at the first answer, scales rounded to bf16, and no
    way leads back: what is trained, dequantised or saved afterwards belongs to other weights.

    Raises:
        FieldguideError: when that has happened already.
    """
    for layer in four_bit(network):
        state = getattr(layer.weight, "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False) or hasattr(state, "original_qshape"):
            raise FieldguideError(
                "the 4-bit weights of the base were repacked when it answered on this CPU, "
                "and cannot be restored exactly",
                "load the base anew",
            )
        layer.support_avx512bf16_for_cpu = False
