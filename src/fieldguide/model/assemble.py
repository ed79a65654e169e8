"""Projector + language model: one model that reads picture features and words.

The part of the prompt before the picture is the same for every picture of a batch, so it runs once and its
keys and values are shared, in training (gradients flow through them) and in answering. The vocabulary head,
a quarter of the starter's work, runs only where its result is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from fieldguide.model.language import decoder, vocabulary_head
from fieldguide.model.projector import PictureFeatures, Projector
from fieldguide.model.prompt import Prompt


@dataclass(frozen=True)
class Started:
    """Pictures whose prompt has been read: what is needed to go on from there."""

    keys: tuple[tuple[Tensor, Tensor], ...]  # a pair a layer, each (B, kv_heads, length, head_dim)
    length: int  # positions read
    logits: Tensor  # (B, V) for the token that follows

    def __len__(self) -> int:
        return self.logits.shape[0]


class Assembled(nn.Module):
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

    def label_tokens(self, label: str) -> list[int]:
        """Token ids of a label followed by the end-of-turn token."""
        return self.prompt.answer(label)

    def embed(self, ids: Tensor) -> Tensor:
        return self.language_model.get_input_embeddings()(ids)

    def _ids(self, tokens: Sequence[int]) -> Tensor:
        return torch.tensor([list(tokens)], dtype=torch.long, device=self.device)

    def read_prefix(self, question: str) -> DynamicCache:
        """Keys and values of the prompt up to the picture, for one row."""
        cache = DynamicCache()
        self._read(cache, self.embed(self._ids(self.prompt.before(question))))
        return cache

    def _read(self, cache: DynamicCache, embeddings: Tensor) -> Tensor:
        """Read (B, S, H) after the cache; hidden states (B, S, H).

        Rows are padded on the right only: under the causal mask no real token sees padding.
        """
        past = cache.get_seq_length()
        positions = torch.arange(past, past + embeddings.shape[1], device=embeddings.device)[None]
        return decoder(self.language_model)(
            inputs_embeds=embeddings,
            cache=cache,
            position_ids=positions.expand(embeddings.shape[0], -1),
            use_cache=True,
        ).last_hidden_state

    def forward(self, question: str, features: PictureFeatures, ids: Tensor, supervised: Tensor) -> Tensor:
        """Logits at the supervised positions only.

        Args:
            question: the words before the picture, shared by the batch.
            features: of B pictures.
            ids: (B, S) tokens after the picture, right-padded with any id.
            supervised: (B, S) bool, the tokens that are to be predicted; padding is never supervised.

        Returns:
            (N, V) logits for the N supervised tokens, row by row.
        """
        batch = ids.shape[0]
        cache = _repeat(self.read_prefix(question), batch)
        visual = self.projector(features)  # (B, T, H)
        read = torch.cat([visual, self.embed(ids)], dim=1)
        hidden = self._read(cache, read)
        # Position T-1+s predicts token s of `ids`.
        hidden = hidden[:, visual.shape[1] - 1 : -1][supervised]
        return vocabulary_head(self.language_model)(hidden)

    @torch.no_grad()
    def start(self, question: str, features: PictureFeatures, prefix: DynamicCache | None = None) -> Started:
        """Read the prompt of B pictures once.

        Args:
            question: the words before the picture.
            features: of B pictures.
            prefix: what `read_prefix(question)` gave, to read the shared part only once for many batches.
        """
        prefix = prefix if prefix is not None else self.read_prefix(question)
        visual = self.projector(features)
        after = self.embed(self._ids(self.prompt.after())).expand(visual.shape[0], -1, -1)
        cache = _repeat(prefix, visual.shape[0])
        hidden = self._read(cache, torch.cat([visual, after], dim=1))
        logits = vocabulary_head(self.language_model)(hidden[:, -1])
        return Started(_pairs(cache), cache.get_seq_length(), logits)

    @torch.no_grad()
    def extend(self, started: Started, rows: Sequence[int], tokens: Sequence[Sequence[int]]) -> Tensor:
        """Logits of the token after each of M token lists, each read after picture `rows[i]`.

        Returns:
            (M, V). `started` stays as it was.
        """
        lengths = torch.tensor([len(t) for t in tokens], device=self.device)
        ids = torch.zeros(len(tokens), int(lengths.max()), dtype=torch.long, device=self.device)
        for i, t in enumerate(tokens):
            ids[i, : len(t)] = torch.tensor(list(t), dtype=torch.long)
        index = torch.as_tensor(rows, dtype=torch.long, device=self.device)
        cache = DynamicCache(config=self.language_model.config)
        for layer, (key, value) in enumerate(started.keys):
            cache.update(key[index], value[index], layer)
        hidden = self._read(cache, self.embed(ids))
        last = hidden[torch.arange(len(tokens), device=self.device), lengths - 1]
        return vocabulary_head(self.language_model)(last)

    @torch.no_grad()
    def generate(self, started: Started, row: int, tokens: Sequence[int], max_new_tokens: int) -> list[int]:
        """Greedy continuation of `tokens` after picture `row`, up to the end-of-turn token (not included)."""
        cache = DynamicCache(config=self.language_model.config)
        for layer, (key, value) in enumerate(started.keys):
            cache.update(key[row : row + 1], value[row : row + 1], layer)
        new: list[int] = []
        unread = list(tokens)
        for _ in range(max_new_tokens):
            hidden = self._read(cache, self.embed(self._ids(unread)))
            token = int(vocabulary_head(self.language_model)(hidden[:, -1]).argmax())
            if token == self.prompt.end_id:
                break
            new.append(token)
            unread = [token]
        return new


def _pairs(cache: DynamicCache) -> tuple[tuple[Tensor, Tensor], ...]:
    layers: list[Any] = cache.layers  # all of ordinary attention
    return tuple((layer.keys, layer.values) for layer in layers)


def _repeat(cache: DynamicCache, batch: int) -> DynamicCache:
    """A cache of `batch` equal rows from one of a single row; the original is left alone."""
    repeated = DynamicCache()
    for index, (key, value) in enumerate(_pairs(cache)):
        repeated.update(key.expand(batch, -1, -1, -1), value.expand(batch, -1, -1, -1), index)
    return repeated
