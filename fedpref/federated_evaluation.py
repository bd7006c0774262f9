"""Federated evaluation: which recipes it goes with, its one mechanism, and noised counts -> a table with intervals.

The table is post-processing: it reads released numbers alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedpref.cohort import secagg_plan
from fedpref.config import Recipe
from fedpref.errors import UnsupportedPlanError
from privacy.accounting import epsilon
from privacy.calibration import calibrate_noise_multiplier
from privacy.distributed import DistributedMechanism
from privacy.events import TrustedEvent
from privacy.mechanism import GaussianMechanism
from privacy.sampling import PoissonSampling
from privacy.units import Adversary, PrivacyUnit, Trust

SEEN, UNSEEN = "seen topics", "unseen topics"
Z = 1.959964  # 95 %
_NOISE_STEP = 1e-4
LEAST = 4.0  # noise deviations that a number of people must exceed to be told from nobody


@dataclass(frozen=True)
class EvaluationPlan:
    """The one round after the rounds: every evaluation user takes part, hence no amplification."""

    groups: tuple[str, ...]
    mechanism: GaussianMechanism | DistributedMechanism
    round_number: int
    delta: float
    planned_noise: float
    """The multiplier that was calibrated; under `distributed` the booked one is a rounding above it."""
    simulated: bool = False
    """The integers are added openly: nothing holds against the server."""

    @property
    def dimension(self) -> int:
        """Numbers of a message: per group a presence and a margin."""
        return 2 * len(self.groups)

    def epsilon(self, adversary: Adversary) -> float | None:
        """Of one evaluation user; None where the adversary is trusted, infinite where nothing holds."""
        if self.simulated and adversary is Adversary.SERVER:
            return math.inf
        event = self.mechanism.events(self.round_number)[adversary]
        return None if isinstance(event, TrustedEvent) else epsilon({event: 1}, self.delta)

    def to_json(self) -> dict[str, Any]:
        """For `plan.json`."""
        return {
            "groups": list(self.groups),
            "noise_multiplier": self.mechanism.noise_multiplier,
            "noise_std": self.mechanism.noise_std,
            "epsilon": {who.value: value if _finite(value := self.epsilon(who)) else None for who in Adversary},
            "delta": self.delta,
        }


def evaluation_bound(num_groups: int) -> float:
    """The l2 bound of one user's vector, sqrt(2 G), with room for clipping slightly inside it (rule 5)."""
    return math.sqrt(2 * num_groups) * (1 + 2e-6)


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def evaluation_plan(recipe: Recipe) -> EvaluationPlan | None:
    """What a recipe with `evaluation.federated` releases about evaluation users; None without.

    Under trust ``distributed`` its mechanism has no run yet; see ``evaluation_mechanism``.

    Raises:
        UnsupportedPlanError: the recipe asks for what does not go together.
        CalibrationError: no noise reaches the target.
    """
    options, p = recipe.evaluation, recipe.privacy
    refusal = _refusal(recipe)
    if refusal is not None:
        raise UnsupportedPlanError(*refusal)
    if not options.federated or options.target_epsilon is None:
        return None
    groups = (SEEN, UNSEEN) if options.unseen_topics else (SEEN,)
    noise = calibrate_noise_multiplier(options.target_epsilon, p.target_delta, 1.0, 1)
    simulated = p.secure_aggregation == "simulated"
    while True:  # under `distributed` once more or so, for the slack of rounding failures and of sums of shares
        mechanism = _mechanism(recipe, len(groups), noise, "plan")
        if epsilon({mechanism.events()[Adversary.READER]: 1}, p.target_delta) <= options.target_epsilon:
            return EvaluationPlan(groups, mechanism, recipe.federation.num_rounds + 1, p.target_delta, noise, simulated)
        noise = round(noise + _NOISE_STEP, 4)


def evaluation_mechanism(recipe: Recipe, plan: EvaluationPlan, run: str) -> GaussianMechanism | DistributedMechanism:
    """The plan's mechanism, its keys and rotation bound to a run: the training's name with a word of its own."""
    return _mechanism(recipe, len(plan.groups), plan.planned_noise, f"{run}-evaluation")


def _mechanism(recipe: Recipe, groups: int, noise: float, run: str) -> GaussianMechanism | DistributedMechanism:
    p, f, sampling = recipe.privacy, recipe.federation, PoissonSampling(1.0)
    if p.trust is not Trust.DISTRIBUTED:
        return GaussianMechanism(p.trust, sampling, evaluation_bound(groups), noise)
    held_out = recipe.evaluation.user_fraction / (1 - recipe.evaluation.user_fraction)
    everybody = f.num_units * max(1.0, held_out)  # in one client, and all alike: no honest sum is clamped
    bound = evaluation_bound(groups)
    # One sum: a trimmed mean over buckets of people would be no estimate of a share of people.
    plan = secagg_plan(recipe, noise, bound, 2 * groups, run, largest_norm=everybody, buckets=1)
    return DistributedMechanism(sampling, plan)


def _refusal(recipe: Recipe) -> tuple[str, str, str] | None:
    """The first rule that the recipe breaks: what, why, what to do."""
    options, p, federation = recipe.evaluation, recipe.privacy, recipe.federation
    if not options.federated:
        what = "evaluation.target_epsilon says nothing without evaluation.federated."
        fix = "Set evaluation.federated: true, or take it out."
        return None if options.target_epsilon is None else (what, "Central figures are not noised.", fix)
    rules = (
        (
            options.target_epsilon is None,
            "evaluation.target_epsilon is missing: what an evaluation user may spend, at privacy.target_delta.",
            "Set it, for example to 1.",
        ),
        (not options.user_fraction, "evaluation.user_fraction: 0 holds nobody out.", "Hold some people out."),
        (
            recipe.training is not None,
            "Adapters trained on the clients are not evaluated this way yet.",
            "Leave it out, or train a reward head.",
        ),
        (
            p.unit is not PrivacyUnit.USER,
            "What is bounded and noised is one person's figures.",
            "Set privacy.unit: user.",
        ),
        (
            p.trust is Trust.DISTRIBUTED and federation.partition.by == "natural",
            "Under partition.by: natural evaluation users are clients of their own, and no recipe says how many: neither "
            "cohort nor noise of secure aggregation could be planned.",
            "Use another partition, trust `central` or `local`, or central figures.",
        ),
        (
            p.labels == "randomized_response",
            "Evaluation users' labels would be used as given, which randomized_response promises not to do.",
            "Leave out evaluation.federated or privacy.labels.",
        ),
        (
            federation.partition.by == "natural" and federation.terms is not None,
            "Under partition.by: natural evaluation users are clients of their own, and federation.terms names others.",
            "Leave out federation.terms, or use another partition.",
        ),
    )
    what = "evaluation.federated does not go with this recipe."
    return next(((what, why, fix) for broken, why, fix in rules if broken), None)


def estimates(value: npt.NDArray[np.float64], noise_std: float, groups: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Mean accuracy per person and group out of a released sum of ``evaluation_sums`` [2 G].

    The interval is Fieller's (1954) for a ratio of two sums that are noised alike; it covers the privacy noise, whose
    deviation is known, and the drawing of people, by the largest variance that figures in [-1, 1] can have.

    | case | result |
    |---|---|
    | fewer people, as noised, than 4 noise deviations | no accuracy: `too_few` |
    | not finite | the same |
    | an interval beyond [0, 1] | cut to it |
    """
    half = len(groups)
    return {name: _estimate(float(value[g]), float(value[half + g]), noise_std) for g, name in enumerate(groups)}


def _estimate(people: float, margin: float, noise_std: float) -> dict[str, Any]:
    if not (math.isfinite(people) and math.isfinite(margin)) or people <= max(LEAST * noise_std, 1.0):
        return {"too_few": True, "noised_people": people, "noise_std": noise_std}
    # All r with (margin - r people)^2 <= Z^2 (noise (1 + r^2) + people (1 - r^2)), a quadratic in r.
    noise = noise_std**2
    a = people**2 + Z**2 * (people - noise)
    b = margin * people
    c = margin**2 - Z**2 * (noise + people)
    root = math.sqrt(max(b * b - a * c, 0.0))
    low, high, middle = ((min(1.0, max(-1.0, r)) + 1) / 2 for r in ((b - root) / a, (b + root) / a, margin / people))
    return {
        "too_few": False,
        "accuracy_per_person": middle,
        "interval": [low, high],
        "noised_people": people,
        "noise_std": noise_std,
    }


def is_federated(block: Mapping[str, Any]) -> bool:
    """True for a row of federated evaluation, of either kind."""
    return "noise_std" in block or "refused" in block


def federated_text(block: Mapping[str, Any]) -> str:
    """One row of the table in words."""
    if "refused" in block:
        return f"not evaluated: {block['refused']}"
    count = f"{block['noised_people']:.0f} people as noised (deviation {block['noise_std']:.1f})"
    if block["too_few"]:
        return f"no accuracy: {count} cannot be told from nobody"
    low, high = block["interval"]
    return (
        f"reward accuracy, mean over people, {100 * block['accuracy_per_person']:.1f} % [{100 * low:.1f}, {100 * high:.1f}] "
        f"(95 %, covers the noise and the drawing of people); {count}"
    )
