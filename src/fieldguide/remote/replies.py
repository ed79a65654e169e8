"""Reads a label out of a free reply, or says that none can be read. Pure: text in, finding out.

What is sought is a label that was given as the answer. A label that is denied ("not a cat"), compared with
("rather than a dog"), asked about ("is it a fox?") or part of another name ("catfish", "sea lion") is none.
Where several are left and none is clearly the answer, the reply is ambiguous. Nothing is settled by guessing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fieldguide.remote.names import NO_LABEL, SYMBOLS, Names, Word, words_and_end

_KEYS = ("label", "answer", "class", "classification", "category", "prediction", "name", "species", "object")
_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"```[\w-]*\s*\n?(.*?)```", re.DOTALL)
_CUT_JSON = re.compile(r'"(?:' + "|".join(_KEYS) + r')"\s*:\s*"((?:[^"\\]|\\.)*)"', re.IGNORECASE)
_MARKER = re.compile(
    r"(?:^|[\n.;!*_#>(,]|\s)[*_\s]*(?:(?:my|the|your)\s+)?(?:final\s+|best\s+|correct\s+|short\s+)?"
    r"(?:answer|label|class|classification|category|prediction)\s*"
    r"(?:is\s*:?|[*_]*\s*[:=])[*_]*[ \t]*([^\n]+)",
    re.IGNORECASE,
)
_EDGES = " \t\r\n\"'`“”‘’«»„*_()[]{}.,;:!?。！？、，"
_ENDS = re.compile(r"[.;:!?\n()\[\]—–,\"“”。！？、，]|\s-+\s|\*\*")
_FIRST = re.compile(r"[.\n(:—–]|\s-+\s")
_SENTENCE = re.compile(r"[.;!?](?=[\s*_\"']|$)")
# fmt: off
_NEGATORS = frozenset((
    "not", "no", "never", "neither", "nor", "cannot", "without",
    "isnt", "arent", "wasnt", "doesnt", "dont", "cant", "couldnt",
))
_NO_DENIAL = (
    ("no", "doubt"), ("no", "question"), ("without", "doubt"), ("without", "a", "doubt"),
    ("without", "any", "doubt"), ("not", "only"), ("not", "just"),
)
_TURNS = frozenset(("but", "however", "although", "though", "yet", "instead"))
_BESIDE = (
    ("than",), ("unlike",), ("versus",), ("vs",), ("instead", "of"), ("opposed", "to"), ("compared", "to"),
    ("compared", "with"), ("confused", "with"), ("mistaken", "for"), ("confuse", "with"),
)
_SUBJECTS = frozenset(("it", "it's", "this", "these", "i"))
_VERBS = frozenset((
    "is", "are", "was", "were", "can", "could", "may", "might", "would", "does", "do", "did", "has", "have",
    "been", "be", "seems",
))
_RULED_OUT = frozenset((
    "ruled", "excluded", "unlikely", "impossible", "absent", "wrong", "incorrect", "eliminated",
))
# Before or after a name these make the name of something else: sea lion, tiger shark.
_MAKES_OTHER = frozenset((
    "sea", "prairie", "guinea", "snow", "flying", "mountain", "clouded", "star", "jelly", "hot", "toy",
    "stuffed", "teddy", "ant", "butter", "dragon", "mole", "fake",
))
_OTHER_HEADS = frozenset((
    "ant", "bat", "bear", "bee", "beetle", "bird", "bug", "butterfly", "crab", "eagle", "fern", "fish",
    "flea", "fly", "food", "frog", "grass", "gull", "hawk", "heron", "lily", "lizard", "lion", "monkey",
    "moth", "mouse", "orchid", "owl", "ray", "rat", "seal", "shark", "shrimp", "snail", "snake", "spider",
    "squirrel", "statue", "toy", "tree", "turtle", "wasp", "weed", "whale", "worm",
))
# fmt: on


@dataclass(frozen=True)
class Reading:
    """What was read: a label, or none because nothing on the list was named, or because several were."""

    label: str = ""
    named: tuple[str, ...] = ()  # all labels given as answers or possibilities, the answer first
    ambiguous: bool = False
    whole: bool = False  # the reply, or its one field, is the label and nothing else


class ReplyReader:
    """Reads replies about one list of labels.

    Args:
        labels: what may be answered.
        synonyms: {label: other names of it}, beside which plurals, articles and accents need not be listed.
    """

    def __init__(self, labels: Sequence[str], synonyms: Mapping[str, Sequence[str]] | None = None) -> None:
        self.names = Names(labels, synonyms)

    def read(self, reply: str) -> Reading:
        """The label a reply gives, if it gives one. Never raises, whatever the reply."""
        text = _THOUGHT.sub(" ", reply).strip()
        fields = list(_fields(text))
        if not fields:
            return self._phrase(text)
        found = [self._phrase(field) for field in fields]
        labels = dict.fromkeys(reading.label for reading in found)
        if len(labels) == 1:
            return found[0]
        named = tuple(dict.fromkeys(name for reading in found for name in reading.named))
        return Reading(named=named, ambiguous=bool(named))

    def _phrase(self, text: str) -> Reading:
        if alone := self._alone(text):
            return _settled(alone, whole=True)
        if markers := _MARKER.findall(text):
            tail = _SENTENCE.split(markers[-1].strip())[0]  # a later answer corrects an earlier one
            if tail.strip(_EDGES):
                return self._tail(tail, text)
        if first := self._first(text):
            others = [name for name in self._affirmed(text) if name not in first]
            return Reading(first[0], (first[0], *others)) if first != (NO_LABEL,) else Reading()
        return _settled(self._affirmed(text))

    def _tail(self, tail: str, text: str) -> Reading:
        """What stands behind "Answer:" is the answer, also when it is none of the labels."""
        given = self._alone(tail) or self._first(tail) or self._affirmed(tail)
        if len(given) != 1 or given == (NO_LABEL,):
            return _settled(given)
        return Reading(
            given[0], (given[0], *(n for n in self._affirmed(text) if n not in (*given, NO_LABEL)))
        )

    def _alone(self, text: str) -> tuple[str, ...]:
        """Labels that a text spells when quotation marks, full stops and the like are taken off."""
        return self.names.whole(text) or self.names.whole(text.strip(_EDGES))

    def _first(self, text: str) -> tuple[str, ...]:
        """The one label that stands alone at the beginning: "Cat. It has whiskers …", "No, there is …"."""
        pieces = [piece for piece in _FIRST.split(text) if piece.strip(_EDGES)]
        if len(pieces) > 1 and len(first := self._alone(pieces[0])) == 1:
            if self._affirmed(pieces[0]) and first[0] not in self._affirmed(text):
                return ()  # "cat: no"
            rivals = [one for piece in pieces[1:] if (one := self._alone(piece)) and one != first]
            return () if rivals else first
        head, comma, rest = text.partition(",")
        if comma and len(first := self._alone(head)) == 1:
            others = {*self._affirmed(rest), *(name for p in re.split(r",|\bor\b|\band\b", rest)
                                               for name in self._alone(p))}  # fmt: skip
            return first if not others - set(first) else ()
        return ()

    def _affirmed(self, text: str) -> tuple[str, ...]:
        """Labels named in a text and neither denied, compared with nor asked about, in their order."""
        found = words_and_end(text)
        denied, beside = False, False
        named: dict[str, None] = {}
        place = 0
        while place < len(found):
            if place and _ENDS.search(found[place].gap):
                goes_on = found[place].gap.strip() == "," and found[place].bare in ("or", "nor")
                denied, beside = denied and goes_on, beside and goes_on
            length, labels = self.names.longest(found, place)
            if length:
                if labels == (NO_LABEL,) or not (denied or beside or _set_aside(found, place, length)):
                    named.update(dict.fromkeys(labels))
                place += length
                continue
            word = found[place].text
            if word in _SUBJECTS:
                beside = False
            if word in _TURNS:
                denied = False
            if _at(found, place, _BESIDE):
                beside = True
            if (word in _NEGATORS or word.endswith("n't")) and not _at(found, place, _NO_DENIAL):
                denied = True
            place += 1
        return tuple(named)


def _settled(named: Sequence[str], whole: bool = False) -> Reading:
    labels = tuple(name for name in named if name != NO_LABEL)
    if len(named) == 1 and labels:
        return Reading(labels[0], labels, whole=whole)
    return Reading(named=labels, ambiguous=len(named) > 1)


def _at(found: Sequence[Word], place: int, phrases: Sequence[tuple[str, ...]]) -> bool:
    return any(tuple(w.text for w in found[place : place + len(phrase)]) == phrase for phrase in phrases)


def _set_aside(found: Sequence[Word], start: int, length: int) -> bool:
    """Whether a name is part of another name, in a question, or denied by what follows it."""
    stop = start + length
    before = found[start - 1] if start else None
    if before is not None and (
        _joined(found[start]) or _made_other(found[start], before.bare in _MAKES_OTHER)
    ):
        return True
    rest = list(found[stop:])
    if rest and (_joined(rest[0]) or rest[0].gap[:1] in tuple(SYMBOLS)):
        return True
    if rest and _made_other(rest[0], rest[0].bare in _OTHER_HEADS):
        return True
    clause: list[Word] = []
    for number, word in enumerate(rest):
        if (number == 0 or clause) and _ENDS.search(word.gap):
            break
        clause.append(word)
    ended = rest[len(clause)].gap if len(clause) < len(rest) else ""
    if "?" in ended:
        return True
    following = [word.text for word in rest[len(clause) : len(clause) + 2]]
    if not clause:
        return ":" in ended and following[:1] in (["no"], ["not"], ["false"])
    said = [word.text for word in clause]
    if said[0] == "it":
        said = said[1:]
    if said and said[0] in _VERBS and _RULED_OUT & set(said[:5]):
        return True
    for number, spoken in enumerate(said[:2]):
        denies = spoken in _NEGATORS or spoken.endswith("n't")
        after = said[number + 1] if number + 1 < len(said) else ""
        if denies and (number == 0 or said[0] in _VERBS) and not after.endswith("ing"):
            return number == 1 or spoken.endswith("n't") or not after
    return False


def _joined(word: Word) -> bool:
    return word.gap in ("-", "_", "‐", "‑")


def _made_other(word: Word, makes: bool) -> bool:
    return makes and not word.gap.strip()


# ---- JSON in replies


def _fields(text: str) -> Iterator[str]:
    """The answers in the JSON of a reply: the whole, in code fences, objects in the text, or cut short."""
    whole = [text, *_FENCE.findall(text)]
    for candidate in whole:
        value = _parsed(candidate.strip())
        if isinstance(value, (dict, list, str)) and (fields := list(_answers(value))):
            yield from fields
            return
    decoder, place, tried, found = json.JSONDecoder(), text.find("{"), 0, False
    while place >= 0 and tried < 50:  # a reply of braces only must not take for ever
        tried += 1
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            end = place + 1
        else:
            for answer in _answers(value):
                found = True
                yield answer
        place = text.find("{", end)
    if not found:
        for cut in _CUT_JSON.findall(text):
            yield str(_parsed(f'"{cut}"') or cut)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _answers(value: Any) -> Iterator[str]:
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, (str, int, float)):
        yield str(value)
    elif isinstance(value, list):
        for one in value:
            yield from _answers(one) if not isinstance(one, list) else ()
    elif isinstance(value, dict):
        keys = {str(key).strip().casefold(): key for key in value}
        known = next((keys[name] for name in _KEYS if name in keys), None)
        if known is None and len(value) == 1:
            [known] = value
        if known is not None:
            yield from _answers(value[known])
