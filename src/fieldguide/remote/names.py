"""Words of a text, and the names they spell: labels and synonyms, whatever their case, accents and number.

Whole words only ("catfish" is not "cat"), and of several names at one place the longest. Languages that write
without blanks are not taken apart: in them a name is found where it stands alone.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

NONE = "none of these"
NO_LABEL = "\0"  # what NONE stands for among the names; no label can be this
NONE_TOO = (
    "none of the above", "none of them", "none of the labels", "none of these labels", "none of the options",
    "none of the listed labels", "none of the given labels",
)  # fmt: skip
ARTICLES = ("a", "an", "the")
# Names made of these only ("no", "I", "a") are words of any sentence: they count where they stand alone.
# fmt: off
FUNCTION = frozenset((
    "a", "an", "the", "i", "it", "is", "its", "it's", "he", "she", "as", "at", "in", "on", "of", "or", "and",
    "to", "no", "not", "yes", "be", "by", "we", "so", "if", "do", "my", "me", "us", "up", "this", "that",
    "these", "those", "there", "was", "were", "are", "with", "for", "but", "from", "here", "none", "other",
    "has", "have", "can", "could", "may", "might", "must",
))
# fmt: on
SYMBOLS = "+#=%$&@^~<>|\\°"  # they tell names apart: "C" is not "C++"
_APOSTROPHES = "'’ʼ＇"
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))
_IRREGULAR = {
    "man": "men", "woman": "women", "mouse": "mice", "goose": "geese", "foot": "feet", "tooth": "teeth",
    "ox": "oxen", "child": "children", "louse": "lice", "cactus": "cacti", "fungus": "fungi",
    "octopus": "octopi", "larva": "larvae", "alga": "algae", "nebula": "nebulae",
}  # fmt: skip


@dataclass(frozen=True)
class Word:
    """A word of a text."""

    raw: str  # as written, in NFC
    text: str  # without case
    bare: str  # and without accents
    gap: str  # what stands before it, up to the word before


def words(text: str) -> list[Word]:
    """The words of a text: letters, digits and their marks, with apostrophes and decimal points within."""
    return words_and_end(text)[:-1]


def words_and_end(text: str) -> list[Word]:
    """As `words`, and an empty one at the end, before which stands what follows the last word."""
    text = unicodedata.normalize("NFC", text.translate(_INVISIBLE))
    found: list[Word] = []
    start, end = -1, 0
    for place in range(len(text) + 1):
        inside = place < len(text) and (_letter(text[place]) or (start >= 0 and _within(text, place)))
        if inside and start < 0:
            start = place
        elif not inside and start >= 0:
            raw = text[start:place]
            found.append(Word(raw, plain(raw), bare(raw), text[end:start]))
            start, end = -1, place
    return [*found, Word("", "", "", text[end:])]


def _letter(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character)[0] == "M" or character in "\u200c\u200d"


def _within(text: str, place: int) -> bool:
    if place + 1 >= len(text) or not text[place + 1].isalnum():
        return False
    before, here, after = text[place - 1], text[place], text[place + 1]
    return here in _APOSTROPHES or (here in ".," and before.isdigit() and after.isdigit())


def plain(text: str) -> str:
    """Without case, in the compatible normal form, apostrophes alike."""
    for apostrophe in _APOSTROPHES:
        text = text.replace(apostrophe, "'")
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def bare(text: str) -> str:
    """As `plain`, and without the accents of Latin, Greek and Cyrillic letters."""
    parts = unicodedata.normalize("NFKD", plain(text))
    return unicodedata.normalize("NFKC", "".join(c for c in parts if not "\u0300" <= c <= "\u036f"))


def symbols(text: str) -> str:
    """The characters besides words that tell names apart."""
    return "".join(c for c in text if c in SYMBOLS)


@dataclass(frozen=True)
class _Spelling:
    label: str
    raw: tuple[str, ...]
    text: tuple[str, ...]


class Names:
    """All names of the labels, to be found in texts; `NO_LABEL` among them stands for "no label fits".

    Args:
        labels: what may be answered.
        synonyms: {label: its other names}. A synonym that is itself a label, or is shared by several labels,
            names none of them.
    """

    def __init__(self, labels: Iterable[str], synonyms: Mapping[str, Sequence[str]] | None = None) -> None:
        self.labels = tuple(dict.fromkeys(labels))
        self._whole = {unicodedata.normalize("NFC", label.strip()): label for label in self.labels}
        self._names: dict[tuple[str, ...], list[_Spelling]] = defaultdict(list)
        self._number: dict[tuple[str, ...], list[_Spelling]] = defaultdict(list)  # the other number of a name
        for label in self.labels:
            self._add(label, label)
        if not self._names.get(_key(NONE)):
            for text in (NONE, *NONE_TOO):
                self._add(text, NO_LABEL)
        taken = set(self._names)
        for label, names in (synonyms or {}).items():
            for name in names if label in self._whole.values() else ():
                if _key(name) not in taken:
                    self._add(name, label)
        for key, spellings in list(self._names.items()):
            for other in _other_number(key[-1]):
                if (inflected := (*key[:-1], other)) not in self._names:
                    self._number[inflected] += spellings
        self._longest = max(map(len, [*self._names, *self._number]), default=0)

    def _add(self, name: str, label: str) -> None:
        found = words(name)
        if not found:
            return  # a name of signs only is found as the whole reply, by `_whole`
        spelling = _Spelling(label, tuple(w.raw for w in found), tuple(w.text for w in found))
        if spelling not in self._names[_key(name)]:
            self._names[_key(name)].append(spelling)

    def whole(self, text: str) -> tuple[str, ...]:
        """The labels that a text spells when it is nothing but a name; several when it fits several."""
        text = unicodedata.normalize("NFC", text).strip()
        if text in self._whole:
            return (self._whole[text],)
        found = words(text)
        for first in (0, 1) if found and found[0].bare in ARTICLES else (0,):
            rest = found[first:]
            if fits := self._labels(rest):
                same = tuple(label for label in fits if label == NO_LABEL or symbols(label) == symbols(text))
                return same if not symbols("".join(fits)) or same else ()
        return ()

    def longest(self, found: Sequence[Word], start: int) -> tuple[int, tuple[str, ...]]:
        """The longest name that begins at a word: how many words it has, and the labels it may stand for."""
        for length in range(min(self._longest, len(found) - start), 0, -1):
            part = found[start : start + length]
            if labels := self._labels(part):
                weak = all(word.bare in FUNCTION for word in part) or any(map(symbols, labels))
                if not weak or labels == (NO_LABEL,):
                    return length, labels
        return 0, ()

    def _labels(self, part: Sequence[Word]) -> tuple[str, ...]:
        key = tuple(word.bare for word in part)
        spellings = self._names.get(key) or self._number.get(key) or []
        for form in ("text", "raw"):  # accents and case count where names differ in nothing else
            if len({spelling.label for spelling in spellings}) > 1:
                said = tuple(getattr(word, form) for word in part)
                spellings = [s for s in spellings if getattr(s, form) == said] or spellings
        return tuple(dict.fromkeys(spelling.label for spelling in spellings))


def _key(name: str) -> tuple[str, ...]:
    return tuple(word.bare for word in words(name))


def _other_number(word: str) -> set[str]:
    """Plural and singular forms of an English word, some of them no words at all; () for short ones."""
    if len(word) < 3 or not word.isalpha() or word in FUNCTION:
        return set()
    forms = {word + "s"}
    if word.endswith(("s", "x", "z", "ch", "sh", "o")):
        forms.add(word + "es")
    if word.endswith("y") and word[-2] not in "aeiou":
        forms.add(word[:-1] + "ies")
    if word.endswith("f"):
        forms.add(word[:-1] + "ves")
    if word.endswith("fe"):
        forms.add(word[:-2] + "ves")
    for one, many in _IRREGULAR.items():
        if word.endswith(one):
            forms.add(word[: len(word) - len(one)] + many)
        if word.endswith(many):
            forms.add(word[: len(word) - len(many)] + one)
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        forms.add(word[:-1])
        if word.endswith("ies"):
            forms.add(word[:-3] + "y")
        if word.endswith("es"):
            forms.add(word[:-2])
        if word.endswith("ves"):
            forms |= {word[:-3] + "f", word[:-3] + "fe"}
    return forms - FUNCTION
