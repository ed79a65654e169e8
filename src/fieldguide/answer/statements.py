"""Which of a model's statements stand in the notes.

A statement is borne out when all of its content words stand together in one passage of the notes, the passage
names no other label that the statement does not name, and neither denies what the other affirms. That reads
no meaning: what is marked is to be doubted; what is not marked is said by the notes in these words, and may
still not be in the picture. Denials are known of English and, by a few words, of some other languages.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from fieldguide.records import Note

SHORTEST = 3  # letters of a word that carries content, in scripts with blanks
NEGATIONS = frozenset(
    re.findall(
        r"\w+",
        """
        no not never without neither nor none cannot lacks lack lacking hardly barely rarely seldom scarcely
        absent pas sans jamais aucun nicht kein keine keinen ohne nie sin nunca ninguna senza mai nessun sem
        niet geen zonder لا ليس ليست بدون بلا غير
        """,
    )
)
_DENIES = re.compile("[没不无未非莫無沒]|ない|なし|ません")  # Chinese, Japanese
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
_CLAUSES = re.compile(r",? (?:while|whereas|but)\b|[,;]\s")
_PARTS = re.compile(r"[^.!?;。！？；\n]+[.!?;。！？；]?")
_BLANKLESS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0e7f\u1000-\u109f\u1780-\u17ff]")


@dataclass(frozen=True)
class Passage:
    """What the notes on a label say somewhere."""

    text: str
    about: frozenset[str] = frozenset()  # words for other labels in it: a statement must name them too


@dataclass(frozen=True)
class Statement:
    """One statement of a reply."""

    text: str
    supported: bool | None  # None: it has no content that could be held against anything
    by: str = ""  # the passage of the notes that bears it out


def statements(reply: str, passages: Sequence[Passage], names: Sequence[str] = ()) -> tuple[Statement, ...]:
    """The statements of a reply, each with the passage that bears it out, if one does.

    Args:
        reply: split at the ends of sentences and at semicolons.
        passages: what is known; see `passages_of`.
        names: of the label; what opens a statement and ends with "NAME:" says nothing of its own.
    """
    own = frozenset().union(*(content(name) for name in names))
    found = []
    for part in _PARTS.findall(reply):
        text = part.strip()
        words = content(_without_opening(text, names))
        if not words - own:
            found += [Statement(text, None)] if text else []
            continue
        by = next((one.text for one in passages if _bears_out(one, words, own, _negated(text))), "")
        found.append(Statement(text, bool(by), by))
    return tuple(found)


def _bears_out(passage: Passage, words: frozenset[str], own: frozenset[str], denied: bool) -> bool:
    there = content(passage.text)
    return (
        words - own <= there and passage.about <= words and denied == _negated(passage.text) and bool(there)
    )


def passages_of(note: Note | None) -> tuple[Passage, ...]:
    """A label's notes, a passage a mark, clause or sentence."""
    if note is None:
        return ()
    texts = [*note.field_marks, "; ".join(note.field_marks), "; ".join(note.look_alikes)]
    for text in (note.how_to_tell_apart, note.description):
        for sentence in _PARTS.findall(text):
            texts += [sentence, *_CLAUSES.split(sentence)]
    others = [content(name) for name in note.look_alikes]
    found = []
    for text in dict.fromkeys(text.strip(" ,;") for text in texts):
        words = content(text)
        if words:
            # A list of look-alikes is about this label; a sentence that names one may be about that one.
            listed = text == "; ".join(note.look_alikes)
            about = frozenset().union(*(name for name in others if name <= words and not listed))
            found.append(Passage(text, about))
    return tuple(found)


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
    return plain.replace("’", "'").replace("n't", " not")


def _without_opening(text: str, names: Sequence[str]) -> str:
    opening, colon, rest = text.replace("：", ":").partition(":")
    ends = colon and any(name and _folded(opening).rstrip().endswith(_folded(name)) for name in names)
    return rest if ends and not _negated(opening) else text


def _negated(text: str) -> bool:
    folded = _folded(text)
    return bool(NEGATIONS & set(_WORDS.findall(folded))) or bool(_DENIES.search(folded))
