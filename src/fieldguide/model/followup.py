"""Follow-up questions about a label, with what the notes say of it laid beside the question.

The model is not asked to remember notes, which a small one cannot: it reads them in the prompt, in training
and in answering alike, and says what they say. A question of the user's own gets all there is to the label.
"""

from __future__ import annotations

from fieldguide.records import Note
from fieldguide.settings import AnswerSettings


def facts(note: Note, question: str, settings: AnswerSettings) -> str:
    """What the note holds that bears on the question; "" when there is nothing."""
    marks = f"Field marks of {note.label}: {'; '.join(note.field_marks)}." if note.field_marks else ""
    alike = f"Look-alikes of {note.label}: {' and '.join(note.look_alikes)}." if note.look_alikes else ""
    apart = f"{alike} {note.how_to_tell_apart}".strip()
    about = note.description.strip()
    parts = {settings.why: (marks,), settings.confused: (apart,), settings.more: (about,)}
    return "\n".join(part for part in parts.get(question, (marks, apart, about)) if part)


def follow_up(note: Note | None, question: str, settings: AnswerSettings) -> str:
    """The words of the follow-up turn: the facts, if there are any, and the question."""
    known = facts(note, question, settings) if note is not None else ""
    return f"Notes: {known}\n{question}" if known else question
