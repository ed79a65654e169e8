"""Statements that the notes do not bear out are found; those that they do are left alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldguide.answer.statements import Passage, content, passages_of, statements, stem
from fieldguide.records import Note

BISHOP = Note(
    "bishop",
    synonyms=("alfil",),
    field_marks=("rounded, pointed head like a mitre", "diagonal slit cut into the head"),
    look_alikes=("pawn",),
    how_to_tell_apart="A pawn is shorter. A bishop has no toothed crown.",
    description="It moves along diagonals. 它沿对角线移动。",
)
MADE_UP = (
    "It has four legs and a tail.",
    "The head carries a cross.",
    "It is carved from ivory.",
    "Scientists discovered it in 1987.",
    "它有四条腿。",
)


@pytest.mark.parametrize(
    "said",
    [
        "Typical of bishop: rounded, pointed head like a mitre; diagonal slit cut into the head.",
        "The alfil has a diagonally slitted head.".replace(
            "diagonally slitted", "diagonal slit cut into the"
        ),
        "It moves along diagonals.",
        "A pawn is shorter.",
        "A bishop has no toothed crown.",
        "它沿对角线移动。",
    ],
)
def test_what_stands_in_the_notes_is_borne_out(said: str) -> None:
    found = statements(said, passages_of(BISHOP), ["bishop", "alfil"])
    assert found
    assert all(one.supported and one.by for one in found)


@pytest.mark.parametrize("added", MADE_UP)
def test_an_added_statement_is_marked_and_the_one_before_it_is_not(added: str) -> None:
    true, false = statements(f"It has a diagonal slit cut into the head. {added}", passages_of(BISHOP))
    assert true.supported
    assert not false.supported
    assert false.text == added
    assert false.by == ""


@pytest.mark.parametrize(
    "said", ["It has no diagonal slit cut into the head.", "A bishop has a toothed crown."]
)
def test_a_denial_is_not_borne_out_by_what_it_denies(said: str) -> None:
    [found] = statements(said, passages_of(BISHOP))
    assert not found.supported


def test_an_opening_that_ends_with_the_name_is_no_statement() -> None:
    said = "The most recognisable features of bishop: rounded, pointed head like a mitre"
    assert statements(said, passages_of(BISHOP), ["bishop"])[0].supported
    assert not statements("It has four legs, says the bishop: like a mitre", passages_of(BISHOP), [])[
        0
    ].supported
    assert not statements("Not typical of bishop: head like a mitre", passages_of(BISHOP), ["bishop"])[
        0
    ].supported


HEN = Note(
    "hen",
    field_marks=("red comb on top of the head", "two short legs and a feathered tail"),
    look_alikes=("duck",),
    how_to_tell_apart="A duck is broader, while a hen has a pointed beak.",
    description="它有红色的冠。",
)


@pytest.mark.parametrize(
    "false",
    [
        "It has four short legs and a feathered tail.",  # a number
        "It has a blue comb on top of the head.",  # a colour
        "A hen is broader.",  # another label's
        "It doesn’t have a red comb.",
        "It has hardly any red comb on top of the head.",
        "It lacks a feathered tail.",
        "它没有红色的冠。",
    ],
)
def test_one_wrong_word_is_enough(false: str) -> None:
    [found] = statements(false, passages_of(HEN), ["hen"])
    assert found.supported is False


@pytest.mark.parametrize(
    "true",
    ["A hen has a pointed beak.", "A duck is broader.", "The hen has a feathered tail.", "它有红色的冠。"],
)
def test_what_is_said_of_the_right_label_is_borne_out(true: str) -> None:
    [found] = statements(true, passages_of(HEN), ["hen"])
    assert found.supported


def test_without_notes_nothing_is_borne_out() -> None:
    [found] = statements("It has a mane.", passages_of(None))
    assert not found.supported


def test_words_without_content_are_no_statement() -> None:
    found = statements("This is it. A bishop!", passages_of(BISHOP), ["bishop"])
    assert [(one.text, one.supported) for one in found] == [("This is it.", None), ("A bishop!", None)]
    assert statements("", passages_of(BISHOP)) == ()


@pytest.mark.parametrize(
    ("words", "common"),
    [(("stripes", "striped", "stripe"), "strip"), (("berries", "berry"), "berry"), (("grass",), "grass")],
)
def test_forms_of_a_word_have_one_stem(words: tuple[str, ...], common: str) -> None:
    assert {stem(word) for word in words} == {common}


def test_accents_and_case_do_not_matter() -> None:
    assert content("Crête ROUGE") == content("crete rouge")


@given(st.text(max_size=200), st.lists(st.text(max_size=80), max_size=4))
def test_nothing_is_said_that_the_reply_does_not_say(reply: str, passages: list[str]) -> None:
    for one in statements(reply, [Passage(text) for text in passages]):
        assert one.text in reply
        assert bool(one.supported) == bool(one.by)
        assert one.by == "" or one.by in passages


@given(st.text(min_size=1, max_size=80))
def test_every_text_bears_itself_out(text: str) -> None:
    for one in statements(text, [Passage(text)]):
        if one.text == text.strip():
            assert one.supported is not False
