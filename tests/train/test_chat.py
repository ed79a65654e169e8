"""Chat templates as Ollama's: Jinja and Go render the same text, or the template is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest

from fieldguide.errors import MergeError
from fieldguide.testing import tiny_tokenizer
from fieldguide.train.chat import chat_pieces

CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}"
    "{% for m in messages %}<|h|>{{ m.role }}<|e|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|h|>assistant<|e|>\n\n{% endif %}"
)
MISTRAL = (
    "{% if messages[0].role == 'system' %}{% set sys = messages[0].content + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set sys = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m.role == 'user' %}"
    "[INST] {{ sys if loop.first else '' }}{{ m.content }} [/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
NO_SYSTEM = MISTRAL.replace(
    "{% set sys = messages[0].content", "{{ raise_exception('none') }}{% set sys = messages[0].content"
)
TALK = [
    {"role": "user", "content": "What?"},
    {"role": "assistant", "content": "A tern."},
    {"role": "user", "content": "Why?"},
]
SYSTEM = {"role": "system", "content": "Be brief."}


def tokenizer_with(template: str, *, adds_bos: bool = False) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    if adds_bos:
        from tokenizers.processors import TemplateProcessing

        bos = tokenizer.bos_token
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
        )
    return tokenizer


def run_go(template: str, messages: list[dict[str, str]]) -> str:
    """Render an Ollama template: an interpreter of the few actions such a template uses."""
    system = "".join(m["content"] for m in messages if m["role"] == "system")
    tokens = re.split(r"\{\{ (.*?) \}\}", template)  # text and actions take turns

    def block(place: int, here: dict[str, Any]) -> tuple[str, int, str]:
        """(text, place after the action that ended the block, that action)"""
        text = ""
        while place < len(tokens):
            token = tokens[place]
            if place % 2 == 0:
                text, place = text + token, place + 1
            elif token == "end" or token.startswith("else"):
                return text, place + 1, token
            elif token == '"{{"':
                text, place = text + "{{", place + 1
            elif token in (".System", ".Content"):
                text, place = text + here[token], place + 1
            elif token == "range .Messages":
                after = place
                for message in messages:
                    inner, after, _ = block(
                        place + 1, {".Content": message["content"], ".Role": message["role"]}
                    )
                    text += inner
                place = after
            else:
                chosen, place = branch(place, here)
                text += chosen
        return text, place, "end"

    def branch(place: int, here: dict[str, Any]) -> tuple[str, int]:
        action, found = tokens[place], ""
        done = False
        while True:
            text, place, ended = block(place + 1, here)
            true = action == "else" or holds(action.removeprefix("else "), here)
            if true and not done:
                found, done = text, True
            if ended == "end":
                return found, place
            action, place = ended, place - 1

    def holds(action: str, here: dict[str, Any]) -> bool:
        if action == "if .System":
            return bool(system)
        role = re.fullmatch(r'if eq \.Role "(\w+)"', action)
        assert role, f"an action this interpreter does not know: {action}"
        return here[".Role"] == role[1]

    return block(0, {".System": system})[0]


@pytest.mark.parametrize(
    ("template", "adds_bos"), [(CHATML, False), (LLAMA3, True), (MISTRAL, False), (NO_SYSTEM, False)]
)
def test_go_renders_what_jinja_renders(template: str, adds_bos: bool) -> None:
    tokenizer = tokenizer_with(template, adds_bos=adds_bos)
    pieces = chat_pieces(tokenizer)
    conversations = [TALK[:1], TALK]
    if template in (CHATML, LLAMA3):
        conversations += [[SYSTEM, *TALK[:1]], [SYSTEM, *TALK]]
    else:
        assert pieces.open_system is None
    for messages in conversations:
        wanted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        wanted = wanted.removeprefix(tokenizer.bos_token) if adds_bos else wanted
        assert pieces.render(messages) == wanted
        assert run_go(pieces.to_go(), messages) == wanted


def test_braces_in_a_template_stay_what_they_are() -> None:
    tokenizer = tokenizer_with(CHATML.replace("You are kind.", "{{ '{{ kind }}' }}"))
    pieces = chat_pieces(tokenizer)
    assert "{{ kind }}" in pieces.render(TALK)
    assert run_go(pieces.to_go(), TALK) == pieces.render(TALK)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (CHATML.replace("{{ m.content }}", "{{ m.content }}{{ loop.index }}"), "does more than"),
        (CHATML.replace("{{ m.content }}", "{{ m.content | upper }}"), "leaves out or repeats"),
        (CHATML.replace("{{ m.content }}", "{{ m.content | reverse }}"), "leaves out or repeats"),
        (LLAMA3.replace("| trim", "| replace('word', 'term')"), "does more than"),
    ],
)
def test_templates_that_do_more_are_refused(template: str, reason: str) -> None:
    with pytest.raises(MergeError, match=reason):
        chat_pieces(tokenizer_with(template))
