"""Recipe -> plan: noise, epsilon per round and in total per adversary, bytes, time, memory. No training, no private data."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from fedpref.adapter_size import secure_dimension, trainable_dimension
from fedpref.cohort import SecureCosts, secagg_plan
from fedpref.config import Recipe
from fedpref.cost import memory_gb, minutes, public_sizes
from fedpref.data.spec import find_dataset
from fedpref.federated_evaluation import EvaluationPlan, evaluation_plan
from fedpref.plan_training import check_training
from fedpref.recipes import validate_recipe
from privacy.accounting import epsilon
from privacy.adaptive import QuantileClipping, on_ladder
from privacy.calibration import calibrate_noise_multiplier
from privacy.distributed import DistributedMechanism
from privacy.events import Event, TrustedEvent, canonical
from privacy.labels import RandomizedResponse
from privacy.local_sgd import LocalDpSgd
from privacy.mechanism import GaussianMechanism, Mechanism
from privacy.sampling import CappedSampling, FixedOrderSampling, PoissonSampling, Sampling, TruncatedPoissonSampling
from privacy.sealed import size_of
from privacy.units import Adversary, PrivacyUnit, Trust, further_adversaries

_MARKS = 10
_NOISE_STEP = 1e-4


@dataclass(frozen=True)
class AdversaryRow:
    """What one adversary could learn about one unit."""

    adversary: Adversary
    trusted: bool
    epsilon_per_round: float
    epsilon_total: float
    simulated: bool = False
    """The figures are those of a run with real masks; this one adds the integers openly and protects nobody from the server."""


@dataclass(frozen=True)
class Plan:
    """What a run will do and cost; the same events that the run writes, composed."""

    recipe: Recipe
    noise_multiplier: float
    rows: tuple[AdversaryRow, ...]
    node_rows: tuple[AdversaryRow, ...]
    facts: dict[str, int]

    @property
    def num_rounds(self) -> int:
        """Rounds of the run."""
        return self.recipe.federation.num_rounds

    @cached_property
    def epsilon_marks(self) -> tuple[tuple[int, float], ...]:
        """(round, epsilon against readers up to it), at every tenth of the run: upper bounds for the rounds before."""
        mechanism = self.mechanism()
        marks = sorted({math.ceil(self.num_rounds * i / _MARKS) for i in range(1, _MARKS + 1)})
        delta = self.recipe.privacy.target_delta
        return tuple((mark, epsilon(mechanism.composition(1, mark)[Adversary.READER], delta)) for mark in marks)

    @property
    def divisor(self) -> float:
        """The public constant that sums are divided by: sample_rate x num_units (a whole cohort under `capped`)."""
        return self.recipe.divisor

    @property
    def bytes_per_client(self) -> int | None:
        """Up and down, all rounds: one sealed message up, the parameters down; or all messages of secure aggregation.

        None for a model that is not here.
        """
        if self.secure_costs is not None:
            every = [self.secure_costs] if self.evaluation_costs is None else [self.secure_costs, self.evaluation_costs]
            return sum(costs.bytes_up + costs.bytes_down for costs in every)
        d = trainable_dimension(self.recipe)
        if d is None:
            return None
        evaluated = size_of(self.evaluation.dimension) + 8 * d if self.evaluation else 0
        return self.num_rounds * (size_of(d + (self.clipping is not None)) + 8 * d) + evaluated

    @cached_property
    def secure_costs(self) -> SecureCosts | None:
        """Trips, bytes and CPU seconds under trust `distributed`."""
        mechanism = self.mechanism()
        if not isinstance(mechanism, DistributedMechanism):
            return None
        return SecureCosts.of(self.recipe, mechanism.secagg, secure_dimension(self.recipe))

    @cached_property
    def evaluation_costs(self) -> SecureCosts | None:
        """Of the one round of federated evaluation under trust `distributed`."""
        mechanism = self.evaluation.mechanism if self.evaluation else None
        if not isinstance(mechanism, DistributedMechanism):
            return None
        return SecureCosts.of(self.recipe, mechanism.secagg, secure_dimension(self.recipe), rounds=1)

    @property
    def colluders(self) -> int | None:
        """How many clients the noise is planned for to work with the server; None without secure aggregation."""
        return self.recipe.privacy.colluders if self.recipe.privacy.trust is Trust.DISTRIBUTED else None

    @property
    def outvoted(self) -> int:
        """Lying clients that buckets outvote (`federation.num_buckets`)."""
        costs = self.secure_costs
        return 0 if costs is None or costs.buckets is None else costs.buckets.liars_outvoted

    @property
    def minutes(self) -> float:
        """Rough; see ``fedpref.cost``."""
        return minutes(self.recipe, self.facts, self.divisor)

    @property
    def memory_gb(self) -> float | None:
        """Rough; None for a hub model that is not here."""
        return memory_gb(self.recipe)

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe, the noise and the descriptions of all data; a resumed run must have the same."""
        content = {
            "recipe": self.recipe.model_dump(mode="json"),
            "noise_multiplier": self.noise_multiplier,
            "data": {name: find_dataset(name).digest for name in data_names(self.recipe)},
            **({"evaluation_noise": self.evaluation.mechanism.noise_multiplier} if self.evaluation else {}),
        }
        return hashlib.sha256(canonical(content).encode()).hexdigest()

    def mechanism(self, run: str = "plan") -> Mechanism:
        """The mechanism that a run uses; under adaptive clipping its bound is that of the first round."""
        return mechanism_of(self.recipe, self.noise_multiplier, run)

    @cached_property
    def clipping(self) -> QuantileClipping | None:
        """Adaptive clipping, if the recipe asks for it."""
        return clipping_of(self.recipe, self.noise_multiplier)

    @property
    def first_norm(self) -> float:
        """The clipping norm of the first round."""
        norm = self.recipe.privacy.max_grad_norm
        return on_ladder(norm) if self.clipping else norm

    @property
    def labels(self) -> RandomizedResponse | None:
        """Randomised response on labels, if the recipe asks for it; its total stands apart."""
        return labels_of(self.recipe)

    @cached_property
    def evaluation(self) -> EvaluationPlan | None:
        """Federated evaluation, if the recipe asks for it: of other people than train, in books of its own."""
        return evaluation_plan(self.recipe)

    def composition(self) -> dict[Adversary, Counter[Event]]:
        """All that the run books, evaluation included: what a project pays for it."""
        events = self.mechanism().composition(1, self.num_rounds)
        if self.evaluation:
            for adversary, event in self.evaluation.mechanism.events(self.evaluation.round_number).items():
                events[adversary][event] += 1
        return events

    def public_figures(self, round_number: int, num_reserved: int) -> dict[str, Any]:
        """Figures of a round that are public by construction or come from the books (``num_reserved`` events so far)."""
        figures: dict[str, Any] = {
            "round": round_number,
            "num_rounds": self.num_rounds,
            "expected_cohort": self.divisor,
            "unit": self.recipe.privacy.unit.value,
            "delta": self.recipe.privacy.target_delta,
        }
        bound = next((eps for mark, eps in self.epsilon_marks if mark >= num_reserved), math.inf)
        if math.isfinite(bound) and self.recipe.privacy.rng == "os":
            figures["epsilon_reader"] = bound
        if self.recipe.privacy.target_epsilon is not None:
            figures["target_epsilon"] = self.recipe.privacy.target_epsilon
        return figures

    def to_json(self) -> dict[str, Any]:
        """`plan.json`."""
        return {
            "schema": "fedpref-plan-1",
            "digest": self.digest,
            "unit": self.recipe.privacy.unit.value,
            "trust": self.recipe.privacy.trust.value,
            "delta": self.recipe.privacy.target_delta,
            "noise_multiplier": self.noise_multiplier,
            "sample_rate": self.recipe.privacy.sample_rate,
            "num_rounds": self.num_rounds,
            "expected_cohort": self.divisor,
            "private_rng": self.recipe.privacy.rng == "os",
            "claim": [_row_json(row) for row in self.rows],
            "further_adversaries": [
                asdict(other) for other in further_adversaries(self.recipe.privacy.trust, self.colluders, self.outvoted)
            ],
            "each_client_alone": [_row_json(row) for row in self.node_rows],
            "labels": None
            if self.labels is None
            else {
                "label_epsilon": self.labels.label_epsilon,
                "epsilon_per_unit": epsilon(Counter({self.labels.event: 1}), self.recipe.privacy.target_delta),
                "flip_probability": self.labels.flip_probability,
            },
            "secure_aggregation": None if self.secure_costs is None else self.secure_costs.to_json(),
            **({"evaluation": self.evaluation.to_json()} if self.evaluation else {}),
            "bytes_per_client": self.bytes_per_client,
            "minutes": round(self.minutes, 1),
            "memory_gb": self.memory_gb,
        }

    def to_json_text(self) -> str:
        """Pretty JSON with a final newline."""
        return json.dumps(self.to_json(), indent=2) + "\n"


def _row_json(row: AdversaryRow) -> dict[str, Any]:
    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "adversary": row.adversary.value,
        "trusted": row.trusted,
        "epsilon_per_round": None if row.simulated else finite(row.epsilon_per_round),
        "epsilon_total": None if row.simulated else finite(row.epsilon_total),
        **({"epsilon_total_if_masked": finite(row.epsilon_total)} if row.simulated else {}),
    }


def mechanism_of(recipe: Recipe, noise_multiplier: float, run: str = "plan") -> Mechanism:
    """The mechanism that a recipe describes, at a noise multiplier; ``run`` names whose keys and participations they are.

    Raises:
        ParameterError: numbers that make no mechanism, or no safe cohort.
    """
    p, clipping = recipe.privacy, clipping_of(recipe, noise_multiplier)
    bound = clipping.joint_bound(on_ladder(p.max_grad_norm)) if clipping else p.max_grad_norm
    sampling = sampling_of(recipe, run)
    if p.trust is Trust.DISTRIBUTED:
        dimension = secure_dimension(recipe) + (clipping is not None)
        return DistributedMechanism(sampling, secagg_plan(recipe, noise_multiplier, bound, dimension, run))
    local = None if recipe.reward is None else recipe.reward.local
    if local is None or p.unit is PrivacyUnit.CLIENT:
        return GaussianMechanism(p.trust, sampling, bound, noise_multiplier)
    of_one_client = p.sample_rate * recipe.federation.num_units / (recipe.federation.partition.num_clients or 1)
    steps = local.max_steps, local.learning_rate, of_one_client
    return LocalDpSgd(p.trust, sampling, bound, noise_multiplier, *steps)


def sampling_of(recipe: Recipe, run: str = "plan") -> Sampling:
    """Who takes part in a round."""
    p = recipe.privacy
    if p.sampling == "truncated_poisson":
        return TruncatedPoissonSampling(p.sample_rate, p.max_units_per_client or 0, p.max_units_per_round or 0)
    if p.sampling == "capped":
        return CappedSampling(p.sample_rate, p.max_participations or 0, f"run {run}")
    return (
        FixedOrderSampling(round(1 / p.sample_rate)) if p.sampling == "fixed_order" else PoissonSampling(p.sample_rate)
    )


def clipping_of(recipe: Recipe, noise_multiplier: float) -> QuantileClipping | None:
    """Adaptive clipping, or None for a fixed norm."""
    p = recipe.privacy
    if p.clipping == "fixed":
        return None
    cohort = p.sample_rate * recipe.federation.num_units
    return QuantileClipping(noise_multiplier, cohort, p.target_quantile, p.clipping_learning_rate)


def labels_of(recipe: Recipe) -> RandomizedResponse | None:
    """Randomised response, or None for labels as given."""
    p = recipe.privacy
    if p.label_epsilon is None:
        return None
    return RandomizedResponse(p.label_epsilon, p.max_pairs_per_user if p.unit is PrivacyUnit.USER else 1)


def make_plan(recipe: Recipe) -> Plan:
    """Calibrate, and compose the events of the whole run.

    Raises:
        CalibrationError: no noise reaches the target.
        ParameterError: numbers that make no mechanism, or no safe cohort.
        DatasetError: an unknown data set.
        UnsupportedPlanError: an adapter's training that could not keep its promise.
    """
    check_training(recipe)
    p, rounds = recipe.privacy, recipe.federation.num_rounds
    evaluation_plan(recipe)
    mechanism_of(recipe, 1.0)  # refuse what cannot be before calibrating
    z = p.noise_multiplier
    if z is None:
        z = _calibrated(recipe, p.target_epsilon or 0.0)
    mechanism = mechanism_of(recipe, z)
    return Plan(
        recipe,
        z,
        _rows(mechanism, rounds, p.target_delta, node=False, simulated=p.secure_aggregation == "simulated"),
        _rows(mechanism, rounds, p.target_delta, node=True) if p.trust is Trust.CENTRAL else (),
        public_sizes(recipe),
    )


def _calibrated(recipe: Recipe, target_epsilon: float) -> float:
    """The least noise for the target: over as many releases, at such a rate, as count for one unit."""
    sampling, delta, rounds = sampling_of(recipe), recipe.privacy.target_delta, recipe.federation.num_rounds
    if isinstance(sampling, FixedOrderSampling):
        z = calibrate_noise_multiplier(target_epsilon, delta, 1.0, math.ceil(rounds / sampling.blocks))
    elif isinstance(sampling, CappedSampling):
        z = calibrate_noise_multiplier(target_epsilon, delta, 1.0, min(rounds, sampling.cap))
    else:
        cut = (sampling.population, sampling.largest_cohort) if isinstance(sampling, TruncatedPoissonSampling) else ()
        mechanism = mechanism_of(recipe, 1.0)
        releases = rounds * (mechanism.steps if isinstance(mechanism, LocalDpSgd) else 1)
        z = calibrate_noise_multiplier(target_epsilon, delta, sampling.rate, releases, cut)
    if recipe.privacy.trust is not Trust.DISTRIBUTED:
        return z
    while epsilon(mechanism_of(recipe, z).composition(1, rounds)[Adversary.SERVER], delta) > target_epsilon:
        z = round(z + _NOISE_STEP, 4)  # for the slack of rounding failures and of sums of shares
    return z


def sweep(recipe: Recipe, key: str, values: Sequence[Any]) -> list[Plan]:
    """One plan for each value of a key of the ``privacy`` block, for example ``target_epsilon``.

    Raises:
        RecipeError: no such key, or a value that it cannot have.
    """
    plans = []
    for value in values:
        fields = recipe.model_dump(mode="json")
        fields["privacy"][key] = value
        if key in _TARGETS:
            fields["privacy"][_TARGETS[key]] = None
        plans.append(make_plan(validate_recipe(fields, f"privacy.{key}={value}", recipe.objectives)))
    return plans


_TARGETS = {"target_epsilon": "noise_multiplier", "noise_multiplier": "target_epsilon"}


def _rows(
    mechanism: Mechanism, rounds: int, delta: float, *, node: bool, simulated: bool = False
) -> tuple[AdversaryRow, ...]:
    one, total = mechanism.composition(1, 1, node=node), mechanism.composition(1, rounds, node=node)
    return tuple(
        AdversaryRow(
            adversary,
            any(isinstance(event, TrustedEvent) for event in total[adversary]),
            epsilon(one[adversary], delta),
            epsilon(total[adversary], delta),
            simulated and adversary is Adversary.SERVER,
        )
        for adversary in Adversary
    )


def data_names(recipe: Recipe) -> list[str]:
    """Every data set that a recipe names, each once."""
    policy = recipe.policy
    prompts = () if policy is None else (*policy.prompts, *(policy.test_prompts or ()))
    return list(dict.fromkeys((*recipe.datasets, *recipe.public_text, *prompts)))
