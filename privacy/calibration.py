"""Target (epsilon, delta) -> noise multiplier."""

from __future__ import annotations

import math
from functools import lru_cache

from scipy.optimize import brentq

from privacy.accounting import Row, pld_epsilon, rdp_epsilon
from privacy.errors import CalibrationError

_SMALLEST, _LARGEST, _STEP = 0.2, 1e4, 1e-4


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

    @lru_cache
    def excess_pld(log_z: float, interval: float = 1e-4) -> float:
        row: Row = (math.exp(log_z), sample_rate, rounds, *cut)
        spent = pld_epsilon((row,), target_delta, interval)
        return math.log(max(spent, 1e-300) / target_epsilon)  # enough noise at a large delta spends nothing

    def bracket(high: float, factor: float, interval: float) -> tuple[float, float]:
        """(too little noise, enough noise) around the root; both the smallest multiplier where that is enough."""
        while high < _LARGEST and excess_pld(math.log(high), interval) > 0:
            high = min(_LARGEST, high / factor)
        if excess_pld(math.log(high), interval) > 0:
            raise _unreachable(target_epsilon, target_delta, f"even noise multiplier {_LARGEST:g} spends more")
        low = high
        while excess_pld(math.log(low), interval) <= 0:
            if low == _SMALLEST:
                return _SMALLEST, _SMALLEST
            high, low = low, max(_SMALLEST, factor * low)
        return low, high

    def root(low: float, high: float, interval: float) -> float:
        if low == high:
            return low
        ends = math.log(low), math.log(high)
        return math.exp(brentq(excess_pld, *ends, args=(interval,), xtol=1e-5, rtol=1e-5))

    # On a coarse grid of losses first (it errs upwards, hence enough noise), then between its root and a little less.
    coarse = min(0.02, max(1e-4, target_epsilon / 200.0))
    near = root(*bracket(_by_rdp(target_epsilon, target_delta, sample_rate, rounds), 0.85, coarse), coarse)
    exact = root(*bracket(near, 0.99, 1e-4), 1e-4)
    z = max(_SMALLEST, round(math.ceil(exact / _STEP) * _STEP, 4))
    while pld_epsilon(((z, sample_rate, rounds, *cut),), target_delta) > target_epsilon:
        z = round(z + _STEP, 4)
    return z


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
