"""The labels' tokens as a trie, of which only the places where it branches are kept.

    trie = LabelTrie.of(model, labels)

Every label ends in the end-of-turn token, so none is the beginning of another ("cat", "catfish"). Where the
trie does not branch there is nothing to decide and nothing to compute, so such stretches are folded away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from fieldguide.errors import GuideError
from fieldguide.model.local import LocalModel


@dataclass(frozen=True)
class Branch:
    """A place in the trie where more than one token may follow."""

    path: tuple[int, ...]  # tokens from the end of the prompt to here
    tokens: tuple[int, ...]  # those that may follow, ascending
    to: tuple[int, ...]  # where each leads: the number of a later branch, or ~number of a label
    size: int  # labels below


class LabelTrie:
    """All labels of a guide, ready to be scored.

    Args:
        tokens: the token ids of each label, ending in the end-of-turn token.

    Attributes:
        labels: in the order given; a label's number is its place here.
        branches: a branch stands before all branches below it.
        start: where the prompt's end leads: 0 (the first branch), or ~0 when there is only one label.

    Raises:
        GuideError: without labels, or when one label's tokens are those of another or begin another's.
    """

    def __init__(self, tokens: Mapping[str, Sequence[int]]) -> None:
        if not tokens:
            raise GuideError("a guide needs at least one label")
        self.labels: tuple[str, ...] = tuple(tokens)
        # In sorted order all labels below one place are neighbours, and so are a label and what it begins.
        self._sequences = sorted((tuple(ids), number) for number, ids in enumerate(tokens.values()))
        self._refuse_beginnings()
        self.branches: list[Branch] = []
        self.start = self._fold()

    @classmethod
    def of(cls, model: LocalModel, labels: Iterable[str]) -> LabelTrie:
        """The trie of labels as a model spells them."""
        return cls({label: model.label_tokens(label) for label in labels})

    def __len__(self) -> int:
        return len(self.labels)

    def _refuse_beginnings(self) -> None:
        for (first, a), (second, b) in zip(self._sequences, self._sequences[1:], strict=False):
            if second[: len(first)] == first:
                one, other = sorted((a, b))
                relation = "the same tokens" if first == second else "tokens of which one begins the other's"
                raise GuideError(
                    f"the labels {self.labels[one]!r} and {self.labels[other]!r} have {relation}",
                    "rename one of them",
                )

    def _fold(self) -> int:
        """Fill `branches` from ranges of the sorted sequences; returns `start`."""
        if len(self.labels) == 1:
            return ~0
        ranges = [(0, len(self._sequences))]
        for low, high in ranges:  # grows while it is read: branch n comes from range n
            first, last = self._sequences[low][0], self._sequences[high - 1][0]
            depth = next(i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
            tokens, to, at = [], [], low
            for token, group in groupby(self._sequences[low:high], key=lambda pair: pair[0][depth]):
                count = sum(1 for _ in group)
                tokens.append(token)
                to.append(~self._sequences[at][1] if count == 1 else len(ranges))
                if count > 1:
                    ranges.append((at, at + count))
                at += count
            self.branches.append(Branch(first[:depth], tuple(tokens), tuple(to), high - low))
        return 0

    @cached_property
    def routes(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """For each label, the decisions that lead to it: pairs of (branch number, place in its `tokens`)."""
        routes: list[tuple[tuple[int, int], ...]] = [()] * len(self.labels)
        towards: list[tuple[tuple[int, int], ...]] = [()] * len(self.branches)
        for number, branch in enumerate(self.branches):
            for place, target in enumerate(branch.to):
                route = (*towards[number], (number, place))
                if target < 0:
                    routes[~target] = route
                else:
                    towards[target] = route
        return tuple(routes)
