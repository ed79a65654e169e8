"""Training rows: what is read and what is supervised, for every picture and for the reasons.

A label row teaches the label. A reason row goes on, in the same conversation, with a follow-up question
about the label and the answer from the notes; it is supervised at the label and at the reply, never at the
question. A conversation row is supervised at every answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from fieldguide.errors import DataError
from fieldguide.model.followup import follow_up
from fieldguide.model.prompt import Prompt
from fieldguide.records import Example, Note, Turn
from fieldguide.settings import AnswerSettings, TrainSettings


@dataclass(frozen=True)
class Row:
    """One training conversation after its picture."""

    picture: int  # row of the feature arrays
    ids: tuple[int, ...]  # tokens after the visual tokens
    supervised: tuple[bool, ...]  # which of them are learnt
    name: str = ""  # the example's picture, for error messages
    visual: int = 0  # positions that its pictures take, where rows differ in that

    @property
    def targets(self) -> int:
        return sum(self.supervised)


def in_words(row: Row, prompt: Prompt) -> str:
    """A row as text, what is learnt of it between ⟦ and ⟧."""
    text, start = "", 0
    for learnt, run in groupby(row.supervised):
        end = start + len(list(run))
        words = str(prompt.tokenizer.decode(list(row.ids[start:end])))
        text, start = text + (f"⟦{words}⟧" if learnt else words), end
    return text


def replies(note: Note, settings: AnswerSettings) -> list[tuple[str, str]]:
    """(follow-up turn, answer) pairs from a note. They speak of the label, not of the picture."""
    pairs = []
    if note.field_marks:
        pairs.append((settings.why, f"Typical of {note.label}: {'; '.join(note.field_marks)}."))
    if note.look_alikes or note.how_to_tell_apart:
        alike = f"Most easily confused with {' and '.join(note.look_alikes)}." if note.look_alikes else ""
        pairs.append((settings.confused, f"{alike} {note.how_to_tell_apart}".strip()))
    if note.description:
        pairs.append((settings.more, note.description.strip()))
    return [(follow_up(note, question, settings), reply) for question, reply in pairs]


def label_row(prompt: Prompt, picture: int, label: str, name: str, asked: str = "") -> Row:
    """The row that teaches one picture's label as the answer to the question `asked`."""
    opened, answer = prompt.after(asked), prompt.answer(label)
    return _row(prompt, picture, name, [(opened, False), (answer, True)])


def reason_row(
    prompt: Prompt, picture: int, label: str, name: str, question: str, reply: str, asked: str = ""
) -> Row:
    """The row that teaches one reply about a label, after the label itself."""
    parts = [(prompt.after(asked), False), (prompt.answer(label), True)]
    parts += [(prompt.follow_up(question), False), (prompt.reply(reply), True)]
    return _row(prompt, picture, name, parts)


def conversation_row(
    prompt: Prompt, picture: int, messages: Sequence[Turn], name: str, shown: bool = True
) -> Row:
    """The row that teaches every answer of a conversation.

    Args:
        messages: see `Prompt.turns`.
        name: of the row, for error messages.
        shown: whether the example has a picture.

    Raises:
        DataError: naming the row, when its turns are out of order, nobody answers, or an answer is empty.
    """
    if any(turn.role == "assistant" and not turn.text.strip() for turn in messages):
        raise DataError(f"{name}: nothing to learn in an answer of this row (it is empty)")
    try:
        parts = prompt.turns(messages, shown)
    except DataError as error:
        raise DataError(f"{name}: {error.message}", error.hint) from None
    if not any(learnt for _, learnt in parts):
        raise DataError(f"{name}: nothing to learn in this row (nobody answers)")
    return _row(prompt, picture, name, parts)


def _row(prompt: Prompt, picture: int, name: str, parts: list[tuple[list[int], bool]]) -> Row:
    ids = tuple(token for tokens, _ in parts for token in tokens)
    supervised = tuple(learnt for tokens, learnt in parts for _ in tokens)
    if any(learnt and tokens == prompt.no_answer for tokens, learnt in parts):
        raise DataError(f"{name}: nothing to learn in this row (its label or reply is empty)")
    return Row(picture, ids, supervised, name)


def epoch_rows(
    prompt: Prompt,
    examples: Sequence[Example],
    notes: Mapping[str, Note],
    train: TrainSettings,
    answer: AnswerSettings,
    epoch: int,
) -> list[Row]:
    """The rows of one epoch: every picture's label, and some pictures' reasons.

    Which pictures carry a reason, and which follow-up, rotates with the epoch: the reasons depend on the
    label alone, so a few a label are enough. The choice follows from (seed, epoch): resuming needs no state.

    Args:
        examples: training pictures; `Row.picture` is the position in this list.
        notes: by label.
    """
    rows = [label_row(prompt, i, e.label, e.image, answer.question) for i, e in enumerate(examples)]
    generator = np.random.default_rng([train.seed, epoch, 1])
    by_label: dict[str, list[int]] = {}
    for i, e in enumerate(examples):
        by_label.setdefault(e.label, []).append(i)
    for label in sorted(by_label):
        pairs = replies(notes[label], answer) if label in notes else []
        if not pairs:
            continue
        chosen = generator.permutation(by_label[label])[: train.explain_per_label]
        for k, picture in enumerate(chosen):
            question, reply = pairs[(epoch + k) % len(pairs)]
            name = examples[picture].image
            rows.append(reason_row(prompt, int(picture), label, name, question, reply, answer.question))
    return rows


def check_lengths(rows: Sequence[Row], before: int, visual: int, limit: int) -> None:
    """Nothing is ever cut: a row longer than the model's context is refused by name.

    Args:
        before: tokens before the pictures.
        visual: positions that the pictures of every row take, besides `Row.visual` of each.
        limit: positions that the model can read.

    Raises:
        DataError: naming the rows.
    """
    long = sorted({row.name for row in rows if before + visual + row.visual + len(row.ids) > limit})
    if long:
        names = ", ".join(long[:5]) + (f" and {len(long) - 5} more" if len(long) > 5 else "")
        raise DataError(
            f"{names}: longer than the language model's context of {limit} tokens",
            "shorten the text of those rows, or the notes of their labels; or choose a model that reads more",
        )
