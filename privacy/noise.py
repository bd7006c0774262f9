"""Discrete Gaussian noise on the integers, from tables of 256-bit thresholds and a CSPRNG.

N_Z(0, s^2) has probability proportional to exp(-k^2 / 2 s^2) at every integer k (Canonne, Kamath and Steinke, NeurIPS
2020, definition 1). Integers have no low-order bits to attack (Mironov, CCS 2012). What separates the sampler from the
exact law is the total variation that ``DiscreteGaussian.total_variation`` bounds; events book it in delta.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from privacy.errors import ParameterError

LARGEST_SIGMA = 2.0**40  # 19 of them stay below 2^53, where every integer is a double-precision number
_BITS = 256  # of a threshold; a draw compares the first 64, and the rest on a tie
_GUARD = 128  # more bits while the table is built
_TAIL = 19  # sigmas; beyond them lies less than exp(-19^2 / 2) < 2^-256
_DIRECT = 256  # largest sigma with a table of its own
_SPREAD = 4  # sigma of the fine part in steps of the coarse one; see ``eta``


class Words(Protocol):
    """A source of random bits, for example ``privacy.rng.Stream``."""

    def words(self, n: int) -> npt.NDArray[np.uint64]:
        """``n`` independent uniform 64-bit words, shape [n]."""


def sample(sigma: float | Fraction, size: int, bits: Words) -> npt.NDArray[np.int64]:
    """Independent N_Z(0, sigma^2) in steps of the grid, shape [size].

    Guarantees: each draw is within ``DiscreteGaussian.of(sigma).total_variation`` (below 2^-230) of the exact law.

    | case | result |
    |---|---|
    | size 0 | empty array |
    | sigma 0 | zeros |
    | sigma NaN, inf, negative, or above 2^40 | ParameterError |
    """
    return DiscreteGaussian.of(sigma).sample(size, bits)


def eta(r: float) -> float:
    """How far sum over integers k of exp(-(k - x)^2 / 2 r^2) depends on x: within a factor 1 +- eta(r) of a constant.

    Poisson summation: eta(r) = 2 sum over j >= 1 of exp(-2 pi^2 r^2 j^2), here bounded by a geometric series.

    | r | 1 | 2 | 3 | 4 |
    |---|---|---|---|---|
    | eta | 5.4e-9 | 1.1e-34 | 1.3e-77 | 6.3e-137 |
    """
    first = math.exp(-2.0 * math.pi**2 * r * r)
    return 2.0 * first / (1.0 - first)


class DiscreteGaussian:
    """The sampler of one variance; ``of`` and ``of_variance`` keep the last ones.

    Up to sigma 256 a draw is a search in one table. Above, X = a X1 + X2 with discrete Gaussians X1 of variance
    (s^2 - s2^2) / a^2 and X2 of s2 = 4 a: P(X = x) is exp(-x^2 / 2 s^2) times a sum over integers of a Gaussian of
    width r, r^-2 = s1^-2 + 16^-1, so X has the law of N_Z(0, s^2) up to a factor (1 + eta(r)) / (1 - eta(r)) (Peikert,
    CRYPTO 2010; Micciancio and Walter, CRYPTO 2017). X1 is drawn in the same way until it fits a table.
    """

    def __init__(self, variance: Fraction) -> None:
        sigma = math.sqrt(variance)
        self._stretch = min(_DIRECT // _SPREAD, math.isqrt(int(sigma)) // 2)
        self._coarse: DiscreteGaussian | None = None
        if sigma <= _DIRECT:
            self._fine = _table(variance)
            self.total_variation = self._fine.total_variation
            return
        fine = Fraction((_SPREAD * self._stretch) ** 2)
        coarse = (variance - fine) / self._stretch**2
        self._fine, self._coarse = _table(fine), DiscreteGaussian.of_variance(coarse)
        wobble = eta(1.0 / math.sqrt(1.0 / float(coarse) + 1.0 / _SPREAD**2))
        self.total_variation = self._fine.total_variation + self._coarse.total_variation + 2.0 * wobble

    @staticmethod
    def of(sigma: float | Fraction) -> DiscreteGaussian:
        """The sampler of a standard deviation, in steps of the grid.

        Raises:
            ParameterError: not in [0, 2^40].
        """
        if not 0.0 <= sigma <= LARGEST_SIGMA:  # so written, NaN is refused too
            raise _no_noise(float(sigma))
        return DiscreteGaussian.of_variance(Fraction(sigma) ** 2)

    @staticmethod
    def of_variance(variance: Fraction) -> DiscreteGaussian:
        """The sampler of an exact variance, in squared steps.

        Raises:
            ParameterError: not in [0, 2^80].
        """
        if not 0 <= variance <= int(LARGEST_SIGMA) ** 2:
            raise _no_noise(float(variance) ** 0.5 if variance >= 0 else math.nan)
        return _sampler(variance)

    def sample(self, size: int, bits: Words) -> npt.NDArray[np.int64]:
        """``size`` independent draws, shape [size]."""
        fine = self._fine.sample(size, bits)
        return fine if self._coarse is None else fine + self._stretch * self._coarse.sample(size, bits)


@lru_cache(maxsize=64)
def _sampler(variance: Fraction) -> DiscreteGaussian:
    return DiscreteGaussian(variance)


class _Table:
    """P(X <= k) for k from -K to K - 1, in 256 bits: inversion of the cumulative distribution."""

    def __init__(self, variance: Fraction) -> None:
        self._last = math.ceil(_TAIL * math.sqrt(variance))
        self.thresholds = _thresholds(variance, self._last)
        shift = _BITS - 64
        self._high = np.array([t >> shift for t in self.thresholds], dtype=np.uint64)
        # Each threshold is off by less than 1.5 x 2^-256, each probability by twice that; then what lies beyond the tail.
        self.total_variation = (3 * self._last + 2) * 2.0**-_BITS + 2.0**-_BITS if variance else 0.0

    def sample(self, size: int, bits: Words) -> npt.NDArray[np.int64]:
        if not self._last:
            return np.zeros(size, dtype=np.int64)
        words = bits.words(size)
        index = np.searchsorted(self._high, words, side="left")
        for i in np.flatnonzero(self._high[np.minimum(index, len(self._high) - 1)] == words):
            number = int(words[i])  # a tie in 64 bits: the other 192 decide
            for low in bits.words(_BITS // 64 - 1):
                number = number << 64 | int(low)
            index[i] = bisect_right(self.thresholds, number)
        return index - self._last


@lru_cache(maxsize=64)
def _table(variance: Fraction) -> _Table:
    return _Table(variance)


def _thresholds(variance: Fraction, last: int) -> list[int]:
    """floor(2^256 P(X <= k)) for k = -last .. last - 1, X restricted to [-last, last].

    Fixed point with 384 bits. w(k+1) = w(k) q^(2k+1) with q = exp(-1 / 2 s^2): every product is rounded down by less
    than 2^-384, so after k steps w(k) is off by less than k^2 2^-384, and a threshold by less than 2^-340 before its
    own rounding.
    """
    if not last:
        return []
    one = 1 << (_BITS + _GUARD)
    with localcontext() as context:
        context.prec = 130
        exponent = -Decimal(variance.denominator) / Decimal(2 * variance.numerator)
        q = int(exponent.exp() * one)
    square, ratio, weight = q * q // one, q, one
    weights = [weight]
    for _ in range(last):
        weight = weight * ratio >> (_BITS + _GUARD)
        ratio = ratio * square >> (_BITS + _GUARD)
        weights.append(weight)
    total = weights[0] + 2 * sum(weights[1:])
    below, thresholds = 0, []
    for k in range(-last, last):
        below += weights[abs(k)]
        thresholds.append((below << _BITS) // total)
    return thresholds


def _no_noise(sigma: float) -> ParameterError:
    return ParameterError(
        f"Noise of standard deviation {sigma:g} steps does not exist.",
        "It must be a number from 0 to 2^40 steps of the grid.",
        "Check privacy.noise_multiplier and privacy.max_grad_norm.",
    )
