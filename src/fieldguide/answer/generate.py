"""Writes the sentence that says why: a further question after the chosen label, answered greedily."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fieldguide.model.assemble import Assembled, Started

WINDOW = 4  # tokens: what stands there …
TIMES = 3  # … this often is a loop
STEP = 24  # tokens written before looking for a loop again


def explain(
    model: Assembled,
    started: Started,
    row: int,
    label: str,
    follow_up_question: str,
    max_new_tokens: int = 96,
) -> str:
    """The model's reply to a question that follows its own answer.

    Args:
        started: pictures whose prompt has been read.
        row: which of them.
        label: the chosen label; it stands in the conversation as the model's first answer.
        follow_up_question: such as "How can you tell?".
        max_new_tokens: the longest reply. One that has to be cut, or that begins to repeat itself, ends with
            its last whole sentence, or with "…" when there is none.
    """
    asked = model.prompt.answer(label) + model.prompt.follow_up(follow_up_question)
    reply: list[int] = []
    finished = False
    while not finished and len(reply) < max_new_tokens:
        most = min(STEP, max_new_tokens - len(reply))
        new = model.generate(started, row, asked + reply, most)
        reply += new
        finished = len(new) < most
        kept = before_loop(reply)
        if kept < len(reply):
            reply, finished = reply[:kept], False
            break
    text = model.tokenizer.decode(reply, skip_special_tokens=True).strip()
    return text if finished else whole_sentences(text)


def before_loop(tokens: Sequence[int]) -> int:
    """How many tokens to keep: where some 4 come thrice, those before they come a second time."""
    seen: dict[tuple[int, ...], list[int]] = {}
    for first in range(len(tokens) - WINDOW + 1):
        places = seen.setdefault(tuple(tokens[first : first + WINDOW]), [])
        places.append(first)
        if len(places) == TIMES:
            return places[1]
    return len(tokens)


def whole_sentences(text: str) -> str:
    """The text up to its last whole sentence; with "…" when there is none."""
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s|$)|[。！？]", text)]
    if ends:
        return text[: ends[-1]]
    return f"{text.rstrip()}…" if text.strip("\ufffd ") else ""
