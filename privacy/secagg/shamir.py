"""Shamir's secret sharing (CACM 1979) over the Mersenne prime 2^521 - 1, in Python integers.

A secret of up to 64 bytes is the constant term of a polynomial of degree t - 1 with uniform coefficients; the share of
x is its value there. Any t shares give the secret, any t - 1 are uniform and independent of it.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence

from privacy.errors import ParameterError

PRIME = (1 << 521) - 1
SHARE_BYTES = 66
SECRET_BYTES = 32


def split(secret: bytes, threshold: int, points: Sequence[int]) -> dict[int, bytes]:
    """Shares of a 32-byte secret, one per point; 66 bytes each.

    Args:
        threshold: how many shares rebuild it, from 2 to the number of points.
        points: distinct integers in [1, PRIME).

    Raises:
        ParameterError: another length of the secret, a threshold out of range, points that repeat or are not in range.
    """
    distinct = set(points)
    if len(secret) != SECRET_BYTES or not 2 <= threshold <= len(points) or len(distinct) != len(points):
        raise ParameterError(
            f"{len(secret)} bytes cannot be shared {threshold}-of-{len(points)}.",
            "A secret has 32 bytes, the threshold lies between 2 and the number of distinct points.",
            "Check threshold and cohort of the plan.",
        )
    if not all(0 < x < PRIME for x in distinct):
        raise ParameterError(
            "A share at 0 would be the secret itself.", "Points lie in [1, p).", "Number clients from 0."
        )
    coefficients = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return {x: _evaluate(coefficients, x).to_bytes(SHARE_BYTES, "big") for x in points}


def _evaluate(coefficients: Sequence[int], x: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):  # Horner
        value = (value * x + coefficient) % PRIME
    return value


class Interpolation:
    """Lagrange coefficients at 0 for one set of points, computed once and used for every secret."""

    def __init__(self, points: Collection[int]) -> None:
        """``points``: distinct, not zero."""
        self.points = tuple(sorted(points))
        self._coefficients = {x: self._coefficient(x) for x in self.points}

    def _coefficient(self, x: int) -> int:
        numerator = denominator = 1
        for other in self.points:
            if other != x:
                numerator = numerator * other % PRIME
                denominator = denominator * (other - x) % PRIME
        return numerator * pow(denominator, -1, PRIME) % PRIME

    def secret(self, shares: Mapping[int, bytes]) -> bytes | None:
        """The secret that the shares of exactly these points give; None if it is none of 32 bytes (a bad share)."""
        total = 0
        for x in self.points:
            total += self._coefficients[x] * int.from_bytes(shares[x], "big")
        total %= PRIME
        return total.to_bytes(SECRET_BYTES, "big") if total < 1 << (8 * SECRET_BYTES) else None
