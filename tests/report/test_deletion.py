"""The verdict on heat maps is given only where there is enough to tell by."""

from __future__ import annotations

import pytest

from fieldguide.report.deletion import DeletionTest
from fieldguide.report.intervals import Interval


@pytest.mark.parametrize(
    ("pictures", "in_favour", "verdict"),
    [(1, 1, None), (4, 4, None), (5, 5, True), (6, 6, True), (6, 5, False), (12, 10, True), (12, 2, False)],
)
def test_a_verdict_needs_pictures(pictures: int, in_favour: int, verdict: bool | None) -> None:
    found = DeletionTest(pictures, 0.3, 0.0, 0.3, Interval(0.3, 0.3), in_favour)
    assert found.matters is verdict
