"""A model's own chat template, taken apart into the pieces of `PromptTemplate`.

Templates are programs (Jinja). Rendering a conversation of unlikely words and cutting it at them gives the
pieces; putting the pieces of other conversations together must then give what the template renders, to the
last character, or the template does something that pieces cannot, and is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from fieldguide.errors import GuideError
from fieldguide.model.prompt import PromptTemplate

WORDS = ("qzxone", "qzxtwo", "qzxthree", "qzxfour")
OTHERS = ("What is it? (1/2)", "A b, c: 5.", "Sure? Yes/no", "d", "Why\nso?", "鱼 – é")

# (words of user and assistant in turn, pictures in the first turn, whether an answer is to follow) → text
Render = Callable[[Sequence[str], int, bool], str]


@dataclass(frozen=True)
class _Closing:
    """How the template closes an answer."""

    tail: str  # blank before the mark
    end: str  # the mark: one token
    written: str  # what it writes for the mark: "" when it leaves that to those who train


def template_from_chat(
    renderer: Any, tokenizer: Any, mark: str = "", chat_template: str = ""
) -> PromptTemplate:
    """The pieces of a chat template.

    A template that does not mark where an answer ends, as that of LLaVA-1.5, gets the tokenizer's
    end-of-sequence token there; one whose processor adds the beginning-of-sequence token, opens with it.

    Args:
        renderer: a processor or tokenizer with `apply_chat_template`.
        tokenizer: tells which marks are one token.
        mark: what stands for a picture in the rendered text; "" for a text model.
        chat_template: used where the model comes without one.

    Raises:
        GuideError: when there is no template, or it cannot be taken apart.
    """
    template = getattr(renderer, "chat_template", None) or chat_template
    if not template:
        raise GuideError("the model comes without a chat template", "choose an instruction-tuned model")
    render = _rendering(renderer, template, mark)
    first, answered, between, closed, last = _cut(render(WORDS, 0, False), WORDS)
    if closed != answered:
        raise GuideError("the chat template opens a later answer otherwise than the first")
    opened, lead = _opening(render, first, answered)
    closing = _closing(between, last, tokenizer)
    beginning = "" if renderer is tokenizer else _beginning(tokenizer, first)
    pictures = _pictures(render, mark) if mark else {}
    if pictures:
        pictures["open_picture"] = beginning + pictures["open_picture"]
    found = PromptTemplate(
        open_user=beginning + first,
        close_user="",
        open_assistant=opened,
        end=closing.end,
        after_end="",
        picture_first=True,
        next_user=between[len(closing.tail + closing.written) :],
        answer_lead=lead,
        answer_tail=closing.tail,
        **pictures,
    )
    _check(found, closing, beginning, render, mark, str(tokenizer.eos_token or ""))
    return found


def _rendering(renderer: Any, template: Any, mark: str) -> Render:
    """The template as a function of the words."""

    def render(words: Sequence[str], pictures: int, opened: bool) -> str:
        messages = []
        for place, text in enumerate(words):
            content: Any = text
            if mark:  # processors want lists of parts
                shown = [{"type": "image"}] * (pictures if place == 0 else 0)
                content = [*shown, {"type": "text", "text": text}]
            messages.append({"role": ("user", "assistant")[place % 2], "content": content})
        try:
            return str(
                renderer.apply_chat_template(
                    messages, chat_template=template, add_generation_prompt=opened, tokenize=False
                )
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise GuideError(f"the chat template cannot be rendered ({error})", "report the model") from error

    return render


def _cut(text: str, words: Sequence[str]) -> list[str]:
    """The stretches between the words."""
    pieces = []
    for word in words:
        before, found, text = text.partition(word)
        if not found:
            raise GuideError("the chat template does not show every turn as it is written")
        pieces.append(before)
    return [*pieces, text]


def _opening(render: Render, first: str, answered: str) -> tuple[str, str]:
    """What closes the question and opens the answer; the blank that belongs to the answer's first word."""
    asked = render(WORDS[:1], 0, True)
    if not asked.startswith(first + WORDS[0]):
        raise GuideError("the chat template changes its beginning with the length of the conversation")
    close = asked[len(first + WORDS[0]) :]
    if not answered.startswith(close.rstrip(" ")) or answered[len(close) :].strip(" "):
        raise GuideError("the chat template opens an answer in training in another way than in answering")
    bare = answered.rstrip(" ")
    return bare, answered[len(bare) :]


def _closing(between: str, last: str, tokenizer: Any) -> _Closing:
    """The mark that follows an answer.

    Args:
        between: what stands between an answer and the next question.
        last: what stands behind the last answer.
    """
    rest = between.lstrip(" ")
    tail = between[: len(between) - len(rest)]
    added = sorted((str(token) for token in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
    for token in added:
        if rest.startswith(token) and last.startswith(tail + token):
            return _Closing(tail, token, token)
    if not tokenizer.eos_token:
        raise GuideError("the chat template does not mark the end of an answer")
    return _Closing("", str(tokenizer.eos_token), _common(between, last))


def _common(one: str, other: str) -> str:
    """The beginning that two texts share."""
    same = 0
    while same < min(len(one), len(other)) and one[same] == other[same]:
        same += 1
    return one[:same]


def _beginning(tokenizer: Any, first: str) -> str:
    """The beginning-of-sequence token, where the processor puts it before a text that lacks it."""
    mark = tokenizer.bos_token
    added = tokenizer("a", add_special_tokens=True)["input_ids"][0] == tokenizer.bos_token_id
    return str(mark) if mark and added and not first.startswith(mark) else ""


def _pictures(render: Render, mark: str) -> dict[str, Any]:
    """What stands around one picture and between two."""
    [before, gap] = _cut(_cut(render(WORDS, 1, False), WORDS)[0], [mark])
    [again, between, last] = _cut(_cut(render(WORDS, 2, False), WORDS)[0], [mark, mark])
    if (again, last) != (before, gap):
        raise GuideError("the chat template lays two pictures otherwise than one")
    return {"open_picture": before, "picture_between": between, "picture_gap": gap}


def _check(
    template: PromptTemplate, closing: _Closing, beginning: str, render: Render, mark: str, eos: str
) -> None:
    """Put other conversations together from the pieces, and compare.

    Behind the very last answer a template may leave a blank or the end-of-sequence token out of the pattern.
    """
    opening = template.close_user + template.open_assistant + template.answer_lead
    ending = template.answer_tail + closing.written
    for pictures in (0, 1, 2) if mark else (0,):
        text = template.open_user
        if pictures:
            shown = template.picture_between.join([mark] * pictures)
            text = template.open_picture + shown + template.picture_gap
        questions, answers = OTHERS[::2], OTHERS[1::2]
        turns = [q + opening + a for q, a in zip(questions, answers, strict=True)]
        text = text.removeprefix(beginning) + (ending + template.next_user).join(turns) + ending
        rendered = render(OTHERS, pictures, False)
        if not rendered.startswith(text) or rendered[len(text) :].strip() not in ("", eos):
            raise GuideError("the chat template cannot be put together from its pieces", "report the model")
