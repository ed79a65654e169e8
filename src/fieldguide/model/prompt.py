"""The one prompt renderer, for training and answering alike.

A conversation about a picture is laid out in one of two ways. The starter's has the question before the
picture, so that everything up to the picture is the same for all pictures and is read once:

    [before: user turn up to the picture] [visual tokens] [after: rest of the turn, assistant opens]
    [label] [end] [follow-up question] [reply] [end]

Ready-made models were trained with the picture first (`picture_first`): there the question stands in `after`.

The label closes with the end-of-turn token, so that no label can begin another. Words of users, labels and
notes are tokenised without special tokens: a control token written in them is plain text and does not act.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fieldguide.errors import DataError, GuideError
from fieldguide.records import Turn

Piece = tuple[list[int], bool]  # tokens, and whether they are learnt


@dataclass(frozen=True)
class PromptTemplate:
    """The fixed pieces around the words. Stored in `guide.json`."""

    open_user: str = "<|im_start|>user\n"
    close_user: str = "<|im_end|>\n"
    open_assistant: str = "<|im_start|>assistant\n"
    end: str = "<|im_end|>"
    after_end: str = "\n"
    picture_first: bool = False
    open_picture: str = ""  # opens a first turn that begins with a picture, where that differs
    picture_between: str = ""  # between two pictures
    picture_gap: str = ""  # between the last picture and the words
    next_user: str = ""  # opens a later turn of the user, where that differs from the first
    answer_lead: str = ""  # blank that opens every answer: it belongs to the answer's first token

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Prompt:
    """Turns words into token ids by the template; the only place where that happens."""

    def __init__(self, tokenizer: Any, template: PromptTemplate | None = None) -> None:
        self.tokenizer = tokenizer
        self.template = template or PromptTemplate()
        end = self._special(self.template.end)
        if len(end) != 1:
            raise GuideError(
                f"the tokenizer splits the end-of-turn mark {self.template.end!r} into {len(end)} tokens"
            )
        self.end_id: int = end[0]

    def _special(self, text: str) -> list[int]:
        """Template text: marks such as <|im_end|> become their control tokens."""
        return self.tokenizer.encode(text, add_special_tokens=False) if text else []

    def words(self, text: str) -> list[int]:
        """Words of people: control marks in them stay plain text."""
        text = text.encode("utf-8", "replace").decode()  # a terminal may send what is not UTF-8
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def before(self, question: str, shown: bool = True) -> list[int]:
        """Tokens up to the picture; the same for every picture.

        Args:
            shown: whether a picture follows; only models that read the picture first can do without.
        """
        if self.template.picture_first:
            opened = self.template.open_picture or self.template.open_user
            return self._special(opened if shown else self.template.open_user)
        return self._special(self.template.open_user) + self.words(question + "\n")

    def after(self, question: str = "", shown: bool = True) -> list[int]:
        """Tokens between the picture and the answer."""
        if not self.template.picture_first:
            return self._close()
        gap = self._special(self.template.picture_gap) if shown else []
        return gap + self.words(question) + self._close()

    def _close(self) -> list[int]:
        return self._special(self.template.close_user + self.template.open_assistant)

    def answer(self, label: str) -> list[int]:
        """The label and the end of the turn."""
        return [*self.words(self.template.answer_lead + label), self.end_id]

    def follow_up(self, question: str) -> list[int]:
        """A further question after the label, up to where the reply begins."""
        template = self.template
        opened = self._special(template.next_user or template.after_end + template.open_user)
        return opened + self.words(question) + self._close()

    def reply(self, text: str) -> list[int]:
        """A reply and the end of the turn."""
        return self.answer(text)

    def turns(self, messages: Sequence[Turn], shown: bool = True) -> list[Piece]:
        """A whole conversation after its pictures: every answer is learnt, with the end of its turn.

        What a system turn says is put before the first question, since not every template has a place for it.

        Args:
            messages: an optional system turn, then user and assistant in turn, the user first.
            shown: whether pictures stand before the first words.

        Raises:
            DataError: when the turns come in another order.
        """
        told = [turn.text for turn in messages if turn.role == "system"]
        spoken = [turn for turn in messages if turn.role != "system"]
        expected = ["user", "assistant"] * len(spoken)
        if not spoken or any(turn.role != role for turn, role in zip(spoken, expected, strict=False)):
            roles = ", ".join(turn.role for turn in messages) or "nothing"
            raise DataError(f"a conversation must go user, assistant, user, …, and this one goes {roles}")
        if not self.template.picture_first:
            raise DataError(
                "this model's question stands before the picture: it learns labels and reasons only"
            )
        pieces: list[Piece] = []
        for place, turn in enumerate(spoken):
            if turn.role == "assistant":
                pieces.append((self.answer(turn.text), True))
            elif place == 0:
                pieces.append((self.after("\n\n".join([*told, turn.text]), shown), False))
            else:
                pieces.append((self.follow_up(turn.text), False))
        return pieces
