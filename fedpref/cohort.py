"""Trust `distributed` from a recipe: cohort bounds, codec and noise; who is asked in which round; what a client pays."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedpref.config import Recipe
from fedpref.errors import UnsupportedPlanError
from privacy.secagg.buckets import price
from privacy.secagg.choice import figures, make_plan
from privacy.secagg.messages import ENTRY, REVEALED
from privacy.secagg.plan import Cohort, Consistency, SecAggPlan
from privacy.units import PrivacyUnit, Trust

LEAST_SHARE = 0.9  # of a cohort, where the recipe does not say
_UNCLOSED = 5  # one round in so many may lack a closure: aborted rounds, restarts, rounds that a client slept through
# Measured on 2 cores of an x86-64 virtual machine, in CPU seconds: a node's trips with journal, and benchmarks/secagg.py.
_PER_ROUND, _PER_MEMBER, _PER_COORDINATE, _PER_PAD = 3.6e-3, 5.7e-4, 1.7e-7, 7.0e-10
_UP, _DOWN, _KEYS, _AGREED = 1800, 1060, 476, 320  # bytes of heads and signatures in a round; of a member's


def cohort_size(recipe: Recipe) -> int:
    """Most clients of one round, in all buckets."""
    f, p = recipe.federation, recipe.privacy
    capped = round(p.sample_rate * f.num_units) if p.sampling == "capped" else None
    return capped or f.clients_per_round or f.partition.num_clients or 2


def cohort_of(recipe: Recipe, buckets: int | None = None) -> Cohort:
    """n_inv, n_min = threshold, colluders: of one sum, that is of each bucket. All colluders may be in one bucket.

    Args:
        recipe: of the run.
        buckets: another number of them than the recipe's, to compare.

    Raises:
        ParameterError: no safe cohort; the text says which numbers would be.
    """
    f, p = recipe.federation, recipe.privacy
    size, count = cohort_size(recipe), buckets or f.num_buckets
    largest = math.ceil(size / count)
    least = (f.min_clients_per_round or 0) // count or math.ceil(LEAST_SHARE * (size // count))
    # Who is asked now and then never sees the closure of its own last round; the noise is sized for that (folded).
    unclosed = max(2, f.num_rounds // _UNCLOSED, p.max_participations or 0)
    return Cohort(largest, least, least, p.colluders, Consistency(p.consistency), unclosed)


def secagg_plan(
    recipe: Recipe,
    noise_multiplier: float,
    bound: float,
    dimension: int,
    run: str,
    *,
    largest_norm: float | None = None,
    buckets: int | None = None,
) -> SecAggPlan:
    """Codec and noise for a run; the noise is sized for the worst sum that can be unmasked.

    ``largest_norm``: of one client's sum over ``bound``, and ``buckets``, if they are not those of a round of training.

    Raises:
        ParameterError: no safe cohort, or no ring holds the sum.
    """
    count = buckets or recipe.federation.num_buckets
    cohort, p = cohort_of(recipe, count), recipe.privacy
    return make_plan(
        run,
        cohort,
        dimension=dimension,
        max_grad_norm=bound,
        # A client's update is rounded as a user's row is: once more than its own sum would need, and never less noise.
        unit=PrivacyUnit.USER if p.unit is PrivacyUnit.CLIENT else p.unit,
        largest_norm=largest_norm or _largest_norm(recipe),
        noise_multiplier=noise_multiplier,
        buckets=count,
    )


def _largest_norm(recipe: Recipe) -> float:
    """R: units of one client that are drawn in one round and may all point one way; beyond it a sum is clamped."""
    p = recipe.privacy
    if p.sampling == "capped":
        return 1.0
    drawn = p.sample_rate * recipe.federation.num_units / cohort_size(recipe)
    return drawn + 6.0 * math.sqrt(drawn) + 3.0


def invited(recipe: Recipe, clients: Sequence[str], round_number: int) -> tuple[int, ...]:
    """Who is asked in a round: everybody; under `capped` the next ones of a public order that is new after every pass.

    In one pass every client is asked once at most, so after ``cap`` passes nobody was asked more often.
    """
    if recipe.privacy.sampling != "capped":
        return tuple(range(len(clients)))
    size = cohort_size(recipe)
    number, place = divmod(round_number - 1, len(clients) // size)
    order = sorted(range(len(clients)), key=lambda i: hashlib.sha256(f"cohort:{number}:{clients[i]}".encode()).digest())
    return tuple(sorted(order[place * size : (place + 1) * size]))


def check_cohort(recipe: Recipe, clients: Sequence[str]) -> None:
    """The clients that there really are fit the plan.

    Raises:
        UnsupportedPlanError: too many for one round, too few for the least cohort, or too few for the participations.
    """
    if recipe.privacy.trust is not Trust.DISTRIBUTED:
        return
    cohort, n, p = cohort_of(recipe), len(clients), recipe.privacy
    size, count = cohort_size(recipe), recipe.federation.num_buckets
    if p.sampling == "capped":
        passes = math.inf if n < size else math.ceil(recipe.federation.num_rounds / (n // size))
        if passes > (p.max_participations or 0):
            raise UnsupportedPlanError(
                f"{n} clients do not fill {recipe.federation.num_rounds} rounds of {size}.",
                f"Each takes part {p.max_participations} times at most (privacy.max_participations).",
                "Lower federation.num_rounds or privacy.sample_rate, or allow more participations (and more noise).",
            )
    elif not cohort.least * count <= n <= size:
        raise UnsupportedPlanError(
            f"{n} clients, but a round takes {cohort.least * count} to {size}.",
            "Under trust `distributed` all clients take part in every round, and the noise is sized for these bounds.",
            "Set federation.clients_per_round to the number of clients.",
        )


@dataclass(frozen=True)
class BucketFigures:
    """What cutting a round's clients into buckets gives and costs.

    Attributes:
        count: B.
        liars_outvoted: lying clients that cannot move the result beyond honest buckets' values.
        fewest_buckets: that must come through in a round.
        noise_factor: deviation of the result's noise over that of one sum, at the same epsilon.
    """

    count: int
    liars_outvoted: int
    fewest_buckets: int
    noise_factor: float

    @classmethod
    def of(cls, recipe: Recipe, plan: SecAggPlan) -> BucketFigures:
        """From the plan, and from the one that the recipe would have with one sum."""
        factor = price(
            cohort_of(recipe, 1).honest_shares, plan.cohort.honest_shares, plan.buckets.count, plan.cohort.colluders
        )
        return cls(plan.buckets.count, plan.trimmed, plan.least_buckets, round(factor, 3))


@dataclass(frozen=True)
class SecureCosts:
    """What secure aggregation costs one client over a run, at full attendance."""

    trips: int
    bytes_up: int
    bytes_down: int
    cpu_seconds: float
    participations: int
    buckets: BucketFigures | None = None

    @classmethod
    def of(cls, recipe: Recipe, plan: SecAggPlan, dimension: int, rounds: int | None = None) -> SecureCosts:
        """From the plan's sizes: per round keys, shares, vector, unmasking; the parameters down.

        ``rounds``: if not those of the training.
        """
        n, d = plan.cohort.largest, plan.codec.coordinates
        rounds = recipe.federation.num_rounds if rounds is None else rounds
        strict = plan.cohort.consistency is Consistency.STRICT
        own = min(rounds, recipe.privacy.max_participations or rounds)
        up = _UP + n * (ENTRY + REVEALED) + plan.codec.upload_bytes
        down = _DOWN + n * (_KEYS + ENTRY) + plan.buckets.count * plan.cohort.threshold * _AGREED + 8 * dimension
        cpu = _PER_ROUND + n * (_PER_MEMBER + d * _PER_PAD) + d * _PER_COORDINATE
        trips = (3 if strict else 2) * rounds + 2
        cut = BucketFigures.of(recipe, plan) if plan.buckets.count > 1 else None
        return cls(trips, own * up, own * down, own * cpu, own, cut)

    def to_json(self) -> dict[str, Any]:
        """For `plan.json`."""
        return {
            "trips": self.trips,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "cpu_seconds": round(self.cpu_seconds, 3),
            "participations": self.participations,
            **({} if self.buckets is None else {"buckets": asdict(self.buckets)}),
        }


def public_facts(plan: SecAggPlan, mode: str) -> dict[str, Any]:
    """What the ledgers record of the plan: the reasons behind the booked event."""
    cohort, shown = plan.cohort, figures(plan.codec, plan.noise, plan.cohort.largest)
    return {
        "secure_aggregation": mode,
        "consistency": cohort.consistency.value,
        "colluders": cohort.colluders,
        **_sizes(plan),
        "honest_shares": cohort.honest_shares,
        "ring_bits": plan.codec.bits,
        "grid_steps": plan.codec.steps,
        "sensitivity_steps": shown["sensitivity"],
        "sigma_share_steps": shown["sigma_share"],
        "wrap_probability": shown["wrap_probability"],
    }


def _sizes(plan: SecAggPlan) -> dict[str, int]:
    """How many clients are in a sum, and in how many sums a round is cut."""
    cohort, count = plan.cohort, plan.buckets.count
    if count == 1:
        return {"clients_per_round": cohort.largest, "min_clients_per_round": cohort.least}
    return {
        "num_buckets": count,
        "clients_per_bucket": cohort.largest,
        "min_clients_per_bucket": cohort.least,
        "liars_outvoted": plan.trimmed,
    }
