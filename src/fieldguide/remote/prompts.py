"""What a model is asked: the question, the labels in a shuffled order, and never one of them as an example.

Models lean towards the first options and towards whatever label an example shows. So the order is another one
for every picture, though always the same one for the same picture and seed, and examples hold no label.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from fieldguide.errors import SettingsError
from fieldguide.records import Note
from fieldguide.remote.names import NONE, plain


def shuffled(labels: Sequence[str], seed: int, picture: str) -> tuple[str, ...]:
    """The labels in the order for one picture.

    Args:
        seed: another seed, another order.
        picture: the picture's hash.
    """
    order = sorted(labels)  # the order does not hang on how the caller happened to list them
    random.Random(f"{seed} {picture}").shuffle(order)
    return tuple(order)


def escape(labels: Sequence[str]) -> str | None:
    """How a model says that no label fits; None where that is itself one of the labels."""
    return None if plain(NONE) in {plain(label) for label in labels} else NONE


def choices(order: Sequence[str]) -> tuple[str, ...]:
    """All allowed answers: the labels in their order, the way out last."""
    none = escape(order)
    return (*order, none) if none else tuple(order)


def naming_words(question: str, order: Sequence[str], *, as_json: bool) -> str:
    """The words beside the picture when it is to be named."""
    lines = "\n".join(f"- {' '.join(label.split())}" for label in order)
    none = escape(order)
    parts = [
        question.strip(),
        f"Choose exactly one label from this list, whose order means nothing:\n{lines}",
    ]
    if as_json:
        parts.append('Reply with JSON that has one key, "label".')
    else:
        parts.append("Reply with the label alone, spelled as in the list, and nothing else.")
    if none:
        parts.append(f'If none of the labels fits, the label is "{none}".')
    return "\n\n".join(parts)


def answer_schema(order: Sequence[str]) -> dict[str, Any]:
    """JSON schema of a naming reply."""
    return {
        "type": "object",
        "properties": {"label": {"type": "string", "enum": list(choices(order))}},
        "required": ["label"],
        "additionalProperties": False,
    }


def other_names(
    labels: Sequence[str], given: Mapping[str, Sequence[str]], notes: Mapping[str, Note]
) -> dict[str, tuple[str, ...]]:
    """{label: its synonyms, from the settings and from its note, and its scientific name}.

    Raises:
        SettingsError: for synonyms of something that is no label.
    """
    if strangers := sorted(set(given) - set(labels)):
        raise SettingsError(
            f"synonyms of what is no label: {', '.join(strangers[:5])}", "correct their spelling"
        )
    names: dict[str, tuple[str, ...]] = {}
    for label in labels:
        note = notes.get(label)
        of_note = (*note.synonyms, *([note.scientific_name] if note.scientific_name else [])) if note else ()
        names[label] = tuple(dict.fromkeys((*given.get(label, ()), *of_note)))
    return names


def follow_up(note: Note | None, question: str) -> str:
    """The question with all that is known of the label beside it."""
    if note is None:
        return question
    facts = (
        f"Field marks of {note.label}: {'; '.join(note.field_marks)}." if note.field_marks else "",
        f"Look-alikes of {note.label}: {' and '.join(note.look_alikes)}." if note.look_alikes else "",
        note.how_to_tell_apart.strip(),
        note.description.strip(),
    )
    known = "\n".join(fact for fact in facts if fact)
    return f"Notes: {known}\n{question}" if known else question
