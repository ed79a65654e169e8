"""How near answers in words come to reference answers: exact match, containment, token F1.

The measures are those of SQuAD (Rajpurkar et al. 2016), made fit for all scripts: case, punctuation, English
articles and blanks do not count; scripts without blanks are compared letter by letter. They see words, not
meaning: a right answer in other words scores low, a wrong one in like words high.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fieldguide.report.intervals import Interval, bootstrap_interval, wilson_interval

ARTICLES = frozenset({"a", "an", "the"})
# Kana, CJK ideographs, Thai, Lao, Burmese, Khmer: written without blanks.
_LETTERWISE = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")


@dataclass(frozen=True)
class FreeScores:
    """Means over the rows, with 95% intervals."""

    rows: int
    empty: int  # rows without an answer: each counts as 0
    exact: float  # share that equal the reference, once both are normalised
    exact_interval: Interval  # Wilson
    contained: float  # share that hold the reference's words in a row
    contained_interval: Interval  # Wilson
    token_f1: float
    token_f1_interval: Interval  # bootstrap over rows

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def in_words(self) -> str:
        """One line."""
        shares = (
            ("exact", self.exact, self.exact_interval),
            ("holds the reference", self.contained, self.contained_interval),
            ("token F1", self.token_f1, self.token_f1_interval),
        )
        return ", ".join(f"{name} {v:.1%} ({at.low:.1%} to {at.high:.1%})" for name, v, at in shares)


def score_answers(references: Sequence[str], answers: Sequence[str]) -> FreeScores:
    """Compare answers with references, row by row.

    Raises:
        ValueError: when there are no rows, the lengths differ, or a reference says nothing.
    """
    if not references or len(references) != len(answers):
        raise ValueError(f"{len(references)} references and {len(answers)} answers")
    pairs = [(tokens_of(one), tokens_of(other)) for one, other in zip(references, answers, strict=True)]
    silent = [number for number, (wanted, _) in enumerate(pairs) if not wanted]
    if silent:
        raise ValueError(f"reference {silent[0]} says nothing: {references[silent[0]]!r}")
    count = len(pairs)
    exact = sum(wanted == said for wanted, said in pairs)
    contained = sum(holds(said, wanted) for wanted, said in pairs)
    f1 = np.array([token_f1(wanted, said) for wanted, said in pairs])
    return FreeScores(
        count,
        sum(not said for _, said in pairs),
        exact / count,
        wilson_interval(exact, count),
        contained / count,
        wilson_interval(contained, count),
        float(f1.mean()),
        bootstrap_interval(count, lambda rows: float(f1[rows].mean())),
    )


def tokens_of(text: str) -> tuple[str, ...]:
    """The words that count."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    # Marks belong to letters (accents, vowel signs); only what is no letter, mark or digit parts words.
    plain = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in folded.replace("'", ""))
    words = _LETTERWISE.sub(lambda found: f" {found[0]} ", plain).split()
    return tuple(word for word in words if word not in ARTICLES) or tuple(words)


def holds(said: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether the wanted words stand in a row in what was said."""
    span = len(wanted)
    return any(tuple(said[i : i + span]) == tuple(wanted) for i in range(len(said) - span + 1))


def token_f1(wanted: Sequence[str], said: Sequence[str]) -> float:
    """Harmonic mean of the shares of words found, each word as often as it stands in both."""
    common = sum((Counter(wanted) & Counter(said)).values())
    return 2 * common / (len(wanted) + len(said)) if common else 0.0
