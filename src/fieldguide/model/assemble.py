"""Projector + language model: one model that reads picture features and words.

The part of the prompt before the picture is the same for every picture of a batch, so it runs once and its
keys and values are shared, in training (gradients flow through them) and in answering. The vocabulary head,
a quarter of the starter's work, runs only where its result is used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from fieldguide.model.local import LocalModel, Started, layers_of, repeated
from fieldguide.model.projector import PictureFeatures, Projector
from fieldguide.model.prompt import Prompt


class Assembled(LocalModel):
    """A vision-language model over precomputed picture features."""

    def __init__(
        self, tokenizer: Any, language_model: nn.Module, projector: Projector, prompt: Prompt
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.language_model: Any = language_model
        self.projector = projector
        self.prompt = prompt

    @property
    def device(self) -> torch.device:
        return next(self.projector.parameters()).device

    def part_of(self, name: str) -> str:
        """The part of the model that a parameter belongs to, in the words of the report."""
        if "lora_" in name:
            return "language model: LoRA adapter"
        if name.startswith("projector.patch"):
            return "projector: patch tokens"
        if name.startswith("projector."):
            return "projector: summary tokens"
        return "language model: base"

    def visual_tokens(self, pictures: PictureFeatures) -> tuple[int, ...]:
        """Prompt positions that each of the pictures takes: the same for all."""
        return (self.projector.config.tokens,) * len(pictures)

    def read_prefix(self, question: str) -> DynamicCache:
        """Keys and values of the prompt up to the picture, for one row."""
        cache = DynamicCache()
        self.read(cache, self.embed(self.token_ids(self.prompt.before(question))))
        return cache

    def forward(self, question: str, pictures: PictureFeatures, ids: Tensor, supervised: Tensor) -> Tensor:
        """Logits at the supervised positions only.

        Args:
            question: the words before the picture, shared by the batch.
            pictures: features of B pictures.
            ids: (B, S) tokens after the picture, right-padded with any id.
            supervised: (B, S) bool, the tokens that are to be predicted; padding is never supervised.

        Returns:
            (N, V) logits for the N supervised tokens, row by row.
        """
        batch = ids.shape[0]
        cache = repeated(self.read_prefix(question), batch)
        visual = self.projector(pictures)  # (B, T, H)
        read = torch.cat([visual, self.embed(ids)], dim=1)
        hidden = self.read(cache, read)
        # Position T-1+s predicts token s of `ids`.
        hidden = hidden[:, visual.shape[1] - 1 : -1][supervised]
        return self.head(hidden)

    @torch.no_grad()
    def start(self, question: str, pictures: PictureFeatures, prefix: DynamicCache | None = None) -> Started:
        """Read the prompt of B pictures once.

        Args:
            question: the words before the picture.
            pictures: features of B pictures.
            prefix: what `read_prefix(question)` gave, to read the shared part only once for many batches.
        """
        prefix = prefix if prefix is not None else self.read_prefix(question)
        visual = self.projector(pictures)
        after = self.embed(self.token_ids(self.prompt.after(question))).expand(visual.shape[0], -1, -1)
        cache = repeated(prefix, visual.shape[0])
        hidden = self.read(cache, torch.cat([visual, after], dim=1))
        logits = self.head(hidden[:, -1])
        count = visual.shape[0]
        return Started(layers_of(cache), (cache.get_seq_length(),) * count, (0,) * count, logits)
