"""The calibration error, and what of it is noise."""

from __future__ import annotations

import numpy as np
import pytest

from fieldguide.report.reliability import calibrate_check


def test_by_hand() -> None:
    found = calibrate_check(np.array([0.9, 0.9, 0.9, 0.9]), np.array([True, True, True, False]))
    assert found.ece == pytest.approx(0.15)
    assert found.brier == pytest.approx((3 * 0.01 + 0.81) / 4)
    assert [b.count for b in found.bins] == [0] * 9 + [4]
    assert found.brier_interval.low <= found.brier <= found.brier_interval.high


@pytest.mark.parametrize("count", [30, 300])
def test_perfect_probabilities_are_within_what_chance_gives(count: int) -> None:
    random, exceeded, errors, expected = np.random.default_rng(0), 0, [], []
    for _ in range(60):
        stated = random.uniform(0.3, 1, count)
        found = calibrate_check(stated, random.random(count) < stated)
        exceeded += found.ece > found.ece_by_chance_high
        errors.append(found.ece)
        expected.append(found.ece_by_chance)
    assert exceeded <= 10  # 3 of 60 are expected
    assert np.mean(errors) == pytest.approx(np.mean(expected), rel=0.15)


def test_overconfidence_exceeds_chance() -> None:
    random = np.random.default_rng(0)
    stated = random.uniform(0.8, 1, 300)
    found = calibrate_check(stated, random.random(300) < stated - 0.3)
    assert found.ece > found.ece_by_chance_high
    assert found.ece_interval.low > found.ece_by_chance


def test_a_long_table_takes_fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    from fieldguide.report import reliability

    asked: list[int] = []
    whole = reliability.bootstrap_interval

    def counted(count: int, figure: object, resamples: int, seed: int) -> object:
        asked.append(resamples)
        return whole(count, figure, resamples, seed)  # type: ignore[arg-type]

    monkeypatch.setattr(reliability, "bootstrap_interval", counted)
    monkeypatch.setattr(reliability, "PICTURES_DRAWN", 20_000)
    calibrate_check(np.full(100, 0.9), np.ones(100, bool))
    calibrate_check(np.full(1000, 0.9), np.ones(1000, bool))
    assert asked == [200, 200, 100, 100]
