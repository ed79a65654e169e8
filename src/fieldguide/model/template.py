"""A model's own chat template, taken apart into the pieces of `PromptTemplate`.

Templates are programs (Jinja). Rendering a conversation of unlikely words and cutting it at them gives the
pieces; putting the pieces of other conversations together must then give what the template renders, to the
last character, or the template does something that pieces cannot, and is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fieldguide.errors import GuideError
from fieldguide.model.prompt import PromptTemplate

WORDS = ("qzxone", "qzxtwo", "qzxthree", "qzxfour")


def template_from_chat(
    renderer: Any, tokenizer: Any, mark: str = "", chat_template: str = ""
) -> PromptTemplate:
    """The pieces of a chat template.

    Args:
        renderer: a processor or tokenizer with `apply_chat_template`.
        tokenizer: tells the end-of-turn token.
        mark: what stands for a picture in the rendered text; "" for a text model.
        chat_template: used where the model comes without one.

    Raises:
        GuideError: when there is no template, or it cannot be taken apart.
    """
    template = getattr(renderer, "chat_template", None) or chat_template
    if not template:
        raise GuideError("the model comes without a chat template", "choose an instruction-tuned model")

    def render(words: Sequence[str], pictures: int, opened: bool = False) -> str:
        messages = []
        for place, text in enumerate(words):
            content: Any = text
            if mark:  # processors want lists of parts
                shown = [{"type": "image"}] * (pictures if place == 0 else 0)
                content = [*shown, {"type": "text", "text": text}]
            messages.append({"role": ("user", "assistant")[place % 2], "content": content})
        return str(
            renderer.apply_chat_template(
                messages, chat_template=template, add_generation_prompt=opened, tokenize=False
            )
        )

    first, answered, next_user, closed, tail = _cut(render(WORDS, 0), WORDS)
    asked = render(WORDS[:1], 0, opened=True)
    if not asked.startswith(first + WORDS[0]):
        raise GuideError("the chat template changes its beginning with the length of the conversation")
    close = asked[len(first + WORDS[0]) :]
    lead = answered[len(close) :] if answered.startswith(close) else ""
    if close + lead != answered or lead.strip() or closed != answered:
        raise GuideError("the chat template opens an answer in training in another way than in answering")
    bare = close.rstrip(" ")
    lead = close[len(bare) :] + lead
    end = _end(tail, tokenizer)
    if not next_user.startswith(end):
        raise GuideError(f"the chat template closes a first answer otherwise than a last one ({end!r})")
    found = PromptTemplate(
        open_user=first,
        close_user="",
        open_assistant=bare,
        end=end,
        after_end="",
        picture_first=True,
        next_user=next_user[len(end) :],
        answer_lead=lead,
        **(_pictures(render, mark) if mark else {}),
    )
    _check(found, render, mark)
    return found


def _cut(text: str, words: Sequence[str]) -> list[str]:
    """The stretches between the words."""
    pieces = []
    for word in words:
        before, found, text = text.partition(word)
        if not found:
            raise GuideError("the chat template does not show every turn as it is written")
        pieces.append(before)
    return [*pieces, text]


def _end(tail: str, tokenizer: Any) -> str:
    """The end-of-turn mark: the one token that follows an answer."""
    ids = tokenizer.encode(tail.lstrip(" "), add_special_tokens=False)
    if not ids:
        raise GuideError("the chat template does not mark the end of an answer")
    return str(tokenizer.decode(ids[:1]))


def _pictures(render: Any, mark: str) -> dict[str, str]:
    """What stands around one picture and between two."""
    [before, gap] = _cut(_cut(render(WORDS, 1), WORDS)[0], [mark])
    [again, between, last] = _cut(_cut(render(WORDS, 2), WORDS)[0], [mark, mark])
    if (again, last) != (before, gap):
        raise GuideError("the chat template lays two pictures otherwise than one")
    return {"open_picture": before, "picture_between": between, "picture_gap": gap}


def _check(template: PromptTemplate, render: Any, mark: str) -> None:
    """Put other conversations together from the pieces, and compare."""
    for pictures in (0, 1, 2) if mark else (0,):
        words = ["What is it?", "A b, c.", "Sure? Yes/no", "d"]
        text = template.open_user
        if pictures:
            shown = template.picture_between.join([mark] * pictures)
            text = template.open_picture + shown + template.picture_gap
        opening = template.close_user + template.open_assistant + template.answer_lead
        text += words[0] + opening + words[1] + template.end + template.next_user
        text += words[2] + opening + words[3] + template.end
        rendered = render(words, pictures)
        if not rendered.startswith(text) or rendered[len(text) :].strip():
            raise GuideError("the chat template cannot be put together from its pieces", "report the model")
