"""The small frozen records that pass between the stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)  # there may be a million
class Turn:
    """One turn of a conversation about pictures."""

    role: str  # "system" (the first turn or none), "user" or "assistant"
    text: str


@dataclass(frozen=True)
class Example:
    """One picture, or one conversation, and what is known about it: one row of `examples.parquet`."""

    id: str  # unique in its data set
    image: str  # path, relative to the data set folder (absolute only across drives); "" in text-only rows
    sha256: str = ""  # of the file's bytes; "" in text-only rows
    width: int = 0  # pixels after the EXIF turn
    height: int = 0
    phash: str = ""  # perceptual signature: the 64-bit pHash (16 hex digits), then the 256-bit one (64)
    label: str = ""
    labels: tuple[str, ...] = ()
    text: str = ""
    captions: tuple[str, ...] = ()
    messages: tuple[Turn, ...] = ()
    group: str = ""  # pictures of one group always share a split
    split: str = ""  # one of SPLITS
    fold: int = -1  # 0..K-1 when folds were asked for
    source: str = ""
    licence: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Note:
    """What the owner knows about one label."""

    label: str
    scientific_name: str = ""
    synonyms: tuple[str, ...] = ()
    field_marks: tuple[str, ...] = ()
    look_alikes: tuple[str, ...] = ()
    how_to_tell_apart: str = ""
    description: str = ""


@dataclass(frozen=True)
class Problem:
    """Something about one input file or row that the user should know."""

    file: str
    reason: str
    done: str  # what was done about it: "left out", "kept", "moved to train" …
    kind: str = ""  # short machine name: "unreadable", "duplicate", "near_duplicate", "conflict", …
    other: str = ""  # the other file, for pairs


@dataclass(frozen=True)
class LabelScore:
    """A label and how likely it is."""

    label: str
    # In [0, 1]; over all labels of a guide they sum to 1. None: a model behind a server named the label and
    # told no probability. None is written as an empty cell, and never counted as 0 or 1.
    probability: float | None
    log_score: float = 0.0  # uncalibrated log-probability over the label trie


@dataclass(frozen=True)
class Answer:
    """What a guide, or a model behind a server, says about one picture."""

    image: str
    label: str = ""  # "" when there is an error, or the reply named no label (`off_list`)
    probability: float | None = 0.0  # None: not told, as in `LabelScore`
    scores: tuple[LabelScore, ...] = ()  # best first
    text: str = ""  # the sentence that says why; of an `off_list` answer the reply itself, word for word
    error: str = ""  # why the picture could not be answered
    off_list: bool = False  # answered, but with none of the labels or with several: no error, and no label
    familiarity: float | None = None  # share of known pictures that look at least as novel; None: not told
    in_guide: bool | None = None  # False: it probably shows none of the labels; None: not told
    coverage: float | None = None  # `scores` is the set that holds the right label so often
