"""Un-amplified Gaussian releases in closed form: no grid of losses, hence exact, and fast.

Adaptive releases with noise multipliers z_i and sensitivity C compose into one Gaussian release of sensitivity over
noise mu = sqrt(sum 1 / z_i^2), exactly (Dong, Roth and Su 2022, corollary 3.3). Its privacy profile is

    delta(eps) = Phi(mu / 2 - eps / mu) - exp(eps) Phi(-mu / 2 - eps / mu)

(Balle and Wang 2018, arXiv 1805.06530, theorem 8, equation 6). Both directions of the zero-out relation have this
profile. Everything here errs upwards: probabilities carry a relative error term above that of ``math.erfc``, and the
bisection returns its upper end. PLD is the oracle in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

_ERROR = 1e-12  # relative, above the error of erfc and exp in what follows (2e-13 at the largest argument)
_ASYMPTOTIC = 24.0  # from here on erfcx by its series, which is short of it by less than _ERROR
_TINY = 1e-300  # below it doubles lose their precision
_CLOSE = 1e-9
_ORDERS = (*(1 + x / 10 for x in range(1, 100)), *range(11, 65), 80, 96, 128, 192, 256, 512, 1024, 4096)


def composed_mu(gaussians: Iterable[tuple[float, int]]) -> float:
    """Sensitivity over noise of all of them together, rounded up; infinite where that is no number.

    Args:
        gaussians: (noise multiplier, how often).
    """
    try:
        return math.sqrt(math.fsum(n / z**2 for z, n in gaussians)) * (1 + 1e-15)
    except (ZeroDivisionError, OverflowError):
        return math.inf


def analytic_epsilon(mu: float, delta: float) -> float:
    """The least epsilon whose delta is at most ``delta``, rounded up by less than 1e-9 of itself.

    | case | result |
    |---|---|
    | mu 0, or so small that epsilon 0 has at most ``delta`` | 0.0 |
    | mu infinite, or delta below 1e-300 | inf |
    """
    if mu == 0.0 or analytic_delta(mu, 0.0) <= delta:
        return 0.0
    if mu == math.inf:
        return math.inf
    low, high = 0.0, mu
    while analytic_delta(mu, high) > delta:
        low, high = high, 2 * high
        if high == math.inf:
            return math.inf
    while high - low > _CLOSE * high:
        middle = (low + high) / 2
        low, high = (low, middle) if analytic_delta(mu, middle) <= delta else (middle, high)
    return high


def analytic_delta(mu: float, epsilon: float) -> float:
    """An upper bound of delta(epsilon), within 2e-12 of its larger term."""
    if mu == math.inf:
        return 1.0
    a, b = mu / 2 - epsilon / mu, mu / 2 + epsilon / mu
    first = math.erfc(-a / math.sqrt(2)) / 2
    # exp(eps) Phi(-b) without the overflow of exp: eps - b^2 / 2 = -a^2 / 2
    second = math.exp(-a * a / 2) * _erfcx(b / math.sqrt(2)) / 2
    return min(1.0, first * (1 + _ERROR) - second * (1 - _ERROR) + _TINY)


def _erfcx(x: float) -> float:
    """exp(x^2) erfc(x) for x >= 0; beyond ``_ASYMPTOTIC`` a partial sum that ends below it (Abramowitz-Stegun 7.1.23)."""
    if x < _ASYMPTOTIC:
        return math.exp(x * x) * math.erfc(x)
    term, total = 1.0, 0.0
    for k in range(1, 7):  # the sixth term is negative: what is left out is positive
        total += term
        term *= -(2 * k - 1) / (2 * x * x)
    return total / (x * math.sqrt(math.pi))


def gaussian_rdp_epsilon(mu: float, delta: float) -> float:
    """The same by Rényi divergences (order x mu^2 / 2), the least over a grid of orders: the cross-check.

    Conversion: Canonne, Kamath and Steinke 2020, proposition 12. Never below 0.
    """
    half = mu * mu / 2

    def at(order: float) -> float:
        return order * half + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)

    return max(0.0, min(map(at, _ORDERS)))
