"""Errors: each carries what is wrong and what to do, and belongs to the family printed as one line."""

from __future__ import annotations

import copy
import inspect

import pytest

from fieldguide import errors
from fieldguide.errors import FieldguideError, PictureError

CLASSES = inspect.getmembers(errors, inspect.isclass)
FAMILY = [value for _, value in CLASSES if issubclass(value, FieldguideError)]


def test_message_and_hint_both_reach_the_reader() -> None:
    error = FieldguideError("notes.csv: no column `label`", "name it with --label-column")
    assert "notes.csv: no column `label`" in str(error)
    assert "--label-column" in str(error)
    assert str(FieldguideError("bare")) == "bare"


def test_a_picture_error_keeps_path_and_reason_apart() -> None:
    error = PictureError("a/b.jpg", "empty file")
    assert (error.path, error.reason, error.message) == ("a/b.jpg", "empty file", "a/b.jpg: empty file")


@pytest.mark.parametrize("kind", FAMILY)
def test_every_error_is_caught_as_one_family_and_documented(kind: type[FieldguideError]) -> None:
    error = kind("a.jpg", "too big")
    with pytest.raises(FieldguideError):
        raise error
    assert kind.__doc__
    # A worker process hands its error over by the protocol that copying uses too: it must arrive whole.
    arrived = copy.copy(error)
    assert (type(arrived), str(arrived)) == (kind, str(error))
    assert vars(arrived) == vars(error)
