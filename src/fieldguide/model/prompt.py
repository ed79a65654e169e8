"""The one prompt renderer, for training and answering alike.

A conversation about one picture is laid out as

    [before: user turn up to the picture] [visual tokens] [after: rest of the turn, assistant opens]
    [label] [end] [follow-up question] [reply] [end]

The question comes before the picture, so that everything up to the picture is the same for all pictures
and its keys and values are computed once. The label closes with the end-of-turn token, so that no label
can begin another. Words of users, labels and notes are tokenised without special tokens: a control token
written in them is plain text and does not act.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from fieldguide.errors import GuideError


@dataclass(frozen=True)
class PromptTemplate:
    """The fixed pieces around the words. Stored in `guide.json`."""

    open_user: str = "<|im_start|>user\n"
    close_user: str = "<|im_end|>\n"
    open_assistant: str = "<|im_start|>assistant\n"
    end: str = "<|im_end|>"
    after_end: str = "\n"

    def to_dict(self) -> dict[str, str]:
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
        return self.tokenizer.encode(text, add_special_tokens=False)

    def words(self, text: str) -> list[int]:
        """Words of people: control marks in them stay plain text."""
        text = text.encode("utf-8", "replace").decode()  # a terminal may send what is not UTF-8
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def before(self, question: str) -> list[int]:
        """Tokens up to the picture; the same for every picture."""
        return self._special(self.template.open_user) + self.words(question + "\n")

    def after(self) -> list[int]:
        """Tokens between the picture and the label."""
        return self._special(self.template.close_user + self.template.open_assistant)

    def answer(self, label: str) -> list[int]:
        """The label and the end of the turn."""
        return [*self.words(label), self.end_id]

    def follow_up(self, question: str) -> list[int]:
        """A further question after the label, up to where the reply begins."""
        opened = self._special(self.template.after_end + self.template.open_user)
        return opened + self.words(question) + self.after()

    def reply(self, text: str) -> list[int]:
        """A reply and the end of the turn."""
        return [*self.words(text), self.end_id]
