"""Target (epsilon, delta) -> noise multiplier."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

from scipy.optimize import brentq

from privacy.accounting import Row, pld_epsilon, rdp_epsilon, rows_epsilon
from privacy.errors import CalibrationError

_SMALLEST, _LARGEST, _STEP = 0.2, 1e4, 1e-4
_TRIES = 20


@lru_cache(maxsize=256)
def calibrate_noise_multiplier(
    target_epsilon: float, target_delta: float, sample_rate: float, rounds: int, cut: tuple[int, int] | tuple[()] = ()
) -> float:
    """The least noise multiplier, rounded up to 1e-4, whose ``rounds``-fold composition stays within the target.

    RDP finds the neighbourhood cheaply (its epsilon is never smaller), PLD settles it. ``cut`` is (population, largest
    cohort) of a truncated Poisson sample; RDP then starts from the sample without a cut, whose epsilon is smaller.

    Raises:
        CalibrationError: the target is not positive, or no multiplier in [0.2, 10,000] reaches it.
    """
    if not (
        math.isfinite(target_epsilon)
        and target_epsilon > 0
        and 0 < target_delta < 1
        and 0 < sample_rate <= 1
        and rounds >= 1
    ):
        why = "epsilon must be positive, delta in (0, 1), the sample rate in (0, 1], rounds at least 1"
        raise _unreachable(target_epsilon, target_delta, why)

    plain = sample_rate == 1.0 and not cut  # a closed form: no grid to make finer

    def excess(z: float, interval: float | None = None) -> float:
        """log(spent / target) on a grid of losses; None: as the accountant reports it."""
        row: Row = (z, sample_rate, rounds, *cut)
        reported = interval is None or plain
        value = rows_epsilon((row,), target_delta) if reported else pld_epsilon((row,), target_delta, interval or 0.0)
        # 0 for much noise at a large delta, infinite beyond the accountants
        return math.log(min(max(value, 1e-300), 1e9) / target_epsilon)

    @lru_cache
    def excess_at(log_z: float, interval: float) -> float:
        return excess(math.exp(log_z), interval)

    # On coarser grids of losses first (they err upwards, hence towards enough noise), then on the accountant's own.
    coarse = min(0.02, max(1e-4, target_epsilon / 200.0))
    if excess(_LARGEST, coarse) > 0:
        raise _unreachable(target_epsilon, target_delta, f"even noise multiplier {_LARGEST:g} spends more")
    near = _root(excess_at, _by_rdp(target_epsilon, target_delta, sample_rate, rounds), 0.85, coarse)
    finer = max(1e-4, coarse / 10.0)
    near = _root(excess_at, near, 0.97, finer)
    slope = _slope(excess(near, finer), excess(near * math.exp(0.01), finer), 0.01)
    return _settled(excess, near, slope)


Excess = Callable[[float, float], float]  # (log of a multiplier, interval of the grid) -> log(spent / target)


def _root(excess: Excess, start: float, factor: float, interval: float) -> float:
    """The multiplier that meets the target on a grid; the smallest, or the largest, where the target lies beyond it."""
    high = start
    while high < _LARGEST and excess(math.log(high), interval) > 0:
        high = min(_LARGEST, high / factor)
    low = high
    while excess(math.log(low), interval) <= 0:
        if low == _SMALLEST:
            return _SMALLEST
        high, low = low, max(_SMALLEST, factor * low)
    if low == high:  # the largest, on this grid not enough by a hair
        return high
    return math.exp(brentq(excess, math.log(low), math.log(high), args=(interval,), xtol=1e-5, rtol=1e-5))


def _slope(here: float, there: float, log_ratio: float) -> float:
    """How fast log(epsilon) falls with the log of the multiplier; kept in an ordinary range."""
    return min(20.0, max(0.5, (here - there) / log_ratio))


def _settled(excess: Callable[[float], float], near: float, slope: float) -> float:
    """From a multiplier near the root to one on the grid of 1e-4 that fits, at most two steps above the least: secants."""
    z = _upwards(near)
    for _ in range(_TRIES):
        here = excess(z)
        aim = max(_SMALLEST, _upwards(z * math.exp(here / slope)))
        if here <= 0.0 and z - aim < 2.5 * _STEP:
            return z
        aim = aim if aim != z else _upwards(z + _STEP)
        slope = _slope(here, excess(aim), math.log(aim / z))
        z = aim
    while excess(z) > 0.0:
        z = _upwards(z + _STEP)
    return z


def _upwards(z: float) -> float:
    """On the grid of 1e-4, not below ``z`` (but for the last bits)."""
    return round(math.ceil(z / _STEP - 1e-6) * _STEP, 4)


def _by_rdp(target_epsilon: float, target_delta: float, sample_rate: float, rounds: int) -> float:
    """A multiplier that reaches the target by RDP, to 5 %; the largest allowed one where RDP cannot say."""
    low, high = _SMALLEST, _LARGEST
    if rdp_epsilon(((high, sample_rate, rounds),), target_delta) > target_epsilon:
        return high
    while high / low > 1.05:
        middle = math.sqrt(low * high)
        fits = rdp_epsilon(((middle, sample_rate, rounds),), target_delta) <= target_epsilon
        low, high = (low, middle) if fits else (middle, high)
    return high


def _unreachable(epsilon: float, delta: float, why: str) -> CalibrationError:
    return CalibrationError(
        f"No noise reaches epsilon={epsilon} at delta={delta}.",
        why[0].upper() + why[1:] + ".",
        "Ask for a larger target_epsilon, fewer rounds or a smaller sample_rate.",
    )
