"""Calibration: enough noise, and hardly more."""

from __future__ import annotations

import math

import pytest

from privacy import calibration
from privacy.accounting import Rows, pld_epsilon, rows_epsilon
from privacy.calibration import calibrate_noise_multiplier
from privacy.errors import CalibrationError

TARGETS = [(1.0, 1e-5, 0.2, 20), (0.5, 1e-6, 1.0, 10), (0.5, 1e-5, 0.05, 50), (0.05, 1e-5, 1.0, 1)]


@pytest.mark.slow  # seconds
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_the_noise_fits_the_target_and_a_thousandth_less_does_not(target: tuple[float, float, float, int]) -> None:
    epsilon, delta, rate, rounds = target
    z = calibrate_noise_multiplier(*target)
    assert pld_epsilon(((z, rate, rounds),), delta) <= epsilon
    assert pld_epsilon(((z - 1e-3, rate, rounds),), delta) > epsilon
    assert z == round(z, 4)


def test_more_rounds_need_more_noise_and_a_larger_budget_less() -> None:
    base = calibrate_noise_multiplier(0.5, 1e-6, 1.0, 10)
    assert calibrate_noise_multiplier(0.5, 1e-6, 1.0, 12) > base
    assert calibrate_noise_multiplier(0.6, 1e-6, 1.0, 10) < base
    # sigma of the un-amplified Gaussian grows with the square root of the rounds
    assert calibrate_noise_multiplier(0.5, 1e-6, 1.0, 40) == pytest.approx(2 * base, rel=1e-3)


@pytest.mark.parametrize(
    "target",
    [
        pytest.param((0.0, 1e-5, 0.1, 10), id="epsilon 0"),
        pytest.param((-1.0, 1e-5, 0.1, 10), id="negative epsilon"),
        pytest.param((math.nan, 1e-5, 0.1, 10), id="epsilon NaN"),
        pytest.param((math.inf, 1e-5, 0.1, 10), id="epsilon inf"),
        pytest.param((1.0, 0.0, 0.1, 10), id="delta 0"),
        pytest.param((1.0, 1.0, 0.1, 10), id="delta 1"),
        pytest.param((1.0, math.nan, 0.1, 10), id="delta NaN"),
        pytest.param((1.0, 1e-5, 0.0, 10), id="rate 0"),
        pytest.param((1.0, 1e-5, 1.5, 10), id="rate above 1"),
        pytest.param((1.0, 1e-5, math.nan, 10), id="rate NaN"),
        pytest.param((1.0, 1e-5, 0.1, 0), id="no rounds"),
        pytest.param((1e-4, 1e-12, 1.0, 1000), id="more noise than the largest"),
    ],
)
def test_an_impossible_target_is_refused_with_a_code(target: tuple[float, float, float, int]) -> None:
    with pytest.raises(CalibrationError) as refusal:
        calibrate_noise_multiplier(*target)
    assert refusal.value.code == "FP411"


def test_a_delta_so_large_that_noise_spends_nothing_is_calibrated_too() -> None:
    z = calibrate_noise_multiplier(0.1, 0.2, 1.0, 1)
    assert pld_epsilon(((z, 1.0, 1),), 0.2) <= 0.1
    assert pld_epsilon(((z - 1e-3, 1.0, 1),), 0.2) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("target", [(2.0, 1e-5, 0.1, 40), (4.0, 1e-6, 0.02, 300), (1.0, 1e-5, 1.0, 50)], ids=str)
def test_the_accountants_own_grid_is_asked_a_few_times_alone(
    target: tuple[float, float, float, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is nearly all of the time: 0.8 s each at a rate of 0.001 and 10,000 rounds. And what it says last is what holds."""
    epsilon, delta, rate, rounds = target
    asked: list[float] = []

    def spy(rows: Rows, at: float) -> float:
        asked.append(rows[0][0])
        return rows_epsilon(rows, at)

    monkeypatch.setattr(calibration, "rows_epsilon", spy)
    z = calibrate_noise_multiplier.__wrapped__(*target)
    assert z in asked
    assert len(asked) <= 4 or rate == 1.0  # in closed form it costs nothing
    assert rows_epsilon(((z, rate, rounds),), delta) <= epsilon
    assert rows_epsilon(((round(z - 4e-4, 4), rate, rounds),), delta) > epsilon
