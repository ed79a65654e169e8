"""The PyTorch side of the frozen vision encoder: EfficientNet-Lite2 with taps at several stages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fieldguide.model.starter import ENCODER_ARCHITECTURE


class GridNetwork(nn.Module):
    """uint8 pictures → mean-pooled grids of several stages side by side, and the pooled head.

    The grid of a stage is adaptive average pooling to `grid` × `grid`, written as one matrix product: the
    same numbers, and every runtime can export and run it.
    """

    def __init__(self, backbone: Any, stages: Sequence[int], grid: int, size: int) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.stages = tuple(stages)
        with torch.inference_mode():
            shapes = [tap.shape for tap in self._taps(torch.zeros(1, 3, size, size))[0]]
        self.channels = sum(shape[1] for shape in shapes)
        self.pooled_size = int(backbone.num_features)
        for number, shape in enumerate(shapes):
            self.register_buffer(f"pool{number}", _pooling(shape[2], shape[3], grid))

    def _taps(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        x = self.backbone.bn1(self.backbone.conv_stem(x))
        taps = []
        for number, block in enumerate(self.backbone.blocks):
            x = block(x)
            if number in self.stages:
                taps.append(x)
        return taps, x

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        x = pictures.permute(0, 3, 1, 2).float()  # (N, 3, H, W); a view, so channels stay last in memory
        x = x * (1 / 127.5) - 1.0  # mean and standard deviation of 0.5 on a scale of 0 to 1
        taps, x = self._taps(x)
        pools = [getattr(self, f"pool{number}") for number in range(len(taps))]
        grids = [tap.flatten(2) @ pool for tap, pool in zip(taps, pools, strict=True)]  # (N, C_i, P)
        x = self.backbone.bn2(self.backbone.conv_head(x))
        return torch.cat(grids, 1).transpose(1, 2).contiguous(), x.mean((2, 3))  # (N, P, C), (N, D)


def build_network(weights: Path, stages: Sequence[int], grid: int, size: int) -> GridNetwork:
    """The network with the weights of a safetensors file, frozen and in evaluation mode."""
    backbone = timm.create_model(ENCODER_ARCHITECTURE, pretrained=False)
    backbone.load_state_dict(load_file(weights))
    return GridNetwork(backbone.eval(), stages, grid, size).eval().requires_grad_(False)


def _pooling(height: int, width: int, grid: int) -> Tensor:
    """(height · width, grid²): column p averages the pixels of patch p."""
    down = _averages(height, grid)  # (grid, height)
    across = _averages(width, grid)  # (grid, width)
    return torch.einsum("ih,jw->hwij", down, across).reshape(height * width, grid * grid).contiguous()


def _averages(length: int, bins: int) -> Tensor:
    """(bins, length): the overlapping windows of adaptive average pooling, as PyTorch defines them."""
    rows = torch.zeros(bins, length)
    for row in range(bins):
        first, last = row * length // bins, -(-(row + 1) * length // bins)
        rows[row, first:last] = 1 / (last - first)
    return rows
