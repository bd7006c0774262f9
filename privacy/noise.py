"""Gaussian noise for a clipped sum."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from privacy.errors import ParameterError
from privacy.rng import Stream


def gaussian_noise(stream: Stream, standard_deviation: float, dimension: int) -> npt.NDArray[np.float64]:
    """Independent N(0, standard_deviation^2) in every coordinate, shape [dimension].

    Guarantees: with ``standard_deviation = z * C`` added to a sum whose l2 sensitivity is C this is the Gaussian
    mechanism with noise multiplier z (Dwork and Roth 2014, appendix A), up to floating point: the noise is a
    double-precision number, not an integer, so the attack of Mironov (CCS 2012) on the low-order bits is not excluded.
    The event says ``noise: continuous`` for that reason.

    | case | result |
    |---|---|
    | standard_deviation 0 | zeros |
    | dimension 0 | empty array |
    | NaN, inf or negative | ParameterError |
    """
    if not math.isfinite(standard_deviation) or standard_deviation < 0:
        raise ParameterError(
            f"Noise with standard_deviation={standard_deviation} does not exist.",
            "It must be a finite number, zero or more.",
            "Check privacy.noise_multiplier and privacy.max_grad_norm.",
        )
    return standard_deviation * stream.gaussian(dimension)
