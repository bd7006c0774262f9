"""What a round of secure aggregation gives: one noised sum, or one for each bucket, and the bounded rule that combines them.

All of it is post-processing of sums that were released already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from privacy.secagg.buckets import Vectors, trimmed_deviation, trimmed_mean
from privacy.secagg.errors import RoundAborted
from privacy.secagg.plan import SecAggPlan
from privacy.secagg.shares import NoisedShare, SecureSum, honest_norm, simulated_sum


@dataclass(frozen=True)
class BucketSum:
    """One bucket's sum, and how many clients the rule put in the bucket: a public constant, whoever answered."""

    total: SecureSum
    size: int


@dataclass(frozen=True)
class BucketSums:
    """The sums of one round's buckets, each with its noise in full. ``clients``: how many were invited, in all buckets."""

    buckets: tuple[BucketSum, ...]
    clients: int

    @property
    def survivors(self) -> tuple[int, ...]:
        """Who is in one of the sums."""
        return tuple(sorted(client for bucket in self.buckets for client in bucket.total.survivors))


Unmasked = SecureSum | BucketSums


def collected(plan: SecAggPlan, number: int, buckets: Sequence[BucketSum], clients: int) -> Unmasked:
    """What a round gave.

    Raises:
        RoundAborted: too few buckets came through for a lie to be outvoted; no step is taken with the others.
    """
    if len(buckets) < plan.least_buckets:
        raise too_few_buckets(plan, number, len(buckets))
    return buckets[0].total if plan.buckets.count == 1 else BucketSums(tuple(buckets), clients)


def too_few_buckets(plan: SecAggPlan, number: int, left: int) -> RoundAborted:
    """The one reason why a round of buckets ends early."""
    return RoundAborted(
        f"Round {number} is aborted.",
        f"{left} of {plan.buckets.count} buckets came through; against {plan.trimmed} liars it takes {plan.least_buckets}.",
        "The event stays booked. Go on with a new round number.",
    )


def robust_sum(plan: SecAggPlan, sums: BucketSums) -> tuple[Vectors, float]:
    """The estimate of the sum over all clients, shape [d], and the deviation of its noise per coordinate.

    Each bucket's sum is cut back to the norm that its clients can reach with their noise (``honest_norm``), divided by
    the public size of the bucket, and put through a trimmed mean without the ``plan.trimmed`` largest and smallest values
    of each coordinate; times the number of clients. With one or two buckets nothing can be trimmed: the mean.

    | case | result |
    |---|---|
    | at most ``plan.trimmed`` buckets hold liars | each coordinate lies between two honest buckets' values |
    | more of them | bounded by the cut alone |
    | a bucket that was aborted | left out; its clients count as the others do on average |
    """
    means = np.stack([_cut_back(plan, bucket.total) / bucket.size for bucket in sums.buckets])
    variance = np.mean([(bucket.total.noise_std / bucket.size) ** 2 for bucket in sums.buckets])
    deviation = float(variance) ** 0.5 * trimmed_deviation(len(means), plan.trimmed)
    return trimmed_mean(means, plan.trimmed) * sums.clients, deviation * sums.clients


def _cut_back(plan: SecAggPlan, total: SecureSum) -> Vectors:
    norm = float(np.linalg.norm(total.integers.astype(np.float64)))
    most = honest_norm(plan, len(total.survivors), plan.buckets.largest_norm)
    return total.value if norm <= most else total.value * (most / norm)


def simulated_round(
    plan: SecAggPlan, number: int, invited: Sequence[int], shares: Mapping[int, NoisedShare]
) -> Unmasked:
    """What the same round gives under masks, bit for bit; see ``simulated_sum``.

    Raises:
        RoundAborted: too few shares, in all or in too many buckets.
    """
    found = []
    for bucket in plan.split(number, invited):
        own = {client: shares[client] for client in bucket if client in shares}
        if len(own) >= plan.cohort.least:
            found.append(BucketSum(simulated_sum(plan, own), len(bucket)))
        elif plan.buckets.count == 1:
            why = f"{len(own)} clients answered; the plan asks for {plan.cohort.least} or more."
            raise RoundAborted(f"Round {number} is aborted.", why, "The event stays booked.")
    return collected(plan, number, found, len(invited))
