"""Writes the sentence that says why: a further question after the chosen label, answered greedily."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fieldguide.model.local import LocalModel, Started

TIMES = 3  # words that come this often in a row are a loop …
FEWEST = 9  # … if all of it has at least this many tokens: "ha ha ha" and "1000" are none
STEP = 24  # tokens written before looking for a loop again

_SENTENCE = re.compile(r".+?(?:[.!?](?=\s|$)|[。！？]|$)\s*", re.DOTALL)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|[。！？]")


def explain(
    model: LocalModel,
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
        max_new_tokens: the longest reply. One that has to be cut, or that goes in circles, ends with its
            last whole sentence, or with "…" when there is none. No sentence comes twice.
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
    return without_repeats(text if finished else whole_sentences(text))


def say(model: LocalModel, started: Started, row: int, max_new_tokens: int = 96) -> str:
    """The model's answer to the question of its prompt, where there is no list of labels to choose from."""
    reply = model.generate(started, row, [], max_new_tokens)
    text = model.tokenizer.decode(reply[: before_loop(reply)], skip_special_tokens=True).strip()
    return without_repeats(text if len(reply) < max_new_tokens else whole_sentences(text))


def before_loop(tokens: Sequence[int]) -> int:
    """How many tokens to keep: all, or up to the second round of a loop."""
    kept = len(tokens)
    for period in range(1, len(tokens) // TIMES + 1):
        same = 0
        for place in range(period, len(tokens)):
            same = same + 1 if tokens[place] == tokens[place - period] else 0
            if same + period >= max(TIMES * period, FEWEST):
                first = place + 1 - same - period
                kept = min(kept, first + 2 * period)
                break
    return kept


def whole_sentences(text: str) -> str:
    """The text up to its last whole sentence; with "…" when there is none."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    if ends:
        return text[: ends[-1]]
    return f"{text.rstrip()}…" if text.strip("\ufffd \n") else ""


def without_repeats(text: str) -> str:
    """The text without sentences that it has said before."""
    sentences = {sentence.strip().casefold(): sentence for sentence in reversed(_SENTENCE.findall(text))}
    said = [match for match in _SENTENCE.findall(text) if sentences.pop(match.strip().casefold(), None)]
    return "".join(said).strip()
