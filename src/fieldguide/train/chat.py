"""A chat template as Ollama writes one: Jinja taken apart, and put together in Go's template language.

Pieces are found by rendering conversations of unlikely words. Putting them together must then give what the
model's own template renders, to the last character, for other conversations too; otherwise it is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError

from fieldguide.errors import MergeError

WORDS = ("qxsystemqx", "qxaskqx", "qxsayqx", "qxagainqx")
Message = dict[str, str]


@dataclass(frozen=True)
class ChatPieces:
    """What stands around the turns of a conversation."""

    opening: str  # at the start of a conversation without a system message
    open_system: str | None  # None where there is no system turn; Ollama's SYSTEM then has no effect
    close_system: str
    open_user: str
    close_user: str
    open_assistant: str
    close_assistant: str
    before_answer: str  # ends the prompt; mostly `open_assistant`, but for a blank that the answer brings

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt for an answer to `messages`; what `to_go` says, in Python."""
        text = self.opening
        if messages[0]["role"] == "system" and self.open_system is not None:
            text = self.open_system + messages[0]["content"] + self.close_system
        for message in messages:
            if message["role"] == "user":
                text += self.open_user + message["content"] + self.close_user
            elif message["role"] == "assistant":
                text += self.open_assistant + message["content"] + self.close_assistant
        return text + self.before_answer

    def to_go(self) -> str:
        """The same as an Ollama template."""
        opening = _literal(self.opening)
        if self.open_system is not None:
            system = f"{_literal(self.open_system)}{{{{ .System }}}}{_literal(self.close_system)}"
            opening = f"{{{{ if .System }}}}{system}{{{{ else }}}}{opening}{{{{ end }}}}"
        user = f"{_literal(self.open_user)}{{{{ .Content }}}}{_literal(self.close_user)}"
        assistant = f"{_literal(self.open_assistant)}{{{{ .Content }}}}{_literal(self.close_assistant)}"
        turns = (
            f'{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}{user}'
            f'{{{{ else if eq .Role "assistant" }}}}{assistant}{{{{ end }}}}{{{{ end }}}}'
        )
        return f"{opening}{turns}{_literal(self.before_answer)}"


def _literal(text: str) -> str:
    """Text that Go's templates take as it is."""
    return text.replace("{{", '{{ "{{" }}')


def chat_pieces(tokenizer: Any) -> ChatPieces:
    """The pieces of the tokenizer's chat template, without the first token where Ollama adds it itself.

    Raises:
        MergeError: when there is no template, or it does what pieces cannot.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise MergeError("the tokenizer has no chat template", "choose an instruction-tuned model")
    system, ask, say, again = WORDS
    talk = [_message("user", ask), _message("assistant", say), _message("user", again)]
    first, answered, between, tail = _cut(_render(tokenizer, talk, True), [ask, say, again])
    closed = _cut(_render(tokenizer, talk[:2], False), [ask, say])[2]
    asked = _cut(_render(tokenizer, talk[:1], False), [ask])[1]
    open_user = between.removeprefix(closed)
    pieces = ChatPieces(
        opening=first.removesuffix(open_user),
        open_system=None,
        close_system="",
        open_user=open_user,
        close_user=asked,
        open_assistant=answered.removeprefix(asked),
        close_assistant=closed,
        before_answer=tail.removeprefix(asked),
    )
    try:
        before, after, _ = _cut(_render(tokenizer, [_message("system", system), *talk], True), [system, ask])
    except (TemplateError, MergeError):
        before, after = "", ""  # a template that takes no system message
    if before + after and after.endswith(open_user):  # else it folds the system message into the user's turn
        pieces = replace(pieces, open_system=before, close_system=after.removesuffix(open_user))
    _check(pieces, tokenizer)
    return pieces


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _render(tokenizer: Any, messages: list[Message], opened: bool) -> str:
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opened))
    mark = tokenizer.bos_token
    adds = bool(mark) and tokenizer("x").input_ids[:1] == [tokenizer.bos_token_id]
    return text.removeprefix(mark) if adds else text


def _cut(text: str, words: Sequence[str]) -> list[str]:
    pieces, rest = [], text
    for word in words:
        if rest.count(word) != 1:
            raise MergeError("the chat template leaves out or repeats what is said")
        piece, rest = rest.split(word)
        pieces.append(piece)
    return [*pieces, rest]


def _check(pieces: ChatPieces, tokenizer: Any) -> None:
    talk = [_message(role, f"word {n}") for n, role in enumerate(("user", "assistant") * 3)][:5]
    conversations = [talk[:1], talk[:3], talk]
    if pieces.open_system is not None:
        conversations += [[_message("system", "Be brief."), *some] for some in conversations]
    for messages in conversations:
        if pieces.render(messages) != _render(tokenizer, messages, True):
            raise MergeError(
                "the chat template does more than an Ollama template can: "
                f"a conversation of {len(messages)} messages would read otherwise",
                "fieldguide export --to transformers",
            )
