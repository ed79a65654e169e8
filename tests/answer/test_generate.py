"""The sentence that says why: what it follows, where it ends, and that it does not go round in circles."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldguide.answer.generate import (
    FEWEST,
    STEP,
    TIMES,
    before_loop,
    explain,
    whole_sentences,
    without_repeats,
)
from fieldguide.model.assemble import Assembled
from fieldguide.model.local import Started
from fieldguide.testing import tiny_features, tiny_model


@pytest.fixture(scope="module")
def model() -> Assembled:
    return tiny_model(("cat", "dog"))


@pytest.fixture(scope="module")
def started(model: Assembled) -> Started:
    return model.start("What is it?", tiny_features(model, 3))


class Speaker:
    """Replaces `generate`: says a text token by token, then ends; remembers what it was asked after."""

    def __init__(self, model: Assembled, text: str, ends: bool = True) -> None:
        self.tokens = [*model.prompt.words(text), *([model.prompt.end_id] if ends else [])]
        self.asked: list[list[int]] = []

    def generate(self, started: Started, row: int, tokens: list[int], most: int) -> list[int]:
        self.asked.append(list(tokens))
        said = len(tokens) - len(self.asked[0])
        new = self.tokens[said : said + most]
        return new[:-1] if new and new[-1] == END else new


END = 257  # the last token of the tiny tokenizer


def speak(
    monkeypatch: pytest.MonkeyPatch,
    model: Assembled,
    started: Started,
    text: str,
    ends: bool = True,
    most: int = 400,
) -> tuple[str, Speaker]:
    assert model.prompt.end_id == END
    speaker = Speaker(model, text, ends)
    monkeypatch.setattr(model, "generate", speaker.generate)
    return explain(model, started, 1, "cat", "How can you tell?", most), speaker


def test_the_question_follows_the_label_by_the_prompt_of_training(
    monkeypatch: pytest.MonkeyPatch, model: Assembled, started: Started
) -> None:
    _, speaker = speak(monkeypatch, model, started, "Whiskers.")
    expected = model.prompt.answer("cat") + model.prompt.follow_up("How can you tell?")
    assert speaker.asked[0] == expected


@pytest.mark.parametrize("length", [1, STEP - 1, STEP, STEP + 1, 3 * STEP])
def test_a_reply_that_ends_is_whole(
    monkeypatch: pytest.MonkeyPatch, model: Assembled, started: Started, length: int
) -> None:
    text = "".join(chr(ord("a") + i % 26) if i < 26 else chr(ord("A") + i % 26) for i in range(length))
    said, speaker = speak(monkeypatch, model, started, text)
    assert said == text
    assert all(later[: len(speaker.asked[0])] == speaker.asked[0] for later in speaker.asked)


def test_the_tail_of_a_loop_is_cut(
    monkeypatch: pytest.MonkeyPatch, model: Assembled, started: Started
) -> None:
    said, speaker = speak(monkeypatch, model, started, "It has stripes. " + "Very long fins. " * 40)
    assert said == "It has stripes. Very long fins."
    assert len(speaker.asked) < 6  # it was stopped, not only shortened


def test_a_reply_cut_by_its_limit_ends_with_a_whole_sentence(
    monkeypatch: pytest.MonkeyPatch, model: Assembled, started: Started
) -> None:
    said, _ = speak(monkeypatch, model, started, "It is red. And also quite", ends=False, most=20)
    assert said == "It is red."


def test_the_real_model_writes_what_it_writes_greedily(model: Assembled, started: Started) -> None:
    tokens = model.prompt.answer("dog") + model.prompt.follow_up("Why?")
    alone = model.generate(started, 2, tokens, 12)
    text = explain(model, started, 2, "dog", "Why?", 12)
    kept = model.tokenizer.decode(alone[: before_loop(alone)], skip_special_tokens=True).strip()
    ended = len(alone) < 12 and before_loop(alone) == len(alone)
    assert text == without_repeats(kept if ended else whole_sentences(kept))
    assert text == explain(model, started, 2, "dog", "Why?", 12)


def loops(tokens: list[int]) -> bool:
    """Whether somewhere the same block comes three times in a row, over at least FEWEST tokens."""
    for period in range(1, len(tokens)):
        span = max(TIMES * period, FEWEST)
        for first in range(len(tokens) - span + 1):
            part = tokens[first : first + span]
            if all(part[i] == part[i - period] for i in range(period, span)):
                return True
    return False


@given(
    st.lists(st.integers(0, 2), max_size=40) | st.lists(st.integers(0, 1), max_size=6).map(lambda x: x * 5)
)
def test_what_is_kept_does_not_loop(tokens: list[int]) -> None:
    kept = before_loop(tokens)
    assert (kept < len(tokens)) == loops(tokens)
    assert not loops(tokens[:kept])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It has a fin. It has a tail. It has a fin.", "It has a fin. It has a tail."),
        ("Red. red. Blue!", "Red. Blue!"),
        ("It is 3.5 cm long", "It is 3.5 cm long"),
        ("红色。红色。大。", "红色。大。"),
        ("", ""),
    ],
)
def test_no_sentence_comes_twice(text: str, expected: str) -> None:
    assert without_repeats(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is red. And als", "It is red."),
        ("It is 3.5 cm lon", "It is 3.5 cm lon…"),
        ("红色。还有", "红色。"),
        ("Is it? Yes! no", "Is it? Yes!"),
        ("whole.", "whole."),
        ("", ""),
    ],
)
def test_whole_sentences(text: str, expected: str) -> None:
    assert whole_sentences(text) == expected
