"""What one client hands to the masks: its rounded integers plus its noise share. The only way to it is ``make_share``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privacy.errors import MechanismMisuseError
from privacy.noise import DiscreteGaussian
from privacy.rng import RandomSource
from privacy.secagg.codec import GridSum, Integers
from privacy.secagg.packing import Ring, centred, word
from privacy.secagg.plan import SecAggPlan

_CHUNK = 1 << 16  # coordinates


@dataclass(frozen=True)
class NoisedShare:
    """A client's vector in the ring, with its noise share inside. Not masked yet: it has no serialiser.

    By itself it carries only 1/a of the noise's variance; it may leave the client only under its masks.
    """

    value: Ring
    round: int
    plan: bytes

    def __reduce__(self) -> str | tuple[object, ...]:
        raise MechanismMisuseError(
            "A noise share cannot be pickled or copied out of the process.",
            "It is not masked yet.",
            "Seal it with SecAggClient.seal.",
        )


def make_share(plan: SecAggPlan, units: GridSum, round_number: int, client: int, rng: RandomSource) -> NoisedShare:
    """Round, add N_Z(0, sigma^2) in every coordinate, reduce into the ring.

    Guarantees: see ``Codec`` (sensitivity) and ``ShareNoise`` (noise). An empty sample gives a share like any other.

    Args:
        plan: the run's plan.
        units: the client's clipped units, made by ``plan.codec.sum_units``.
        round_number: the round; its rotation is the same for all clients.
        client: the client's number, a label of its random streams.
        rng: dither and noise come from streams of their own.
    """
    labels = {"round": round_number, "client": client}
    value = plan.codec.round(units, rng.stream("dither", **labels), plan.rotation_key(round_number))
    if plan.noise.sigma:
        noise, stream = DiscreteGaussian.of(plan.noise.sigma), rng.stream("noise", **labels)
        for start in range(0, len(value), _CHUNK):
            part = value[start : start + _CHUNK]
            part += noise.sample(len(part), stream).astype(np.int32)  # wraps, as the ring does
    unsigned = value.view(np.uint32)
    return NoisedShare(unsigned if plan.codec.bits > 16 else unsigned.astype("<u2"), round_number, plan.digest)


@dataclass(frozen=True)
class SecureSum:
    """The unmasked sum over the survivors of one round: noised, may be read by anyone.

    Attributes:
        round: its round.
        integers: in steps of the grid, shape [coordinates].
        value: decoded, shape [d].
        noise_std: of the noise in every coordinate of ``value``, if all survivors added theirs.
        survivors: who is in it.
    """

    round: int
    integers: Integers
    value: npt.NDArray[np.float64]
    noise_std: float
    survivors: tuple[int, ...]


def decoded_sum(plan: SecAggPlan, total: Ring, round_number: int, survivors: tuple[int, ...]) -> SecureSum:
    """A ring vector without masks -> the released sum."""
    integers = centred(total, plan.codec.bits)
    value = plan.codec.decode(integers, plan.rotation_key(round_number))
    step = plan.codec.max_grad_norm / plan.codec.steps
    return SecureSum(round_number, integers, value, step * plan.noise.variance_of(len(survivors)) ** 0.5, survivors)


def implausible(plan: SecAggPlan, total: SecureSum, largest_norm: float) -> bool:
    """True if no sum of clients that run the codec looks like this, up to a false alarm of e^-25; post-processing.

    n clients of norm at most R c + sqrt D each, and noise whose squared norm exceeds n sigma^2 (D + 2 sqrt(D x) + 2 x)
    with probability at most e^-x (sub-Gaussian vectors; Hsu, Kakade and Zhang 2012). It catches gross values only: a liar
    can still shift the sum by about n R C.
    """
    return bool(
        np.linalg.norm(total.integers.astype(np.float64)) > honest_norm(plan, len(total.survivors), largest_norm)
    )


def honest_norm(plan: SecAggPlan, clients: int, largest_norm: float) -> float:
    """Norm in steps that a sum of so many honest clients exceeds with probability at most e^-25; see ``implausible``."""
    d = plan.codec.coordinates
    honest = clients * (largest_norm * plan.codec.steps + d**0.5)
    noise = (plan.noise.variance_of(clients) * (d + 10 * d**0.5 + 50)) ** 0.5
    return float(honest + noise)


def simulated_sum(plan: SecAggPlan, shares: dict[int, NoisedShare]) -> SecureSum:
    """The same sum without cryptography, bit for bit, for simulations in one process; no privacy against that process.

    Raises:
        MechanismMisuseError: no share, fewer than the least cohort, or shares of different rounds or plans.
    """
    rounds = {share.round for share in shares.values()}
    if len(shares) < plan.cohort.least or len(rounds) != 1 or {s.plan for s in shares.values()} != {plan.digest}:
        raise MechanismMisuseError(
            f"{len(shares)} shares of rounds {sorted(rounds)} make no sum.",
            f"It takes at least {plan.cohort.least} shares of one round and one plan.",
            "Abort the round; nothing was released.",
        )
    total = np.zeros(plan.codec.coordinates, dtype=word(plan.codec.bits))
    for share in shares.values():
        total += share.value
    return decoded_sum(plan, total, rounds.pop(), tuple(sorted(shares)))
