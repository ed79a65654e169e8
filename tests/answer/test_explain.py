"""What an explanation shows comes from the notes and the training pictures, and says what is missing."""

from __future__ import annotations

import pytest

from fieldguide.answer.explain import differences, names_it
from fieldguide.records import Note

NOTES = {
    "cat": Note("cat", field_marks=("whiskers",), how_to_tell_apart="A dog has a snout. A catfish swims."),
    "dog": Note(
        "dog", synonyms=("hound",), field_marks=("dark nose",), how_to_tell_apart="Cats purr. Cows moo."
    ),
    "cow": Note("cow"),
    "狗": Note("狗", how_to_tell_apart="猫有胡须。牛会叫。"),
    "猫": Note("猫"),
}


def test_sentences_that_name_the_other_label_tell_the_two_apart() -> None:
    found = differences("cat", "dog", NOTES)
    assert [(one.note, one.text) for one in found] == [("cat", "A dog has a snout."), ("dog", "Cats purr.")]
    assert {(d.note, d.text) for d in differences("dog", "cat", NOTES)} == {(d.note, d.text) for d in found}
    assert [one.text for one in differences("狗", "猫", NOTES)] == ["猫有胡须。"]


def test_without_such_a_sentence_both_labels_marks_stand_beside_each_other() -> None:
    notes = {"cat": Note("cat", field_marks=("a", "b")), "owl": Note("owl", field_marks=("c",))}
    assert [(d.note, d.text) for d in differences("cat", "owl", notes)] == [("cat", "a; b"), ("owl", "c")]


def test_where_the_notes_are_silent_nothing_is_said() -> None:
    assert differences("cat", "cow", {"cat": Note("cat", field_marks=("a",)), "cow": Note("cow")}) == ()
    assert differences("cat", "cow", {}) == ()


@pytest.mark.parametrize(
    ("sentence", "found"),
    [
        ("A hound barks", True),
        ("Dogs bark", True),
        ("A hotdog is none", False),
        ("dogma", False),
        ("A DOG", True),
    ],
)
def test_a_label_is_named_by_whole_words(sentence: str, found: bool) -> None:
    assert names_it(sentence, "dog", NOTES["dog"]) is found
    assert not names_it("A catfish swims", "cat", None)
