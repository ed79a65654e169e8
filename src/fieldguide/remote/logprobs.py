"""Probabilities of labels, from the log-probabilities of the tokens that spell them; else none at all.

Used only where the reply is a label and nothing else (alone, or in the one field of the JSON asked for): the
tokens of a label in the middle of a sentence depend on the words before it and say little about the picture.

At each token of the label the server lists alternatives. One that can only lead to a single other label
gives that label its share; one that several labels share, or that leads off the list, gives none. What is
missing to 1 belongs to labels that are not reported, or to other words.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Token:
    """One token of a reply and what could have stood in its place."""

    text: bytes  # tokens may hold parts of characters
    logprob: float  # natural logarithm, at most 0
    others: tuple[
        tuple[bytes, float], ...
    ] = ()  # the likeliest at this place, the token itself often among them


def label_probabilities(
    reply: str, tokens: Sequence[Token], label: str, allowed: Sequence[str]
) -> dict[str, float]:
    """Probability of the label that a reply gives and of others, as far as the tokens tell; {} if they don't.

    Args:
        reply: the whole reply.
        tokens: of that reply. Where they spell another text, nothing is told.
        label: the one that was read from it.
        allowed: all answers that could have been given.

    Returns:
        {label: probability in [0, 1]}, together at most 1.
    """
    text = b"".join(token.text for token in tokens)
    if not tokens or text.strip() != reply.strip().encode() or any(not _is_log(t.logprob) for t in tokens):
        return {}
    quoted = reply.lstrip().startswith("{")
    forms = {name: _spelled(name, quoted) for name in allowed}
    start = _find(text, forms.get(label, b""), quoted)
    if start < 0:
        return {}
    return _walk(tokens, start, label, forms, quoted)


def _is_log(value: float) -> bool:
    return not math.isnan(value) and value <= 1e-6


def _spelled(name: str, quoted: bool) -> bytes:
    return (json.dumps(name, ensure_ascii=False)[1:-1] if quoted else name).encode()


def _find(text: bytes, form: bytes, quoted: bool) -> int:
    """Where the label begins: behind the last quotation mark of {"label": "…"}, or where the reply begins."""
    if not form:
        return -1
    if quoted:
        place = text.rfind(b'"' + form + b'"')
        return place + 1 if place >= 0 and text.count(b'"') == 4 + form.count(b'"') else -1
    stripped = text.strip()
    ends = stripped.rstrip(b".")
    return text.find(form) if ends == form else -1


def _walk(
    tokens: Sequence[Token], start: int, label: str, forms: dict[str, bytes], quoted: bool
) -> dict[str, float]:
    """Go along the label's tokens; at each, hand the alternatives' shares to the labels they lead to."""
    form, end = forms[label], start + len(forms[label])
    longer = any(other != form and other.startswith(form) for other in forms.values())
    shares: dict[str, float] = {}
    path, at, closed = 0.0, 0, False  # path: log-probability of the tokens so far
    for token in tokens:
        first, last = at, at + len(token.text)
        at = last
        if last <= start or first > end or (first == end and not longer):
            continue
        prefix = form[: max(0, first - start)]
        lead = token.text[: max(0, start - first)]  # what the token holds before the label, a quotation mark
        for text, logprob in token.others:
            if text == token.text or not text.startswith(lead) or not _is_log(logprob):
                continue
            if (other := _leads_to(prefix, text[len(lead) :], forms, quoted)) is not None:
                shares[other] = shares.get(other, 0.0) + math.exp(path + min(0.0, logprob))
        path += min(0.0, token.logprob)
        closed = closed or last > end
    if longer and not closed:
        return {}  # "cat" may have been the beginning of "catfish": what ends a reply is not among the tokens
    shares[label] = shares.get(label, 0.0) + math.exp(path)
    total = sum(shares.values())
    scale = 1 / total if total > 1 else 1.0  # only by rounding
    return {name: share * scale for name, share in shares.items()}


def _leads_to(prefix: bytes, text: bytes, forms: dict[str, bytes], quoted: bool) -> str | None:
    """The only label that begins so; None when there are several, or none, or it might be another word."""
    closing = text.find(b'"') if quoted else -1
    said = prefix + (text[:closing] if closing >= 0 else text)
    if (
        closing >= 0 or not quoted
    ):  # without a closing mark a beginning could go on to anything: whole names only
        whole = [name for name, form in forms.items() if form == said]
        longer = not quoted and any(form != said and form.startswith(said) for form in forms.values())
        return whole[0] if len(whole) == 1 and not longer else None
    fits = [name for name, form in forms.items() if said and form.startswith(said)]
    return fits[0] if len(fits) == 1 and len(said) > len(prefix) else None
