"""The one prompt renderer, for training and answering alike.

A conversation about a picture is laid out in one of two ways. The starter's has the question before the
picture, so that everything up to the picture is the same for all pictures and is read once:

    [before: user turn up to the picture] [visual tokens] [after: rest of the turn, assistant opens]
    [label] [end] [follow-up question] [reply] [end]

Ready-made models were trained with the picture first (`picture_first`): there the question stands in `after`.

The label closes with the end-of-turn token, so that no label can begin another. Words of users, labels and
notes are tokenised without special tokens: a control token written in them is plain text and does not act.

Pieces are tokenised one by one, so that no word ever melts into the template. Tokenizers of the SentencePiece
kind put a blank before the beginning of a text, and some before what follows a control token; some control
tokens swallow the blanks behind them. A piece from the middle is read as it would be in its place: `_joined`
sees to that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fieldguide.errors import DataError, GuideError
from fieldguide.records import Turn

Piece = tuple[list[int], bool]  # tokens, and whether they are learnt
TEXT = -1  # stands for any token that is no control token
ANCHORS = ("\n", "\x02", ":")


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
    answer_tail: str = ""  # blank between an answer and `end`

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
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self._marks = {int(i): str(token) for i, token in added.items()} | {self.end_id: self.template.end}
        # Stands for a picture's own mark, of which the prompt knows nothing: none that swallows blanks.
        keeping = [i for i, token in added.items() if not token.rstrip]
        self._picture_mark: int = keeping[0] if keeping else self.end_id
        self._opens_blank = self._encode("a", True) != self._continued("a", True)
        marked = self._special(self.template.end + "a")[1:]
        self._blank_after_mark = self._opens_blank and marked == self._encode("a", True)
        self._closing = self._joined([(self.template.close_user + self.template.open_assistant, False)], TEXT)
        self.no_answer = self.answer("")  # what is left of an answer that says nothing

    def _encode(self, text: str, spoken: bool) -> list[int]:
        """Tokens of a text that stands alone; in what is spoken, control marks stay plain text."""
        more = {"split_special_tokens": True} if spoken else {}
        return self.tokenizer.encode(text, add_special_tokens=False, **more) if text else []

    def _continued(self, text: str, spoken: bool) -> list[int]:
        """Tokens of a text that goes on after other text: read behind an anchor with which nothing merges."""
        for anchor in ANCHORS:
            head, whole = self._encode(anchor, spoken), self._encode(anchor + text, spoken)
            if whole[: len(head)] == head:
                return whole[len(head) :]
        return self._encode(text, spoken)

    def _joined(self, pieces: Iterable[tuple[str, bool]], last: int | None) -> list[int]:
        """Tokens of pieces (text, spoken by people) that follow one another.

        Args:
            last: the token before them, TEXT for any of ordinary text; None at the beginning of a prompt.
        """
        tokens: list[int] = []
        blanks = ""  # that end a piece of the template belong to the word behind them
        listed = list(pieces)
        for (text, spoken), following in zip(listed, [*listed[1:], ("", False)], strict=True):
            text = blanks + text.encode("utf-8", "replace").decode()  # a terminal may send what is not UTF-8
            kept = text.rstrip(" ") if following[1] and not spoken else text
            blanks = text[len(kept) :]
            tokens += self._behind(last, kept, spoken)
            last = tokens[-1] if tokens else last
        return tokens

    def _behind(self, last: int | None, text: str, spoken: bool) -> list[int]:
        """Tokens of one piece that stands behind the token `last`."""
        mark = None if last is None else self._marks.get(last)
        if mark is not None and not spoken:
            whole = self._special(mark + text)
            if whole[:1] == [last]:
                return whole[1:]
        alone = last is None or (mark is not None and self._blank_after_mark) or not self._opens_blank
        return self._encode(text, spoken) if alone else self._continued(text, spoken)

    def _special(self, text: str) -> list[int]:
        """Template text that stands alone: marks such as <|im_end|> become their control tokens."""
        return self._encode(text, False)

    def words(self, text: str) -> list[int]:
        """Words of people that stand alone: control marks in them stay plain text."""
        return self._joined([(text, True)], None)

    def before(self, question: str, shown: bool = True) -> list[int]:
        """Tokens up to the picture; the same for every picture.

        Args:
            shown: whether a picture follows; only models that read the picture first can do without.
        """
        template = self.template
        if template.picture_first:
            with_picture = template.open_picture or template.open_user
            opened = with_picture if shown else template.open_user.rstrip(" ")  # `after` has the blank
            return self._joined([(opened, False)], None)
        return self._joined([(template.open_user, False), (question + "\n", True)], None)

    def after(self, question: str = "", shown: bool = True) -> list[int]:
        """Tokens between the picture and the answer."""
        if not self.template.picture_first:
            return list(self._closing)
        if shown:  # a picture ends with a control token
            gap = (self.template.picture_gap, False)
            asked = self._joined([gap, (question, True)], self._picture_mark)
        else:
            opened, text = self.before(question, shown), self.template.open_user
            blank = text[len(text.rstrip(" ")) :]
            asked = self._joined([(blank + question, True)], opened[-1] if opened else None)
        return asked + self._closing

    def between_pictures(self) -> list[int]:
        """Tokens between two pictures of one turn."""
        return self._special(self.template.picture_between) if self.template.picture_between else []

    def answer(self, label: str) -> list[int]:
        """The label and the end of the turn."""
        whole = self.template.answer_lead + label + self.template.answer_tail
        last = self._closing[-1] if self._closing else TEXT
        return [*self._joined([(whole, True)], last), self.end_id]

    def follow_up(self, question: str) -> list[int]:
        """A further question after the label, up to where the reply begins."""
        opened = self.template.next_user or self.template.after_end + self.template.open_user
        return self._joined([(opened, False), (question, True)], self.end_id) + self._closing

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
