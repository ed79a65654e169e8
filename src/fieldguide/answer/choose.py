"""Chooses labels by scoring, never by parsing: an answer outside the list cannot occur.

The score of a label is the product, over the places where the label trie branches, of the model's probability
of the label's token among the tokens allowed there. So the scores of all labels sum to 1, a label gains or
loses nothing by its length, and stretches without a choice cost nothing.

Calibration divides the logits at every branch by a temperature. That keeps each branch normalised over what
is allowed, hence the sum at 1, and the search exact: a path's probability only falls on the way down.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence

import torch
from transformers import DynamicCache

from fieldguide.answer.forest import Forest, Wanted
from fieldguide.answer.trie import Branch, LabelTrie
from fieldguide.model.local import LocalModel, Pictures, Started
from fieldguide.records import LabelScore

BRANCHES_A_ROUND = 3  # of one picture: more means fewer but larger rounds, some of whose work was not needed
PROMPT_TOKENS = 512  # pictures whose prompts are together about this long are searched together
READ_AT_ONCE = 256  # paths, where all labels are scored
SLACK = 1e-6  # what rounding may take from a log-probability: branches so near the bound are looked at


def choose(
    model: LocalModel,
    question: str,
    pictures: Pictures,
    trie: LabelTrie,
    *,
    top_k: int = 5,
    temperature: float = 1.0,
    prefix: DynamicCache | None = None,
) -> list[list[LabelScore]]:
    """The `top_k` likeliest labels of each of B pictures, best first; equal ones in the order of the labels.

    Args:
        model: read without gradients, in its present mode (call `eval()` first).
        question: the words before the picture.
        pictures: B of them, in the model's form.
        trie: all labels.
        top_k: labels wanted for each picture; fewer come when there are fewer labels.
        temperature: from calibration. `LabelScore.log_score` is always that of temperature 1.
        prefix: what `model.read_prefix(question)` gave, to read the shared part once for many batches.
    """
    return search(model, model.start(question, pictures, prefix), trie, top_k=top_k, temperature=temperature)


def search(
    model: LocalModel, started: Started, trie: LabelTrie, *, top_k: int = 5, temperature: float = 1.0
) -> list[list[LabelScore]]:
    """As `choose`, for pictures whose prompt has been read.

    Best first and exact: a branch is read only while its probability, which no label below it can exceed, is
    not below what the k-th best label is known to reach.
    """
    if top_k < 1 or not 0 < temperature < math.inf:
        raise ValueError(f"top_k={top_k} must be at least 1 and temperature={temperature} above 0")
    results = []
    for part in parts(started):
        forest = Forest(model, part)
        searches = [_Search(trie, min(top_k, len(trie))) for _ in range(len(part))]
        while asked := [(row, number) for row, one in enumerate(searches) for number in one.wanted()]:
            branches = [trie.branches[number] for _, number in asked]
            wanted: list[Wanted] = [
                (row, branch.path) for (row, _), branch in zip(asked, branches, strict=True)
            ]
            answers = forest.log_probs(wanted, [branch.tokens for branch in branches], temperature)
            for (row, number), (calibrated, plain) in zip(asked, answers, strict=True):
                searches[row].expand(number, calibrated, plain)
        results += [one.result() for one in searches]
    return results


def score_all(
    model: LocalModel, started: Started, trie: LabelTrie, *, temperature: float = 1.0
) -> torch.Tensor:
    """Log-probabilities (B, R) of all labels, in the order of `trie.labels`, in float64 on the CPU.

    Reads every branch, so it costs about as much as the labels have distinct tokens, a picture.
    """
    scored = [_score_part(Forest(model, part), len(part), trie, temperature) for part in parts(started)]
    return torch.cat(scored)


def _score_part(forest: Forest, pictures: int, trie: LabelTrie, temperature: float) -> torch.Tensor:
    labels = torch.zeros(pictures, len(trie), dtype=torch.float64)
    branches = torch.zeros(pictures, len(trie.branches), dtype=torch.float64)
    step = max(1, READ_AT_ONCE // pictures)
    for first in range(0, len(trie.branches), step):
        chunk = trie.branches[first : first + step]
        wanted: list[Wanted] = [(row, branch.path) for branch in chunk for row in range(pictures)]
        allowed = [branch.tokens for branch in chunk for _ in range(pictures)]
        answers = [calibrated for calibrated, _ in forest.log_probs(wanted, allowed, temperature)]
        for number, branch in enumerate(chunk):
            rows = torch.tensor(answers[number * pictures : (number + 1) * pictures], dtype=torch.float64)
            below = branches[:, first + number, None] + rows  # (pictures, len(branch.to))
            for place, target in enumerate(branch.to):
                if target < 0:
                    labels[:, ~target] = below[:, place]
                else:  # a later branch: its own answers are added when its turn comes
                    branches[:, target] = below[:, place]
    return labels


def choose_all(
    model: LocalModel, question: str, pictures: Pictures, trie: LabelTrie, *, temperature: float = 1.0
) -> torch.Tensor:
    """As `score_all`, for B pictures whose prompt has not been read."""
    return score_all(model, model.start(question, pictures), trie, temperature=temperature)


def parts(started: Started) -> Iterator[Started]:
    """Groups of pictures that one forest holds: neighbours whose prompts are together not too long."""
    first = read = 0
    for row, length in enumerate(started.lengths):
        if row > first and read + length > PROMPT_TOKENS:
            yield started.rows(slice(first, row))
            first, read = row, 0
        read += length
    if first < len(started):
        yield started.rows(slice(first, len(started)))


class _Search:
    """The search of one picture: labels that are reached, and the branches at the frontier."""

    def __init__(self, trie: LabelTrie, top_k: int) -> None:
        self.trie = trie
        self.top_k = top_k
        # Tuples begin with what orders the heap and end with the score at temperature 1.
        self.reached: list[tuple[float, int, float]] = []  # (score, -label): the worst of the best k on top
        self.frontier: list[tuple[float, int, float]] = []  # (-score, branch): the likeliest on top
        self.waiting: dict[int, tuple[float, float]] = {}  # branches that are being read: their scores
        self._add(trie.start, 0.0, 0.0)

    def _add(self, target: int, score: float, plain: float) -> None:
        if target >= 0:
            heapq.heappush(self.frontier, (-score, target, plain))
        elif len(self.reached) < self.top_k:
            heapq.heappush(self.reached, (score, target, plain))
        else:
            heapq.heappushpop(self.reached, (score, target, plain))

    def _bound(self) -> float:
        """What the k-th best label reaches at least: the best of n below a branch has a share of 1/n."""
        shares = [-negative - math.log(self._branch(number).size) for negative, number, _ in self.frontier]
        best = heapq.nlargest(self.top_k, [*(score for score, _, _ in self.reached), *shares])
        return best[-1] if len(best) == self.top_k else -math.inf

    def _branch(self, number: int) -> Branch:
        return self.trie.branches[number]

    def wanted(self) -> list[int]:
        """The branches to read next, likeliest first; none when none can still lead to the best."""
        bound = self._bound() - SLACK if self.frontier else 0.0
        numbers: list[int] = []
        while self.frontier and -self.frontier[0][0] >= bound and len(numbers) < BRANCHES_A_ROUND:
            negative, number, plain = heapq.heappop(self.frontier)
            self.waiting[number] = (-negative, plain)
            numbers.append(number)
        return numbers

    def expand(self, number: int, calibrated: Sequence[float], plain: Sequence[float]) -> None:
        """Put what lies behind a branch in its place."""
        score, plain_score = self.waiting.pop(number)
        for target, more, more_plain in zip(self._branch(number).to, calibrated, plain, strict=True):
            self._add(target, score + more, plain_score + more_plain)

    def result(self) -> list[LabelScore]:
        best = sorted(self.reached, reverse=True)  # ~label falls as label grows: ties keep the labels' order
        return [
            LabelScore(self.trie.labels[~target], math.exp(score), plain) for score, target, plain in best
        ]
