"""Reads trees of tokens that grow from many pictures' prompts, every token of every tree once.

All pictures lie in one row of the language model, side by side; a mask lets each token see its own picture's
prompt and its own ancestors. So there is no padding, no copy of a cache for each branch, and words that
branches share are read once. Positions are those of the token's depth: the numbers are those of a plain
forward pass of each branch alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from fieldguide.model.assemble import Assembled, Started
from fieldguide.model.language import decoder, vocabulary_head

Wanted = tuple[int, tuple[int, ...]]  # picture row, tokens after its prompt
TOKENS_AT_ONCE = 512  # read in one forward pass
TOKENS_KEPT = 4096  # then the trees are cut down and grow anew: what is seen, and its cost, stay bounded


@dataclass
class _Grown:
    """What has been read so far."""

    cache: DynamicCache
    place: dict[Wanted, int] = field(default_factory=dict)  # of a path's last token
    ancestors: list[tuple[int, ...]] = field(default_factory=list)  # of each token, itself included


class Forest:
    """Token trees behind the prompts of `started`, read as they are asked for."""

    def __init__(self, model: Assembled, started: Started) -> None:
        self.model = model
        self.started = started
        self._grown = self._bare()

    def _bare(self) -> _Grown:
        """A cache of one row that holds all prompts, picture after picture."""
        cache = DynamicCache()
        for layer, pair in enumerate(self.started.keys):
            key, value = (
                part.transpose(0, 1).flatten(1, 2)[None] for part in pair
            )  # (1, heads, B·length, d)
            cache.update(key, value, layer)
        return _Grown(cache)

    @torch.no_grad()
    def log_probs(
        self, wanted: Sequence[Wanted], allowed: Sequence[Sequence[int]], temperature: float = 1.0
    ) -> list[tuple[list[float], list[float]]]:
        """Log-probabilities of the tokens allowed after each path, normalised over these alone.

        Returns:
            for each path, (at the temperature, at temperature 1), in the order of its `allowed`.
        """
        restricted = []
        for first in range(0, len(wanted), TOKENS_AT_ONCE):
            part = slice(first, first + TOKENS_AT_ONCE)
            restricted += self.logits(wanted[part], allowed[part])
        cooled = restricted if temperature == 1 else [logits / temperature for logits in restricted]
        plain = [logits.log_softmax(0).tolist() for logits in restricted]
        calibrated = plain if temperature == 1 else [logits.log_softmax(0).tolist() for logits in cooled]
        return list(zip(calibrated, plain, strict=True))

    @torch.no_grad()
    def logits(self, wanted: Sequence[Wanted], allowed: Sequence[Sequence[int]]) -> list[Tensor]:
        """Logits, in float64 on the CPU, of the tokens allowed after each path."""
        deep = [index for index, (_, path) in enumerate(wanted) if path]
        found: dict[int, Tensor] = {}
        for index, (row, path) in enumerate(wanted):
            if not path:  # the prompt itself: already read
                found[index] = self.started.logits[row, list(allowed[index])]
        if deep:
            hidden = self._read([wanted[index] for index in deep])
            tokens = sorted({token for index in deep for token in allowed[index]})
            scores = _head_rows(vocabulary_head(self.model.language_model), tokens, hidden)  # (M, U)
            column = {token: place for place, token in enumerate(tokens)}
            for place, index in enumerate(deep):
                found[index] = scores[place, [column[token] for token in allowed[index]]]
        return [found[index].cpu().double() for index in range(len(wanted))]

    def _read(self, wanted: Sequence[Wanted]) -> Tensor:
        """Hidden states (M, H) of the last token of each path. Reads what is not yet read."""
        if len(self._grown.ancestors) > TOKENS_KEPT:
            self._grown = self._bare()
        grown = self._grown
        before = len(grown.ancestors)
        new: list[tuple[int, int, int]] = []  # picture row, token, depth
        for row, path in wanted:
            known = (
                len(path) - 1
            )  # the last token is always read again if need be: its hidden state is wanted
            while known > 0 and (row, path[:known]) not in grown.place:
                known -= 1
            above = grown.ancestors[grown.place[row, path[:known]]] if known else ()
            for depth in range(known, len(path)):
                place = len(grown.ancestors)
                above = (*above, place)
                grown.ancestors.append(above)
                grown.place[row, path[: depth + 1]] = place
                new.append((row, path[depth], depth))
        hidden = self._forward(new, before)
        return hidden[[grown.place[one] - before for one in wanted]]

    def _forward(self, new: Sequence[tuple[int, int, int]], before: int) -> Tensor:
        """Read new tokens behind the `before` that were read earlier; hidden states (M, H)."""
        device, prompts = self.model.device, len(self.started) * self.started.length
        rows, tokens, depths = (torch.tensor(column, device=device) for column in zip(*new, strict=True))
        embeddings = self.model.embed(tokens[None])  # (1, M, H)
        sees = torch.zeros(len(new), prompts + before + len(new), dtype=torch.bool, device=device)
        owner = torch.arange(len(self.started), device=device).repeat_interleave(self.started.length)
        sees[:, :prompts] = rows[:, None] == owner[None]
        pairs = [(i, prompts + seen) for i in range(len(new)) for seen in self._grown.ancestors[before + i]]
        at, seen = torch.tensor(pairs, device=device).T
        sees[at, seen] = True
        mask = torch.zeros(sees.shape, dtype=embeddings.dtype, device=device)
        mask = mask.masked_fill(~sees, torch.finfo(embeddings.dtype).min)[None, None]  # (1, 1, M, seen)
        output: Any = decoder(self.model.language_model)(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=(self.started.length + depths)[None],
            cache=self._grown.cache,
            use_cache=True,
        )
        return output.last_hidden_state[0]


def _head_rows(head: nn.Module, tokens: list[int], hidden: Tensor) -> Tensor:
    """Logits (M, U) of a few tokens: the rest of the vocabulary is not computed where the head is plain."""
    if type(head) is not nn.Linear:
        return head(hidden)[:, tokens]
    bias = None if head.bias is None else head.bias[tokens]
    return nn.functional.linear(hidden, head.weight[tokens], bias)
