"""The cheapest sound codec for a plan: ring bits, grid, clamp, rotation; and the noise share that goes with it.

A finer grid costs bits, a coarser one costs noise: B/C in steps exceeds 1 by the rounding. The grid is made as coarse as
1.005 allows, in the least number of bits that keeps it below 1.02 while (nearly) nothing is ever clamped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from privacy.errors import ParameterError
from privacy.secagg.bounds import clamp_within, wrap_probability
from privacy.secagg.buckets import Buckets
from privacy.secagg.codec import FRACTION, LARGEST_ROTATION, Codec
from privacy.secagg.packing import BITS
from privacy.secagg.plan import Cohort, SecAggPlan
from privacy.secagg.sizing import LEAST_SIGMA, ShareNoise, sized_sigma
from privacy.units import PrivacyUnit

_AIM, _WORST = 1.005, 1.02  # of B / c
_FEWEST_STEPS = 16.0  # of the clipping norm: a grid is finer than that, also in few dimensions
_MOST_STEPS = 2.0 ** (31 - FRACTION) - 1
_FLAT = 6.0  # standard deviations of a rotated coordinate that fit below the clamp
WRAP = 1e-9  # probability per round that some coordinate of the sum wraps
ROUNDING = 2.0**-100  # beta of units inside a client: far below any delta, times e^epsilon of any budget


@dataclass(frozen=True)
class Sums:
    """What the codec is chosen for.

    Attributes:
        dimension: d.
        max_grad_norm: C.
        unit: what is clipped to C.
        largest_norm: R, the norm of one client's sum over C that is never clamped (1 for unit ``client``).
        clients: most members of a sum (n_inv).
        honest_shares: a, fewest honest noise shares in a sum.
        noise_multiplier: z against the worst sum.
    """

    dimension: int
    max_grad_norm: float
    unit: PrivacyUnit
    largest_norm: float
    clients: int
    honest_shares: int
    noise_multiplier: float


def make_plan(
    run: str,
    cohort: Cohort,
    *,
    dimension: int,
    max_grad_norm: float,
    unit: PrivacyUnit,
    largest_norm: float,
    noise_multiplier: float,
    buckets: int = 1,
) -> SecAggPlan:
    """A run's plan from what a recipe says; the noise is sized for the cohort's worst sum.

    ``cohort`` is that of one sum: with ``buckets`` above 1, of each bucket.

    ``largest_norm`` is the norm of one client's sum over ``max_grad_norm`` that is never clamped: the most units of a client
    whose rows may point one way (1 for unit ``client``). The booked event is ``plan.event``.

    Raises:
        ParameterError: no ring holds the sum, or a number is out of range.
    """
    sums = Sums(dimension, max_grad_norm, unit, largest_norm, cohort.largest, cohort.honest_shares, noise_multiplier)
    cut = Buckets(buckets, largest_norm) if buckets > 1 else Buckets()
    return SecAggPlan(run, *choose_codec(sums), cohort, cut)


def choose_codec(sums: Sums, *, bits: int | None = None, rotated: bool | None = None) -> tuple[Codec, ShareNoise]:
    """The codec with the smallest upload, and its noise; ``bits`` and ``rotated`` fix what they name.

    Raises:
        ParameterError: no ring of up to 32 bits holds the sum.
    """
    found = [(codec.upload_bytes, codec.rotated, codec, noise) for codec, noise in _sound(sums, bits, rotated)]
    if not found:
        raise ParameterError(
            f"No ring of {bits or 'up to 32'} bits holds the sum of {sums.clients} clients.",
            f"Dimension {sums.dimension}, noise multiplier {sums.noise_multiplier:g}, largest norm "
            f"{sums.largest_norm:g} x C over {sums.honest_shares} honest shares do not fit.",
            "Use fewer clients a cohort, less noise, or a smaller bound on a client's sum.",
        )
    _, _, codec, noise = min(found, key=lambda option: option[:2])
    return codec, noise


def _sound(sums: Sums, bits: int | None, rotated: bool | None) -> Iterator[tuple[Codec, ShareNoise]]:
    for rotate in (False, True) if rotated is None else (rotated,):
        if rotate and (sums.dimension - 1).bit_length() > LARGEST_ROTATION:
            continue
        for b in BITS if bits is None else (bits,):
            option = _finest(sums, b, rotate)
            if option is not None:
                yield option


def _finest(sums: Sums, bits: int, rotated: bool) -> tuple[Codec, ShareNoise] | None:
    """The aimed grid, or the finest one that the ring holds; None if that is too coarse."""
    _, steps = _turning(lambda c: _fine(sums, c, rotated, _AIM), 1.0, _MOST_STEPS)
    if _clamp(sums, steps, bits, rotated) is None:
        steps, _ = _turning(lambda c: _clamp(sums, c, bits, rotated) is None, 1.0, steps)
    clamp = _clamp(sums, steps, bits, rotated)
    if clamp is None or not _fine(sums, steps, rotated, _WORST):
        return None
    codec = _codec(sums, steps, bits, rotated, clamp)
    return codec, ShareNoise.sized(sums.noise_multiplier, codec.sensitivity2, sums.honest_shares, codec.coordinates)


def _turning(holds: Callable[[float], bool], low: float, high: float) -> tuple[float, float]:
    """Just below and just above the number of steps from which on a condition holds."""
    for _ in range(50):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if holds(middle) else (middle, high)
    return low, high


def _fine(sums: Sums, steps: float, rotated: bool, excess: float) -> bool:
    """True if the rounding is cheap and one noise share is wide enough on this grid."""
    codec = _codec(sums, steps, BITS[-1], rotated, 1)
    return steps >= _FEWEST_STEPS and _excess(codec) <= excess and (_sigma(sums, codec) or LEAST_SIGMA) >= LEAST_SIGMA


def _clamp(sums: Sums, steps: float, bits: int, rotated: bool) -> int | None:
    """The largest clamp without wrapping; None if it would clamp more than (nearly) no vector."""
    codec = _codec(sums, steps, bits, rotated, 1)
    clamp = clamp_within(bits, sums.clients, _sigma(sums, codec), codec.coordinates, WRAP)
    largest = sums.largest_norm * steps
    needed = _FLAT * largest / math.sqrt(codec.coordinates) + 1 if rotated else largest + 1
    return clamp if clamp >= needed else None


def _sigma(sums: Sums, codec: Codec) -> float:
    """Of one share, before it is rounded up."""
    return sized_sigma(sums.noise_multiplier, codec.sensitivity2, sums.honest_shares)


def _excess(codec: Codec) -> float:
    return math.sqrt(codec.sensitivity2) / codec.steps


def _codec(sums: Sums, steps: float, bits: int, rotated: bool, clamp: int) -> Codec:
    failure = 0.0 if sums.unit is PrivacyUnit.CLIENT else ROUNDING
    return Codec(sums.dimension, sums.max_grad_norm, steps, bits, rotated, clamp, sums.unit, failure)


def figures(codec: Codec, noise: ShareNoise, clients: int) -> dict[str, Any]:
    """What a plan prints about a codec.

    ``mean_error``: sqrt(E ||decoded mean - exact mean||^2) over C for ``clients`` clients, without clamping: rounding and
    noise; ``rounding_error`` is the part of the rounding.
    """
    step = 1 / codec.steps
    width = math.sqrt(codec.dimension)
    sigma = float(noise.sigma)
    return {
        "bits": codec.bits,
        "rotated": codec.rotated,
        "coordinates": codec.coordinates,
        "upload_bytes": codec.upload_bytes,
        "upload_vs_float32": codec.upload_bytes / (4 * codec.dimension),
        "steps": codec.steps,
        "sensitivity": math.sqrt(codec.sensitivity2),
        "sensitivity_over_clip": _excess(codec),
        "clamp": codec.clamp,
        "sigma_share": sigma,
        "effective_multiplier": noise.effective_multiplier,
        "wrap_probability": wrap_probability(codec.bits, clients, codec.clamp, sigma, codec.coordinates),
        "mean_error": step * width * math.sqrt((sigma**2 + 0.25) / clients),
        "rounding_error": step * width * math.sqrt(0.25 / clients),
    }
