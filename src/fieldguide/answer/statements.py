"""Which of a model's statements the notes bear out.

A statement is borne out when its content words stand together in one passage of the notes. That reads no
meaning; denials are looked at apart. What is marked is to be doubted; what is not marked is said by the notes
in these words, and no more is known of it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from fieldguide.records import Note

NEEDED = 0.75  # share of a statement's content words that one passage must hold
SHORTEST = 3  # letters of a word that carries content, in scripts with blanks
NEGATIONS = frozenset({"no", "not", "never", "without", "neither", "nor", "none", "cannot", "lacks", "lack"})
_WORDS = re.compile(r"\w+")
# Words of English without content of their own. Lists of search engines hold "bill", "thick" and "top" too.
FILLERS = frozenset(
    _WORDS.findall(
        """
        the and are was were has have had its this that these those they them their there then than
        with for from into onto out off one can may will would also both but you your our his her
        she him who which what when where how why all any some such very much many more most other
        others often usually usual typical typically show shows shown seen see picture image about
        being been does did just only same here
        """
    )
)
ENDINGS = (("ies", "y"), ("sses", "ss"), ("ing", ""), ("ed", ""), ("ly", ""), ("es", ""), ("s", ""))
_PARTS = re.compile(r"[^.!?;。！？；\n]+[.!?;。！？；]?")
_BLANKLESS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0e7f\u1000-\u109f\u1780-\u17ff]")


@dataclass(frozen=True)
class Statement:
    """One statement of a reply."""

    text: str
    supported: bool
    by: str = ""  # the passage of the notes that bears it out


def statements(reply: str, passages: Sequence[str], names: Sequence[str] = ()) -> tuple[Statement, ...]:
    """The statements of a reply, each with the passage that bears it out, if one does.

    Args:
        reply: split at the ends of sentences and at semicolons.
        passages: what is known; see `passages_of`.
        names: of the label; what opens a statement and ends with "NAME:" says nothing of its own.
    """
    known = [(passage, content(passage), _negated(passage)) for passage in passages]
    found = []
    for part in _PARTS.findall(reply):
        text = part.strip()
        words = content(_without_opening(text, names))
        if not words:
            continue
        # "not woolly" has the words of "woolly": what is denied on one side only is not borne out.
        shares = [
            (len(words & there) / len(words), passage)
            for passage, there, denied in known
            if denied == _negated(text)
        ]
        share, passage = max(shares, default=(0.0, ""), key=lambda one: one[0])
        supported = share >= NEEDED
        found.append(Statement(text, supported, passage if supported else ""))
    return tuple(found)


def passages_of(note: Note | None) -> tuple[str, ...]:
    """A label's notes, a passage a mark or sentence; each knows the label's names."""
    if note is None:
        return ()
    names = " ".join([note.label, note.scientific_name, *note.synonyms]).strip()
    marks = "; ".join(note.field_marks)
    alike = "; ".join(note.look_alikes)
    texts = [*note.field_marks, marks, alike, note.how_to_tell_apart, note.description]
    sentences = [
        part.strip() for text in (note.how_to_tell_apart, note.description) for part in _PARTS.findall(text)
    ]
    return tuple(f"{names}: {text}" for text in dict.fromkeys([*texts, *sentences]) if text)


def content(text: str) -> frozenset[str]:
    """What a text speaks of: stems of its words; pairs of letters in scripts that put no blanks."""
    found: set[str] = set()
    for word in _WORDS.findall(_folded(text)):
        if _BLANKLESS.search(word):
            found.update(word[i : i + 2] for i in range(max(1, len(word) - 1)))
        elif (len(word) >= SHORTEST and word not in FILLERS) or word.isdigit() or not word.isascii():
            found.add(stem(word))
    return frozenset(found - NEGATIONS)


def stem(word: str) -> str:
    """A word without an English plural, -ed, -ing or -ly, where enough of it is left."""
    for end, put in ENDINGS:
        if word.endswith(end) and not word.endswith("ss") and len(word) - len(end) >= 3:
            cut = word[: len(word) - len(end)] + put
            doubled = len(cut) > 3 and cut[-1] == cut[-2] and cut[-1] not in "lsz"  # "slitted", "slit"
            return cut[:-1] if doubled else cut.rstrip("e")
    return word.rstrip("e") if len(word) > 3 else word


def _folded(text: str) -> str:
    """Without case and accents."""
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    plain = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return plain.replace("n't", " not")


def _without_opening(text: str, names: Sequence[str]) -> str:
    opening, colon, rest = text.replace("：", ":").partition(":")
    ends = colon and any(name and _folded(opening).rstrip().endswith(_folded(name)) for name in names)
    return rest if ends and not _negated(opening) else text


def _negated(text: str) -> bool:
    return bool(NEGATIONS & set(_WORDS.findall(_folded(text))))
