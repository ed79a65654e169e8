"""What answering and training need of a model that runs on this machine, whatever it is made of.

A subclass reads pictures and the words around them: `forward` for training, `start` for answering. What comes
after that, labels and sentences behind a prompt that has been read, is the same for all and stands here.

Prompts may differ in length (tiles, mixed sizes), and the position of the next word may not be the number of
positions read (Qwen numbers a picture's tokens by row and column): a token at depth d behind picture b has
the position `lengths[b] + offsets[b] + d`, and nothing ever sees the padding between a shorter prompt and it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from fieldguide.model import language
from fieldguide.model.prompt import Prompt


class Pictures(Protocol):
    """A batch of prepared pictures, in the form that a kind of model reads."""

    def __len__(self) -> int:
        """How many."""
        ...

    def rows(self, chosen: Tensor | slice) -> Pictures:
        """Some of them, by row numbers or as a slice."""
        ...

    def to(self, device: torch.device) -> Pictures:
        """The same on a device."""
        ...


@dataclass(frozen=True)
class Started:
    """Pictures whose prompt has been read: what is needed to go on from there."""

    keys: tuple[tuple[Tensor, Tensor], ...]  # a pair a layer, each (B, kv_heads, longest, head_dim)
    lengths: tuple[int, ...]  # positions read of each picture; its keys lie to the left, padding behind them
    offsets: tuple[int, ...]  # next position id minus length
    logits: Tensor  # (B, V) for the token that follows

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def ragged(self) -> bool:
        """Whether some prompts are shorter than others, so that there is padding."""
        return min(self.lengths) < max(self.lengths)

    @property
    def next_positions(self) -> list[int]:
        """Position id of the token that follows each prompt."""
        return [length + offset for length, offset in zip(self.lengths, self.offsets, strict=True)]

    def rows(self, chosen: slice) -> Started:
        """Some of the pictures, without padding that none of them needs."""
        lengths = self.lengths[chosen]
        keys = tuple(
            (key[chosen, :, : max(lengths)], value[chosen, :, : max(lengths)]) for key, value in self.keys
        )
        return Started(keys, lengths, self.offsets[chosen], self.logits[chosen])


class LocalModel(nn.Module, ABC):
    """A vision-language model in this process.

    Attributes:
        tokenizer: of the language model.
        prompt: the renderer of its prompts.
        language_model: a causal language model of transformers, wrapped by PEFT or not.
    """

    tokenizer: Any
    prompt: Prompt
    language_model: Any

    # ---- what a kind of model brings

    @abstractmethod
    def part_of(self, name: str) -> str:
        """The part of the model that a parameter belongs to, in the words of the report."""

    @abstractmethod
    def visual_tokens(self, pictures: Any) -> tuple[int, ...]:
        """Prompt positions that each of the pictures takes."""

    @abstractmethod
    def forward(self, question: str, pictures: Any, ids: Tensor, supervised: Tensor) -> Tensor:
        """Logits at the supervised positions only.

        Args:
            question: the words before the picture, shared by the batch.
            pictures: of B rows.
            ids: (B, S) tokens after the picture, right-padded with any id.
            supervised: (B, S) bool, the tokens that are to be predicted; padding is never supervised.

        Returns:
            (N, V) logits for the N supervised tokens, row by row.
        """

    @abstractmethod
    def read_prefix(self, question: str) -> DynamicCache | None:
        """Keys and values of what all prompts have in common, for one row; None when nothing is shared."""

    @abstractmethod
    def start(self, question: str, pictures: Any, prefix: DynamicCache | None = None) -> Started:
        """Read the prompt of B pictures once.

        Args:
            question: what is asked about each of them.
            pictures: of B rows.
            prefix: what `read_prefix(question)` gave, to read the shared part only once for many batches.
        """

    # ---- the parts that reading needs; another layout of modules overrides these

    @property
    def decoder(self) -> nn.Module:
        """The decoder without its vocabulary head: `inputs_embeds` → hidden states."""
        return language.decoder(self.language_model)

    @property
    def vocabulary_head(self) -> nn.Module:
        """The map from hidden states to logits over the vocabulary."""
        return language.vocabulary_head(self.language_model)

    def head(self, hidden: Tensor, tokens: Sequence[int] | None = None) -> Tensor:
        """Logits (…, V); or (…, U) of U tokens, the others not computed where the head is a plain map."""
        head = self.vocabulary_head
        if tokens is None:
            return head(hidden)
        if type(head) is not nn.Linear:
            return head(hidden)[..., list(tokens)]
        bias = None if head.bias is None else head.bias[list(tokens)]
        return nn.functional.linear(hidden, head.weight[list(tokens)], bias)

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings (…, H) of token ids."""
        return self.language_model.get_input_embeddings()(ids)

    @property
    def device(self) -> torch.device:
        """Where ids and pictures belong."""
        return self.language_model.get_input_embeddings().weight.device

    @property
    def context(self) -> int:
        """Positions that a row may take: within a sliding window, where there is one, all see all."""
        config = self.language_model.config.get_text_config()
        most = int(config.max_position_embeddings)
        window = getattr(config, "sliding_window", None)
        kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
        return min(most, int(window)) if window and "sliding_attention" in kinds else most

    # ---- what is the same for all

    def label_tokens(self, label: str) -> list[int]:
        """Token ids of a label followed by the end-of-turn token."""
        return self.prompt.answer(label)

    def token_ids(self, tokens: Sequence[int]) -> Tensor:
        """(1, S) ids on the model's device."""
        return torch.tensor([list(tokens)], dtype=torch.long, device=self.device)

    def read(
        self,
        cache: DynamicCache,
        embeddings: Tensor,
        positions: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> Tensor:
        """Read (B, S, H) after the cache, which grows; hidden states (B, S, H).

        Args:
            positions: (B, S) position ids; None for those that go on from the cache.
            seen: None where each token sees all before it: rows padded on the right only never let a real
                token see padding. (B, past + S), 1 for what is no padding; or (B, 1, S, past + S), 0 for what
                is seen and a very negative number for the rest.
        """
        if positions is None:
            past = cache.get_seq_length()
            positions = torch.arange(past, past + embeddings.shape[1], device=embeddings.device)[None]
            positions = positions.expand(embeddings.shape[0], -1)
        mask = {} if seen is None else {"attention_mask": seen}
        decoder: Any = self.decoder
        with _without_flash(decoder.config, seen):
            output = decoder(
                inputs_embeds=embeddings, cache=cache, position_ids=positions, use_cache=True, **mask
            )
        return output.last_hidden_state

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
        cache = DynamicCache()
        for layer, (key, value) in enumerate(started.keys):
            cache.update(key[index], value[index], layer)
        first = torch.tensor(started.next_positions, device=self.device)[index]
        positions = first[:, None] + torch.arange(ids.shape[1], device=self.device)
        seen = None
        if started.ragged:
            slots = torch.arange(max(started.lengths) + ids.shape[1], device=self.device)
            read = torch.tensor(started.lengths, device=self.device)[index, None]
            seen = ((slots < read) | (slots >= max(started.lengths))).long()
        hidden = self.read(cache, self.embed(ids), positions, seen)
        last = hidden[torch.arange(len(tokens), device=self.device), lengths - 1]
        return self.head(last)

    @torch.no_grad()
    def generate(self, started: Started, row: int, tokens: Sequence[int], max_new_tokens: int) -> list[int]:
        """Greedy continuation of `tokens` after picture `row`, up to the end-of-turn token (not included)."""
        cache = DynamicCache()
        one = started.rows(slice(row, row + 1))  # alone, it has no padding
        for layer, (key, value) in enumerate(one.keys):
            cache.update(key, value, layer)
        new: list[int] = []
        unread, [position] = list(tokens), one.next_positions
        if not unread:
            first = int(one.logits[0].argmax())
            if first == self.prompt.end_id or max_new_tokens < 1:
                return []
            new = unread = [first]
        for _ in range(max_new_tokens - len(new)):
            positions = torch.arange(position, position + len(unread), device=self.device)[None]
            hidden = self.read(cache, self.embed(self.token_ids(unread)), positions)
            token = int(self.head(hidden[:, -1]).argmax())
            if token == self.prompt.end_id:
                break
            new = [*new, token]
            position += len(unread)
            unread = [token]
        return new


def layers_of(cache: DynamicCache) -> tuple[tuple[Tensor, Tensor], ...]:
    """(keys, values) of each layer, as `Started` holds them."""
    layers: list[Any] = cache.layers  # all of ordinary attention
    return tuple((layer.keys, layer.values) for layer in layers)


def repeated(cache: DynamicCache, batch: int) -> DynamicCache:
    """A cache of `batch` equal rows from one of a single row; the original is left alone."""
    copies = DynamicCache()
    for index, (key, value) in enumerate(layers_of(cache)):
        copies.update(key.expand(batch, -1, -1, -1), value.expand(batch, -1, -1, -1), index)
    return copies


@contextmanager
def _without_flash(config: Any, seen: Tensor | None) -> Iterator[None]:
    """Flash attention cannot take a mask of its own for each token: SDPA reads in its place."""
    chosen = str(config._attn_implementation)
    if seen is None or seen.dim() != 4 or not chosen.startswith("flash"):
        yield
        return
    config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = chosen
