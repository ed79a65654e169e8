"""The projector: frozen picture features in, visual tokens in the language model's embedding space out.

Two kinds of token, either or both:

* summary tokens: the whole picture's evidence for each label, a linear map solved in closed form by ridge
  regression (see `train/warmstart.py`) and a softmax, turned into embeddings by a small trained table that
  starts at the labels' own words: token k is the evidence-weighted mean of the labels' k-th tokens;
* patch tokens: one for each cell of a square grid, through a two-layer GELU projector as in LLaVA-1.5
  (Liu et al. 2023), trained.

Shapes: B pictures, P patches of C channels, D pooled features, R evidence numbers, H hidden size.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fieldguide.errors import GuideError


@dataclass(frozen=True)
class PictureFeatures:
    """Frozen-encoder features of a batch of pictures."""

    grid: Tensor  # (B, P, C)
    pooled: Tensor  # (B, D)
    evidence: Tensor | None = None  # (B, R) given instead of computed: left-one-out values in training

    def __len__(self) -> int:
        return len(self.grid)

    def to(self, device: torch.device) -> PictureFeatures:
        """The same on a device."""
        evidence = None if self.evidence is None else self.evidence.to(device)
        return PictureFeatures(self.grid.to(device), self.pooled.to(device), evidence)

    def rows(self, chosen: Tensor | slice) -> PictureFeatures:
        """Some of the pictures."""
        evidence = None if self.evidence is None else self.evidence[chosen]
        return PictureFeatures(self.grid[chosen], self.pooled[chosen], evidence)


@dataclass(frozen=True)
class ProjectorConfig:
    """Sizes of a projector."""

    patches: int
    channels: int
    pooled: int
    hidden: int
    evidence: int  # numbers of evidence, one a label; 0 without summary tokens
    summary_tokens: int
    patch_tokens: int

    @property
    def tokens(self) -> int:
        return self.summary_tokens + self.patch_tokens

    @property
    def flat(self) -> int:
        return self.patches * self.channels + self.pooled

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Projector(nn.Module):
    """(B, P, C) grid and (B, D) pooled features → (B, tokens, H) visual tokens."""

    mean: Tensor
    scale: Tensor
    evidence_map: Tensor
    evidence_bias: Tensor
    sharpness: Tensor

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.config = config
        # Standardisation and the solved map are buffers: saved, moved, never trained by gradient.
        self.register_buffer("mean", torch.zeros(config.flat))
        self.register_buffer("scale", torch.ones(config.flat))
        if config.summary_tokens:
            self.register_buffer("evidence_map", torch.zeros(config.flat, config.evidence))
            self.register_buffer("evidence_bias", torch.zeros(config.evidence))
            self.register_buffer("sharpness", torch.ones(()))
            self.table = nn.Parameter(torch.zeros(config.summary_tokens, config.evidence, config.hidden))
            self.bias = nn.Parameter(torch.zeros(config.summary_tokens, config.hidden))
        if config.patch_tokens:
            self._check_pooling()
            self.patch = nn.Sequential(
                nn.Linear(config.channels, config.hidden), nn.GELU(), nn.Linear(config.hidden, config.hidden)
            )

    def _check_pooling(self) -> None:
        side, tokens = round(self.config.patches**0.5), round(self.config.patch_tokens**0.5)
        if side**2 != self.config.patches or tokens**2 != self.config.patch_tokens or side % tokens:
            raise GuideError(
                f"patch_tokens={self.config.patch_tokens} does not divide a grid of {self.config.patches} "
                "patches into squares",
                "use 1, 4 or 16 for the 4 × 4 grid",
            )

    def standardise(self, features: PictureFeatures) -> Tensor:
        """Mean 0 and scale 1 on the training pictures; clipped at ±10 scales. (B, P·C + D)"""
        flat = torch.cat([features.grid.flatten(1), features.pooled], dim=1)
        return ((flat - self.mean) / self.scale).clamp(-10, 10)

    def evidence(self, features: PictureFeatures) -> Tensor:
        """How likely each label is by the solved map alone; rows sum to 1. (B, R)"""
        if features.evidence is not None:
            return features.evidence
        solved = self.standardise(features) @ self.evidence_map + self.evidence_bias
        return torch.softmax(self.sharpness * solved, dim=1)

    def forward(self, features: PictureFeatures) -> Tensor:
        parts = []
        if self.config.summary_tokens:
            evidence = self.evidence(features)  # (B, R)
            parts.append(torch.einsum("br,trh->bth", evidence, self.table) + self.bias)
        if self.config.patch_tokens:
            parts.append(self.patch(self._cells(features)))
        return torch.cat(parts, dim=1)  # (B, tokens, H)

    def _cells(self, features: PictureFeatures) -> Tensor:
        """Standardised patches, averaged to `patch_tokens` cells. (B, patch_tokens, C)"""
        config = self.config
        grid = self.standardise(features)[:, : config.patches * config.channels]
        grid = grid.unflatten(1, (config.patches, config.channels))
        side, cells = round(config.patches**0.5), round(config.patch_tokens**0.5)
        if side == cells:
            return grid
        step = side // cells
        blocks = grid.unflatten(1, (cells, step, cells, step))  # (B, cells, step, cells, step, C)
        return blocks.mean(dim=(2, 4)).flatten(1, 2)
