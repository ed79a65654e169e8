"""Records: frozen, with defaults that share nothing."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from fieldguide import records

RECORDS = [value for _, value in inspect.getmembers(records, dataclasses.is_dataclass)]


@pytest.mark.parametrize("record", RECORDS)
def test_records_are_frozen_and_documented(record: type) -> None:
    assert record.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert record.__doc__
    assert not record.__doc__.startswith(record.__name__ + "("), "a docstring of its own"


def test_examples_do_not_share_their_meta() -> None:
    first, second = records.Example("1", "a.png"), records.Example("2", "b.png")
    assert first.meta is not second.meta
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.label = "cat"  # type: ignore[misc]


def test_an_answer_with_an_error_has_no_label() -> None:
    answer = records.Answer("a.png", error="empty file")
    assert (answer.label, answer.probability, answer.scores) == ("", 0.0, ())
