"""Follow-up questions with the notes laid beside them."""

from __future__ import annotations

from fieldguide.model.followup import facts, follow_up
from fieldguide.records import Note
from fieldguide.settings import AnswerSettings

ANSWER = AnswerSettings()
OX = Note("ox", field_marks=("horns", "hooves"), look_alikes=("yak",), description="A big animal.")


def test_the_known_questions_get_the_facts_that_bear_on_them() -> None:
    assert facts(OX, ANSWER.why, ANSWER) == "Field marks of ox: horns; hooves."
    assert facts(OX, ANSWER.confused, ANSWER) == "Look-alikes of ox: yak."
    assert facts(OX, ANSWER.more, ANSWER) == "A big animal."


def test_a_question_of_the_users_own_gets_all_facts() -> None:
    assert follow_up(OX, "Does it bite?", ANSWER) == (
        "Notes: Field marks of ox: horns; hooves.\nLook-alikes of ox: yak.\nA big animal.\nDoes it bite?"
    )


def test_without_facts_the_question_stands_alone() -> None:
    assert follow_up(None, "Why?", ANSWER) == follow_up(Note("ox"), "Why?", ANSWER) == "Why?"
