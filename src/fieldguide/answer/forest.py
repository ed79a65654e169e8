"""Reads trees of tokens that grow from many pictures' prompts, every token of every tree once.

All pictures lie in one row of the language model, side by side; a mask lets each token see its own picture's
prompt and its own ancestors. So there is no padding, no copy of a cache for each branch, and words that
branches share are read once. Positions are those of the token's depth: the numbers are those of a plain
forward pass of each branch alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache

from fieldguide.model.local import LocalModel, Started

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

    def __init__(self, model: LocalModel, started: Started) -> None:
        self.model = model
        self.started = started
        self._grown = self._bare()

    def _bare(self) -> _Grown:
        """A cache of one row that holds all prompts, picture after picture, without their padding."""
        cache = DynamicCache()
        for layer, pair in enumerate(self.started.keys):
            key, value = (self._side_by_side(part) for part in pair)
            cache.update(key, value, layer)
        return _Grown(cache)

    def _side_by_side(self, part: Tensor) -> Tensor:
        """(B, heads, longest, d) → (1, heads, all positions read, d)"""
        if not self.started.ragged:
            return part.transpose(0, 1).flatten(1, 2)[None]
        rows = zip(part, self.started.lengths, strict=True)
        return torch.cat([row[:, :length] for row, length in rows], dim=1)[None]

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
            scores = self.model.head(hidden, tokens)  # (M, U)
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
        device, lengths = self.model.device, torch.tensor(self.started.lengths, device=self.model.device)
        rows, tokens, depths = (torch.tensor(column, device=device) for column in zip(*new, strict=True))
        embeddings = self.model.embed(tokens[None])  # (1, M, H)
        prompts = sum(self.started.lengths)
        sees = torch.zeros(len(new), prompts + before + len(new), dtype=torch.bool, device=device)
        owner = torch.arange(len(self.started), device=device).repeat_interleave(lengths)
        sees[:, :prompts] = rows[:, None] == owner[None]
        pairs = [(i, prompts + seen) for i in range(len(new)) for seen in self._grown.ancestors[before + i]]
        at, seen = torch.tensor(pairs, device=device).T
        sees[at, seen] = True
        mask = torch.zeros(sees.shape, dtype=embeddings.dtype, device=device)
        mask = mask.masked_fill(~sees, torch.finfo(embeddings.dtype).min)[None, None]  # (1, 1, M, seen)
        first = torch.tensor(self.started.next_positions, device=device)
        positions = (first[rows] + depths)[None]
        return self.model.read(self._grown.cache, embeddings, positions, mask)[0]
