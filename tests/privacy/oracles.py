"""Slow, obvious counterparts of fast formulas; nothing here is imported by the package."""

from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from privacy.clipping import grid_step
from privacy.events import GaussianEvent
from privacy.mechanism import LOG_RATIO, TOTAL_VARIATION
from privacy.noise import DiscreteGaussian, Words


class Bits:
    """Exact uniform integers below any bound, by rejection, from 64-bit words."""

    def __init__(self, words: Words) -> None:
        self._words, self._buffer = words, list[int]()

    def below(self, bound: int) -> int:
        length = max(1, -(-bound.bit_length() // 64))
        while True:
            number = 0
            for _ in range(length):
                if not self._buffer:
                    self._buffer = [int(w) for w in self._words.words(4096)]
                number = number << 64 | self._buffer.pop()
            if number < (1 << (64 * length)) // bound * bound:
                return number % bound

    def bernoulli(self, p: Fraction) -> bool:
        return self.below(p.denominator) < p.numerator


def bernoulli_exp(gamma: Fraction, bits: Bits) -> bool:
    """True with probability exp(-gamma): Canonne, Kamath and Steinke 2020, algorithm 1."""
    while gamma > 1:
        if not bernoulli_exp(Fraction(1), bits):
            return False
        gamma -= 1
    k = 1
    while bits.bernoulli(gamma / k):
        k += 1
    return k % 2 == 1


def discrete_laplace(scale: int, bits: Bits) -> int:
    """P(x) proportional to exp(-|x| / scale): algorithm 2 with s = 1."""
    while True:
        u = bits.below(scale)
        if not bernoulli_exp(Fraction(u, scale), bits):
            continue
        v = 0
        while bernoulli_exp(Fraction(1), bits):
            v += 1
        x, negative = u + scale * v, bits.bernoulli(Fraction(1, 2))
        if not (negative and x == 0):
            return -x if negative else x


def discrete_gaussian_by_rejection(variance: Fraction, n: int, words: Words) -> npt.NDArray[np.int64]:
    """Exact draws of N_Z(0, variance): algorithm 3. About 20 microseconds a draw and more."""
    bits, scale, draws = Bits(words), int(variance**0.5) + 1, list[int]()
    while len(draws) < n:
        y = discrete_laplace(scale, bits)
        if bernoulli_exp((abs(y) - variance / scale) ** 2 / (2 * variance), bits):
            draws.append(y)
    return np.array(draws, dtype=np.int64)


def discrete_gaussian_cdf(variance: Fraction, last: int, digits: int = 110) -> list[Decimal]:
    """P(X <= k) for k = -last .. last - 1 of N_Z restricted to [-last, last], every weight by its own exponential."""
    with localcontext() as context:
        context.prec = digits
        s2 = Decimal(variance.numerator) / Decimal(variance.denominator)
        weights = [(-(Decimal(k) ** 2) / (2 * s2)).exp() for k in range(-last, last + 1)]
        total, below, cdf = sum(weights), Decimal(0), []
        for weight in weights[:-1]:
            below += weight
            cdf.append(below / total)
    return cdf


def discrete_gaussian_pmf(variance: float, values: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Probabilities of N_Z at the values, in double precision."""
    last = int(20 * variance**0.5) + 2
    weights = np.exp(-(np.arange(-last, last + 1, dtype=np.float64) ** 2) / (2 * variance))
    result: npt.NDArray[np.float64] = np.exp(-(values.astype(np.float64) ** 2) / (2 * variance)) / weights.sum()
    return result


def grid_noise(words: Words, standard_deviation: float, bound: float, dimension: int) -> npt.NDArray[np.float64]:
    """The noise of a mechanism in real units: N_Z of variance (standard_deviation / step)^2 + 3^2, times the step."""
    step = grid_step(bound, dimension)
    variance = (Fraction(standard_deviation) / Fraction(step)) ** 2 + 9
    return DiscreteGaussian.of_variance(variance).sample(dimension, words) * step


def discrete(z: float, q: float) -> GaussianEvent:
    """The event of a (sampled) release on the grid."""
    return GaussianEvent(z, q, "discrete", LOG_RATIO, TOTAL_VARIATION)
