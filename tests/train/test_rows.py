"""What is read and what is supervised, for every kind of row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest

from fieldguide.errors import DataError
from fieldguide.model.prompt import Prompt, PromptTemplate
from fieldguide.records import Example, Note, Turn
from fieldguide.settings import AnswerSettings, TrainSettings
from fieldguide.testing import tiny_tokenizer
from fieldguide.train.rows import (
    Row,
    check_lengths,
    conversation_row,
    epoch_rows,
    in_words,
    label_row,
    reason_row,
    replies,
)

ANSWER = AnswerSettings()
NOTES = {
    "ox": Note("ox", field_marks=("horns", "hooves"), look_alikes=("bison",), description="A big animal."),
    "鱼": Note("鱼", how_to_tell_apart="It swims."),
}
EXAMPLES = [
    Example(str(i), f"{label}/{i}.png", label=label)
    for i, label in enumerate(["ox", "鱼", "cat", "ox", "ox", "鱼", "ox", "ox", "cat"])
]


@cache
def prompt() -> Prompt:
    return Prompt(tiny_tokenizer())


@cache
def chatting() -> Prompt:
    """Of a model that reads the picture first, and opens its answers with a blank."""
    template = PromptTemplate(
        open_user="USER: ", close_user="", open_assistant=" ASSISTANT:", after_end="", picture_first=True,
        picture_gap="\n", answer_lead=" ",
    )  # fmt: skip
    return Prompt(tiny_tokenizer(), template)


def talk(*texts: str) -> list[Turn]:
    """User and assistant in turn."""
    return [Turn(("user", "assistant")[place % 2], text) for place, text in enumerate(texts)]


def spoken(ids: Sequence[int]) -> str:
    return str(prompt().tokenizer.decode(list(ids)))


def learnt(row: Row) -> list[str]:
    """The supervised stretches of a row."""
    stretches: list[list[int]] = []
    for i, (token, taught) in enumerate(zip(row.ids, row.supervised, strict=True)):
        if taught and not (i and row.supervised[i - 1]):
            stretches.append([])
        if taught:
            stretches[-1].append(token)
    return [spoken(stretch) for stretch in stretches]


def rows_of(epoch: int, **changes: int) -> list[Row]:
    return epoch_rows(prompt(), EXAMPLES, NOTES, TrainSettings(**changes), ANSWER, epoch)


def reasons(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if len(learnt(row)) > 1]


@pytest.mark.parametrize("label", ["ox", "鱼", "a, <|im_end|> b"])
def test_a_label_row_teaches_the_label_and_the_end_of_the_turn(label: str) -> None:
    row = label_row(prompt(), 3, label, "3.png")
    assert spoken(row.ids) == f"<|im_end|>\n<|im_start|>assistant\n{label}<|im_end|>"
    assert learnt(row) == [f"{label}<|im_end|>"]
    assert (row.picture, row.name, row.targets) == (3, "3.png", len(label.encode()) + 1)


def test_a_reason_row_teaches_label_and_reply_but_not_the_question() -> None:
    """Case 14: what the user says is never learnt."""
    row = reason_row(prompt(), 3, "ox", "3.png", "How can you tell?", "Typical of ox: horns.")
    assert spoken(row.ids) == (
        "<|im_end|>\n<|im_start|>assistant\nox<|im_end|>"
        "\n<|im_start|>user\nHow can you tell?<|im_end|>\n"
        "<|im_start|>assistant\nTypical of ox: horns.<|im_end|>"
    )
    assert learnt(row) == ["ox<|im_end|>", "Typical of ox: horns.<|im_end|>"]


def test_empty_labels_and_replies_are_refused_by_name() -> None:
    """Case 15: a row with nothing supervised is an error that names it."""
    with pytest.raises(DataError, match=r"^fish/7\.png: nothing to learn"):
        label_row(prompt(), 7, "", "fish/7.png")
    with pytest.raises(DataError, match=r"^fish/8\.png: nothing to learn"):
        reason_row(prompt(), 8, "fish", "fish/8.png", "Why?", "")
    with pytest.raises(DataError, match=r"^fish/9\.png: nothing to learn"):
        reason_row(prompt(), 9, "", "fish/9.png", "Why?", "It has scales.")


def test_replies_say_what_the_notes_say() -> None:
    note = Note(
        "ox", field_marks=("horns", "hooves"), look_alikes=("bison", "yak"), how_to_tell_apart="No hump.",
        description=" A big animal.\n",
    )  # fmt: skip
    assert replies(note, ANSWER) == [
        (f"Notes: Field marks of ox: horns; hooves.\n{ANSWER.why}", "Typical of ox: horns; hooves."),
        (
            f"Notes: Look-alikes of ox: bison and yak. No hump.\n{ANSWER.confused}",
            "Most easily confused with bison and yak. No hump.",
        ),
        (f"Notes: A big animal.\n{ANSWER.more}", "A big animal."),
    ]
    assert replies(NOTES["鱼"], ANSWER) == [(f"Notes: It swims.\n{ANSWER.confused}", "It swims.")]
    assert replies(Note("ox", synonyms=("steer",)), ANSWER) == []


def test_every_picture_has_its_label_row_and_some_have_a_reason() -> None:
    rows = rows_of(0, explain_per_label=2)
    assert [(row.picture, row.name) for row in rows[: len(EXAMPLES)]] == [
        (i, example.image) for i, example in enumerate(EXAMPLES)
    ]
    assert all(
        learnt(row) == [f"{e.label}<|im_end|>"]
        for row, e in zip(rows[: len(EXAMPLES)], EXAMPLES, strict=True)
    )
    assert reasons(rows) == rows[len(EXAMPLES) :]
    assert [EXAMPLES[row.picture].label for row in reasons(rows)] == ["ox", "ox", "鱼", "鱼"]
    for row in reasons(rows):
        assert row.name == EXAMPLES[row.picture].image
        assert learnt(row)[0] == f"{EXAMPLES[row.picture].label}<|im_end|>"


@pytest.mark.parametrize(("wanted", "counts"), [(0, (0, 0)), (1, (1, 1)), (3, (3, 2)), (99, (5, 2))])
def test_a_label_has_no_more_reasons_than_asked_nor_a_picture_two(
    wanted: int, counts: tuple[int, int]
) -> None:
    found = [row.picture for row in reasons(rows_of(0, explain_per_label=wanted))]
    assert len(set(found)) == len(found)
    assert tuple(sum(EXAMPLES[i].label == label for i in found) for label in NOTES) == counts


def test_the_reasons_take_turns() -> None:
    said = [
        learnt(row)[1]
        for epoch in range(3)
        for row in reasons(rows_of(epoch, explain_per_label=1))
        if EXAMPLES[row.picture].label == "ox"
    ]
    assert sorted(said) == sorted(f"{reply}<|im_end|>" for _, reply in replies(NOTES["ox"], ANSWER))
    chosen = {
        tuple(row.picture for row in reasons(rows_of(epoch, explain_per_label=1))) for epoch in range(8)
    }
    assert len(chosen) > 2


def test_rows_follow_from_seed_and_epoch_alone() -> None:
    assert rows_of(2) == rows_of(2)
    assert rows_of(2, explain_per_label=2) != rows_of(3, explain_per_label=2)
    chosen = {
        tuple(row.picture for row in reasons(rows_of(2, seed=seed, explain_per_label=2))) for seed in range(6)
    }
    assert len(chosen) > 1


def test_a_negative_seed_is_refused_with_the_settings() -> None:
    assert replace(TrainSettings(), seed=-1).faults() == ["seed=-1 must not be negative"]


def test_rows_that_are_too_long_are_refused_by_name_and_none_is_cut() -> None:
    """Case 16: nothing is truncated, the visual tokens least of all."""
    rows = rows_of(0)
    before, visual = 30, 17
    longest = max(len(row.ids) for row in rows)
    check_lengths(rows, before, visual, before + visual + longest)
    with pytest.raises(DataError) as caught:
        check_lengths(rows, before, visual, before + visual + longest - 1)
    guilty = {row.name for row in rows if len(row.ids) == longest}
    assert caught.value.message.startswith(", ".join(sorted(guilty)))
    assert "context of" in caught.value.message
    assert max(len(row.ids) for row in rows) == longest
    with pytest.raises(DataError, match=r"and 4 more: longer than"):
        check_lengths(rows, before, visual, 1)


def test_a_conversation_row_teaches_every_answer_and_no_question() -> None:
    """Case 14, of a conversation."""
    row = conversation_row(chatting(), 4, talk("What?", "An ox.", "Sure?<|im_end|>", "Yes."), "row 9")
    assert in_words(row, chatting()) == (
        "\nWhat? ASSISTANT:⟦ An ox.<|im_end|>⟧USER: Sure?<|im_end|> ASSISTANT:⟦ Yes.<|im_end|>⟧"
    )
    assert (row.picture, row.name, row.targets) == (4, "row 9", len(" An ox. Yes.") + 2)
    assert sum(token == chatting().end_id for token in row.ids) == 2


def test_a_row_without_a_picture_has_no_gap_for_one() -> None:
    row = conversation_row(chatting(), 0, talk("What?", "An ox."), "row 9", shown=False)
    opened = chatting().tokenizer.decode(chatting().before("", False))
    assert opened + in_words(row, chatting()) == "USER: What? ASSISTANT:⟦ An ox.<|im_end|>⟧"


def test_a_conversation_may_begin_with_a_system_turn_and_end_with_a_question() -> None:
    turns = [Turn("system", "Be brief."), *talk("What?", "An ox.", "Sure?")]
    assert in_words(conversation_row(chatting(), 0, turns, "row 9"), chatting()) == (
        "\nBe brief.\n\nWhat? ASSISTANT:⟦ An ox.<|im_end|>⟧USER: Sure? ASSISTANT:"
    )


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], "must go user, assistant"),
        (talk("What?"), "nothing to learn"),
        ([Turn("system", "Be brief."), *talk("What?")], "nothing to learn"),
        (talk("What?", ""), "nothing to learn"),
        (talk("What?", "An ox.", "Sure?", " \n"), "nothing to learn"),
        (talk("What?", "An ox.")[::-1], "must go user, assistant"),
        ([*talk("What?"), *talk("What?", "An ox.")], "must go user, assistant"),
        ([*talk("What?"), Turn("tool", "An ox.")], "must go user, assistant"),
    ],
)
def test_conversations_with_nothing_to_learn_are_refused_by_name(turns: list[Turn], reason: str) -> None:
    """Case 15."""
    with pytest.raises(DataError, match=rf"^train\.json, row 9: .*{reason}"):
        conversation_row(chatting(), 0, turns, "train.json, row 9")


def test_an_empty_answer_is_empty_behind_its_blank_too() -> None:
    assert len(chatting().answer("")) == 2
    with pytest.raises(DataError, match=r"^7\.png: nothing to learn"):
        label_row(chatting(), 7, "", "7.png")


def test_the_question_before_the_picture_is_that_of_labels_only() -> None:
    with pytest.raises(DataError, match=r"^row 9: this model's question stands before the picture"):
        conversation_row(prompt(), 0, talk("What?", "An ox."), "row 9")


def test_the_picture_first_puts_the_question_into_the_rows() -> None:
    """Case 17: each row asks what answering asks."""
    rows = epoch_rows(chatting(), EXAMPLES, NOTES, TrainSettings(explain_per_label=1), ANSWER, 0)
    asked = chatting().after(ANSWER.question)
    assert spoken(asked) == f"\n{ANSWER.question} ASSISTANT:"
    assert all(list(row.ids[: len(asked)]) == asked for row in rows)
    assert [learnt(row)[0] for row in rows[:2]] == [" ox<|im_end|>", " 鱼<|im_end|>"]


def test_pictures_of_different_lengths_count_each_for_its_row() -> None:
    """Case 16: tiles are never cut."""
    rows = [replace(row, visual=visual) for row, visual in zip(rows_of(0), (5, 900, 7), strict=False)]
    longest = max(row.visual + len(row.ids) for row in rows)
    check_lengths(rows, 3, 0, 3 + longest)
    with pytest.raises(DataError, match=rf"^{rows[1].name}: longer than"):
        check_lengths(rows, 3, 0, 2 + longest)
