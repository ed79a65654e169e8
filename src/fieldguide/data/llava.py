"""Conversations as LLaVA, ShareGPT and chat files hold them: one record in, its turns and pictures out.

    {"id": "1", "image": "cat.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                                      {"from": "gpt", "value": "A cat."}]}
    {"images": ["cat.jpg"], "messages": [{"role": "user", "content": [{"type": "image"},
                                                                      {"type": "text", "text": "…"}]}, …]}

A placeholder `<image>` says where a picture stands. Texts are kept without it, as they are; one that shall
hold the word itself writes `<\\image>`, which no trainer takes for a picture.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from fieldguide.records import Turn

PLACEHOLDER = "<image>"
TURN_KEYS = ("conversations", "messages", "conversation")
PICTURE_KEYS = ("images", "image", "image_path")
_OTHER_MEDIA = ("video", "videos", "audio", "audios")
_ROLE_KEYS = ("from", "role")
_TEXT_KEYS = ("value", "content", "text")
_ROLES = {
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "model", "chatgpt"), "assistant"),
    "system": "system",
}
_ESCAPED = re.compile(r"<(\\+)image>")
_LITERAL = re.compile(r"<(\\*)image>")


class Faulty(Exception):
    """A record cannot be used; the text is the reason."""


@dataclass(frozen=True)
class Told:
    """What a record tells."""

    messages: tuple[Turn, ...]  # a system turn or none, then user and assistant in turn
    pictures: tuple[Any, ...]  # as the record names them: paths, or {"path": …, "bytes": …}
    placeholders: int
    moved: bool  # whether a placeholder stands elsewhere than at either end of the first question


def holds_conversation(record: Any) -> bool:
    """Whether a record is a conversation at all, be it a faulty one."""
    turns = (_turns(record) if isinstance(record, Mapping) else None) or ()
    return any(isinstance(turn, Mapping) and any(turn.get(key) for key in _ROLE_KEYS) for turn in turns)


def read_conversation(record: Any, image_column: str = "") -> Told:
    """The turns and pictures of one record.

    Args:
        image_column: the key of the pictures, else `images`, `image` or `image_path`.

    Raises:
        Faulty: when roles are unknown or out of order, when no assistant turn says anything, or the record
            holds something other than text and pictures.
    """
    if not isinstance(record, Mapping):
        raise Faulty("not an object with named values")
    turns = _turns(record)
    if not turns:
        raise Faulty("no conversation: neither conversations nor messages holds a list of turns")
    if media := next((key for key in _OTHER_MEDIA if record.get(key)), ""):
        raise Faulty(f"has {media}: only pictures can be read")
    system = record.get("system")
    spoken = [("system", system)] if isinstance(system, str) and system.strip() else []
    shown: list[Any] = []
    for number, turn in enumerate(turns, 1):
        role, text, pictures = _turn(turn, number)
        if role != "system" or text.strip():  # an empty one says nothing
            spoken.append((role, text))
        shown += pictures
    _check_order([role for role, _ in spoken])
    messages, placeholders, moved, opening = [], 0, False, True
    for role, text in spoken:
        first = opening and role == "user"
        opening = opening and role != "user"
        text, count, inside = without_placeholders(text, first)
        placeholders += count
        moved = moved or inside
        messages.append(Turn(role, text))
    if not any(turn.text.strip() for turn in messages if turn.role == "assistant"):
        raise Faulty("nothing to learn: every assistant turn is empty")
    return Told(tuple(messages), _pictures(record, shown, image_column), placeholders, moved)


def without_placeholders(text: str, first: bool) -> tuple[str, int, bool]:
    """A turn's text without `<image>`, how many there were, and whether any was not in its usual place.

    Args:
        first: whether this is the first question, at whose ends placeholders usually stand; the line break
            between placeholder and text goes with them, and nothing else.
    """
    if PLACEHOLDER not in text:
        return unescaped(text), 0, False
    total = text.count(PLACEHOLDER)
    ends = 0
    if first:
        text, ends = _without_ends(text)
    moved = total > ends
    return unescaped(re.sub(rf"[ \t]?{PLACEHOLDER}", "", text)), total, moved


def _without_ends(text: str) -> tuple[str, int]:
    count = 0
    while (rest := text.lstrip()).startswith(PLACEHOLDER):
        rest = rest[len(PLACEHOLDER) :].lstrip(" \t")
        text = rest[2:] if rest.startswith("\r\n") else rest.removeprefix("\n")
        count += 1
    while (rest := text.rstrip()).endswith(PLACEHOLDER):
        rest = rest[: -len(PLACEHOLDER)].rstrip(" \t")
        text = rest.removesuffix("\n").removesuffix("\r")
        count += 1
    return text, count


def escaped(text: str) -> str:
    """A text in which `<image>` is no placeholder; `unescaped` gives it back, whatever it holds."""
    return _LITERAL.sub(r"<\\\1image>", text) if "image>" in text else text


def unescaped(text: str) -> str:
    """The text as it was before `escaped`."""
    return _ESCAPED.sub(lambda found: f"<{found[1][1:]}image>", text) if "image>" in text else text


def _turns(record: Mapping[str, Any]) -> Sequence[Any] | None:
    found = (record.get(key) for key in TURN_KEYS)
    return next((turns for turns in found if isinstance(turns, list) and turns), None)


def _turn(turn: Any, number: int) -> tuple[str, str, list[Any]]:
    """(role, text with placeholders, pictures that the turn itself names)."""
    if not isinstance(turn, Mapping):
        raise Faulty(f"turn {number} is not an object with a role and a text")
    name = next((turn[key] for key in _ROLE_KEYS if turn.get(key)), "")
    role = _ROLES.get(str(name).strip().lower(), "")
    if not role:
        raise Faulty(f"turn {number} has the unknown role {str(name)[:40]!r}")
    content = next((turn[key] for key in _TEXT_KEYS if turn.get(key) is not None), "")
    if isinstance(content, str):
        return role, content, []
    if not isinstance(content, list):
        raise Faulty(f"turn {number} is neither text nor a list of parts")
    text, pictures = "", []
    for part in content:
        kind, value = _part(part, number)
        if kind == "text":
            text += value
        else:
            text += f"\n{PLACEHOLDER}\n" if text and not text.endswith("\n") else f"{PLACEHOLDER}\n"
            pictures += [value] if value else []
    return role, text, pictures


def _part(part: Any, number: int) -> tuple[str, Any]:
    """("text", its text) or ("image", the picture it names, or "" where the record names it)."""
    if isinstance(part, str):
        return "text", part
    if not isinstance(part, Mapping):
        raise Faulty(f"turn {number} has a part that is neither text nor a picture")
    kind = str(part.get("type") or ("text" if isinstance(part.get("text"), str) else "image"))
    if kind == "text":
        return "text", str(part.get("text") or part.get("content") or "")
    if kind not in ("image", "image_url"):
        raise Faulty(f"turn {number} has a part of type {kind[:40]!r}: only text and pictures can be read")
    value = next((part[key] for key in ("image", "image_url", "path", "url") if part.get(key)), "")
    return "image", value.get("url", value) if isinstance(value, Mapping) else value


def _check_order(roles: Sequence[str]) -> None:
    """A system turn or none, then question and answer in turn, the last an answer."""
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if "system" in spoken:
        raise Faulty("turns out of order: a system turn after the first turn")
    if not spoken or spoken[0] != "user":
        raise Faulty("turns out of order: the first is not the user's")
    for number, (one, two) in enumerate(pairwise(spoken), len(roles) - len(spoken) + 2):
        if one == two:
            raise Faulty(f"turns out of order: turn {number} is the {one}'s, as is the one before")
    if spoken[-1] == "user":
        raise Faulty("the last turn is the user's: nothing answers it")


def _pictures(record: Mapping[str, Any], shown: list[Any], image_column: str) -> tuple[Any, ...]:
    """The pictures that turns name, then those of the record."""
    for key in (image_column,) if image_column else PICTURE_KEYS:
        value = record.get(key)
        if value is None or (isinstance(value, (str, list)) and not value):
            continue
        named = [part for part in value if part] if isinstance(value, list) else [value]
        return tuple(shown or named)
    return tuple(shown)
