"""Single records of conversations: roles, order, placeholders and pictures."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldguide.data.llava import (
    Faulty,
    escaped,
    holds_conversation,
    read_conversation,
    unescaped,
    without_placeholders,
)
from fieldguide.records import Turn

TEXTS = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("<\\image>\n\r\t ")))
PICTURE = {"type": "image"}


def llava(*texts: str, **more: Any) -> dict[str, Any]:
    """Turns of human and gpt, one after the other."""
    turns = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]
    return {"conversations": turns, **more}


def texts_of(record: Any) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in read_conversation(record).messages]


def chat(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": f"{role} says"} for role in roles]}


@pytest.mark.parametrize(
    "record",
    [
        llava("<image>\nWhat?", "A cat.", image="a.jpg"),
        {"messages": [{"role": "user", "content": "What?\n<image>"},
                      {"role": "assistant", "content": "A cat."}], "images": ["a.jpg"]},
        {"messages": [{"role": "User", "content": [PICTURE, {"type": "text", "text": "What?"}]},
                      {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}],
         "image": "a.jpg"},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "What?"},
                                                   {"type": "image_url", "image_url": {"url": "a.jpg"}}]},
                      {"role": "assistant", "content": "A cat."}]},
        {"conversations": [{"role": "user", "text": "<image> What?"}, {"from": "gpt", "value": "A cat."}],
         "image": ["a.jpg"], "system": ""},
    ],
)  # fmt: skip
def test_every_spelling_says_the_same(record: dict[str, Any]) -> None:
    told = read_conversation(record)
    assert told.messages == (Turn("user", "What?"), Turn("assistant", "A cat."))
    assert (told.pictures, told.placeholders, told.moved) == (("a.jpg",), 1, False)
    assert holds_conversation(record)


def test_system_turns_are_kept_and_empty_ones_dropped() -> None:
    expected = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Ho")]
    assert texts_of(llava("Hi", "Ho", system="Be brief.")) == expected
    spoken = llava("Hi", "Ho")
    spoken["conversations"].insert(0, {"from": "system", "value": "Be brief."})
    assert texts_of(spoken) == expected
    spoken["conversations"][0]["value"] = " \n"
    assert texts_of(spoken) == expected[1:]


def test_a_record_without_pictures_has_none() -> None:
    for more in ({}, {"image": None}, {"image": ""}, {"images": []}):
        told = read_conversation(llava("Hi", "Ho", **more))
        assert (told.pictures, told.placeholders) == ((), 0)


def test_the_user_may_name_the_key_of_the_pictures() -> None:
    record = llava("<image>\nHi", "Ho", image="a.jpg", photo="b.jpg")
    assert read_conversation(record, "photo").pictures == ("b.jpg",)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("text", "not an object"),
        ({"conversations": "text"}, "no conversation"),
        ({"conversations": ["text"]}, "turn 1 is not an object"),
        (chat("user", "narrator"), "turn 2 has the unknown role 'narrator'"),
        (chat("user", ""), "turn 2 has the unknown role ''"),
        (chat("user", "user", "assistant"), "turn 2 is the user's, as is the one before"),
        (chat("system", "user", "assistant", "assistant"), "turn 4 is the assistant's"),
        (chat("assistant", "user", "assistant"), "the first is not the user's"),
        (chat("user", "assistant", "system", "assistant"), "a system turn after the first"),
        (chat("system"), "the first is not the user's"),
        (chat("user"), "nothing answers it"),
        (chat("user", "assistant", "user"), "nothing answers it"),
        (llava("Hi", " ", "Ho", "\n"), "every assistant turn is empty"),
        (llava("<image>\nHi", "Ho", video="a.mp4"), "only pictures"),
        ({"messages": [{"role": "user", "content": 7}]}, "turn 1 is neither text nor"),
        ({"messages": [{"role": "user", "content": [7]}]}, "turn 1 has a part that is neither"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "part of type 'audio'"),
    ],
)  # fmt: skip
def test_faulty_records_say_why(record: Any, reason: str) -> None:
    with pytest.raises(Faulty, match=reason):
        read_conversation(record)


def test_one_empty_assistant_turn_among_others_is_no_fault() -> None:
    assert texts_of(llava("Hi", "", "Ho", "Hum"))[1] == ("assistant", "")


@pytest.mark.parametrize(
    ("text", "left", "count"),
    [
        ("<image>\nWhat?", "What?", 1),
        ("<image>\r\nWhat?", "What?", 1),
        ("<image>What?", "What?", 1),
        ("What?\n<image>", "What?", 1),
        ("What? <image>\n", "What?", 1),
        ("<image>\n<image>\nWhich?", "Which?", 2),
        ("<image><image> Which?\n<image>", "Which?", 3),
        ("<image>", "", 1),
        ("<image>\n\n  kept as it is \n", "\n  kept as it is \n", 1),
    ],
)
def test_placeholders_at_the_ends_of_the_first_question(text: str, left: str, count: int) -> None:
    assert without_placeholders(text, first=True) == (left, count, False)


def test_placeholders_elsewhere_are_told_of() -> None:
    """Case 18: pictures stand before the first turn, wherever the placeholder was."""
    assert without_placeholders("Is <image> a cat?", first=True) == ("Is a cat?", 1, True)
    assert without_placeholders("<image>\nAnd this?", first=False) == ("\nAnd this?", 1, True)
    assert read_conversation(llava("Hi", "Ho", "<image>\nAnd?", "Hum", image="a")).moved
    assert read_conversation(llava("Hi", "It is <image>", image="a")).moved
    assert not read_conversation(llava("<image>\nHi", "Ho", "And?", "Hum", image="a")).moved


@given(TEXTS, st.integers(0, 3))
def test_any_text_comes_back_from_behind_its_placeholders(text: str, count: int) -> None:
    written = "<image>\n" * count + escaped(text)
    assert without_placeholders(written, first=True) == (text, count, False)


@given(TEXTS)
def test_escaping_leaves_no_placeholder_and_loses_nothing(text: str) -> None:
    assert "<image>" not in escaped(text)
    assert unescaped(escaped(text)) == text


@given(TEXTS)
def test_parts_keep_their_text(text: str) -> None:
    parts = [PICTURE, PICTURE, {"type": "text", "text": escaped(text)}]
    record = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "yes"}]}
    told = read_conversation({**record, "images": ["a", "b"]})
    assert (told.messages[0].text, told.placeholders, told.moved) == (text, 2, False)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["conversations", "messages", "from", "role", "value", "content", "type", "image"]
            ),
            inner,
        )
    ),
)


@given(JSON)
def test_no_record_is_too_odd(record: Any) -> None:
    """Whatever a file holds, a record is read or refused with a reason."""
    holds_conversation(record)
    try:
        told = read_conversation(record)
    except Faulty as fault:
        reason = str(fault)
    else:
        reason = told.messages[-1].role
    assert reason
