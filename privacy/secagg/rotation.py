"""The Walsh-Hadamard transform of integers, exactly: products with small +-1 matrices in 64-bit floats.

All partial sums are integers below 2^53, so every order of summation gives the same bits; BLAS is free to choose one.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from privacy.rng import Stream

Vector = npt.NDArray[np.float64]
_DIGIT = 5  # bits per factor: matrices of 32 x 32
LARGEST_SUM = 2**53


@lru_cache(maxsize=8)
def _matrix(bits: int) -> Vector:
    matrix = np.ones((1, 1))
    for _ in range(bits):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def hadamard(vector: Vector) -> Vector:
    """H x for the Hadamard matrix of order D = 2^k (entries +-1, H H = D I), shape [D].

    An index is read as digits of five bits; one product transforms the leading digit and moves it to the end.
    """
    left = len(vector).bit_length() - 1
    x = vector
    while left > 0:
        bits = min(_DIGIT, left)
        x = (x.reshape(1 << bits, -1).T @ _matrix(bits)).ravel()
        left -= bits
    return x


def signs(key: bytes, dimension: int) -> npt.NDArray[np.int8]:
    """Public random signs of one round, the same for all clients, shape [dimension]."""
    octets = Stream(key).words((dimension + 63) // 64).astype("<u8").view(np.uint8)
    return (2 * np.unpackbits(octets, count=dimension).astype(np.int8) - 1).astype(np.int8)
