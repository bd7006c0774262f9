"""Puts a federation together out of a plan, the clients' records and what is to be trained, and runs its rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedpref.aggregation.lora import LoraRule
from fedpref.aggregation.optimizers import ServerOptimizer, Vector
from fedpref.books import open_books
from fedpref.client.contribution import ClientWork
from fedpref.client.head import HeadWork
from fedpref.client.labels import randomized_labels
from fedpref.client.local_training import LocalTraining
from fedpref.client.work import prepare_node
from fedpref.cohort import check_cohort, public_facts
from fedpref.config import Recipe
from fedpref.connection import Exchanges, connect
from fedpref.consent import keep_refusals
from fedpref.data.loading import FederatedData
from fedpref.data.preferences import Preferences
from fedpref.errors import UnsupportedPlanError
from fedpref.folder import RunFolder
from fedpref.journal import Checkpoints
from fedpref.manifest import Manifest, reward_layout, reward_manifest
from fedpref.plan import Plan
from fedpref.rounds import Federation, run_rounds
from fedpref.server import Server
from fedpref.tracking import Tracker, Trackers
from privacy.distributed import DistributedMechanism
from privacy.ledger import Ledger, LedgerHeader
from privacy.mechanism import Mechanism
from privacy.rng import RandomSource, SeededNonPrivateRandom, SystemRandom
from privacy.signing import SigningKey, key_path
from privacy.units import PrivacyUnit, Trust
from reward.features import Array
from reward.head import bradley_terry_objective, debiased_objective
from reward.pairs import Conversation

NODE = "local"
_SLACK = 10.0  # of the declared number of units; real federations know no roster


@dataclass(frozen=True)
class RunInput:
    """What every training run starts from: a plan, and the clients' records."""

    plan: Plan
    data: FederatedData


@dataclass(frozen=True)
class TrainingInput(RunInput):
    """Of a reward head: also projected features of any text."""

    features: Callable[[Sequence[Conversation]], Array]


@dataclass(frozen=True)
class Trainee:
    """What is trained: its layout, its ``initial`` values, flat fp64 [d] and public, and what clients do with their records.

    ``rule`` and ``aggregation_error`` are the server's; see there.
    """

    manifest: Manifest
    initial: Vector
    work: Callable[[Mapping[str, Preferences]], ClientWork]
    rule: LoraRule | None = None
    aggregation_error: float | None = None


def train_reward_head(
    given: TrainingInput, folder: RunFolder, trackers: Sequence[Tracker], warn: Callable[[str], None]
) -> Vector:
    """Run all rounds that are left in ``folder`` and return the averaged head, flat fp64 [d]. Trackers stay open."""
    plan, recipe = given.plan, given.plan.recipe
    manifest, p = reward_manifest(recipe.head), recipe.privacy

    def work(records: Mapping[str, Preferences]) -> ClientWork:
        data = prepare_node(records, given.features, p.unit, p.max_pairs_per_user)
        objective = debiased_objective(plan.labels.flip_probability) if plan.labels else bradley_terry_objective
        return HeadWork(data, len(given.data.clients), manifest.tensors, objective, _local_training(recipe))

    trainee = Trainee(manifest, reward_layout(recipe.head).initial(recipe.seed), work)
    return train(given, trainee, folder, trackers, warn)


def train(
    given: RunInput, trainee: Trainee, folder: RunFolder, trackers: Sequence[Tracker], warn: Callable[[str], None]
) -> Vector:
    """Run all rounds that are left in ``folder`` and return what is released, flat fp64 [d]. Trackers stay open."""
    plan, recipe = given.plan, given.plan.recipe
    check_cohort(recipe, list(given.data.clients))
    mechanism, rng = plan.mechanism(run_name(plan, folder)), random_source(recipe)
    manifest = trainee.manifest
    _check_planned_size(mechanism, manifest.dimension + (plan.clipping is not None))
    # Under `central` a node lists un-amplified participations: its own worst case, not the claim, hence no budget here.
    own_budget = None if recipe.privacy.trust is Trust.CENTRAL else recipe.privacy.target_epsilon
    headers = {
        "federation": _header(given, "federation", recipe.privacy.target_epsilon, mechanism),
        "node": _header(given, f"node:{NODE}", own_budget, mechanism),
    }
    books = open_books(plan, folder, headers, mechanism.events(), list(given.data.clients))
    ledger, node_ledger = books.federation, books.node
    try:
        checkpoints = Checkpoints(folder.checkpoints)
        done = max(checkpoints.last()[0], ledger.closed_round)
        ledger.check_rounds(done)
        node_ledger.check_rounds(done)
        _expect(ledger, node_ledger, mechanism, done, plan.num_rounds)
        first = done + 1 + (1 if node_ledger.open_reservation is not None else 0)
        planned = mechanism.composition(first, plan.num_rounds, node=True)
        refused = books.agree(planned, private_rng=recipe.privacy.rng == "os")
        if books.guards:
            keep_refusals(folder.node, (name for i, name in enumerate(given.data.clients) if i in refused))
        willing = {
            name: Preferences.concat([]) if i in refused else part
            for i, (name, part) in enumerate(given.data.clients.items())
        }
        if plan.labels is not None:
            books.book_labels(plan.labels.event)
        records = _labelled(given, willing, folder, rng)
        common: dict[str, Any] = {
            "name": NODE,
            "num_clients": len(given.data.clients),
            "work": trainee.work(records),
            "manifest": manifest,
            "rng": rng,
            "clipping": plan.clipping,
            "offer": books.offer,
            "guards": books.guards,
        }
        server = Server(
            manifest=manifest,
            num_clients=len(given.data.clients),
            mechanism=mechanism,
            optimizer=ServerOptimizer(recipe.server, manifest.dimension, plan.num_rounds, trainee.initial),
            divisor=plan.divisor,
            largest_norm=_largest_norm(given) * mechanism.max_grad_norm,
            rng=rng,
            warn=warn,
            clipping=plan.clipping,
            clipping_norm=plan.first_norm if plan.clipping else None,
            rule=trainee.rule,
            aggregation_error=trainee.aggregation_error,
        )
        names, left = list(given.data.clients), plan.num_rounds - done
        exchanges = Exchanges(recipe, plan.digest, names, folder, left, plan.num_rounds)
        connection = connect(exchanges, mechanism, common, node_ledger, warn)
        run_rounds(
            Federation(plan, mechanism, server, connection.channel, ledger, checkpoints, Trackers(trackers), warn)
        )
        connection.close()
        return server.optimizer.averaged
    finally:
        books.close()


def _check_planned_size(mechanism: Mechanism, dimension: int) -> None:
    """The codec of secure aggregation was planned for another number of values than the model trains: nothing is booked."""
    if not isinstance(mechanism, DistributedMechanism) or mechanism.secagg.codec.dimension == dimension:
        return
    raise UnsupportedPlanError(
        f"The model trains {dimension:,} values; the plan counted {mechanism.secagg.codec.dimension:,}.",
        "Grid, ring and noise of secure aggregation are planned from config.json, and this model is built otherwise.",
        "Set privacy.trust: central or local, or take another model or other training.lora_target_modules.",
    )


def run_name(plan: Plan, folder: RunFolder) -> str:
    """What keys, counts of participation and rotations of a run are bound to: two runs of one recipe have two names.

    A seeded run is to repeat itself, and protects nobody.
    """
    if plan.recipe.privacy.rng == "seeded":
        return f"seeded-{plan.recipe.seed}"
    return f"{plan.digest[:16]}-{SigningKey.at(key_path(folder.ledger)).public[:16]}"


def _labelled(
    given: RunInput, clients: Mapping[str, Preferences], folder: RunFolder, rng: RandomSource
) -> Mapping[str, Preferences]:
    """The willing clients' records, their labels randomised once if the recipe says so."""
    if given.plan.labels is None:
        return clients
    header = _header(given, f"labels:{NODE}", None)
    return randomized_labels(clients, given.plan.labels, folder.node, header, rng)


def _local_training(recipe: Recipe) -> LocalTraining | None:
    local = recipe.head.local
    if local is None or recipe.privacy.unit is not PrivacyUnit.CLIENT:
        return None
    return LocalTraining(local.max_steps, local.learning_rate)


def _largest_norm(given: RunInput) -> float:
    """In clipping norms: more than any honest client's sum can have, whatever its records and however low the declaration.

    A client's sum is a sum of one clipped gradient per member, and who is a member is public.
    """
    members = given.data.num_units(given.plan.recipe.privacy.unit)
    return max(_SLACK * given.plan.recipe.federation.num_units, float(members))


def random_source(recipe: Recipe) -> RandomSource:
    """The operating system's, or, if the recipe says so, the reproducible one that protects nobody."""
    return SystemRandom() if recipe.privacy.rng == "os" else SeededNonPrivateRandom(recipe.seed)


def _header(
    given: RunInput, scope: str, target_epsilon: float | None, mechanism: Mechanism | None = None
) -> LedgerHeader:
    recipe, p = given.plan.recipe, given.plan.recipe.privacy
    return LedgerHeader(
        scope=scope,
        run=given.plan.digest[:16],
        unit=p.unit,
        trust=p.trust,
        target_epsilon=target_epsilon,
        target_delta=p.target_delta,
        private_rng=p.rng == "os",
        facts={
            "max_grad_norm": p.max_grad_norm,
            **({"label_epsilon": p.label_epsilon} if p.label_epsilon is not None else {}),
            "max_pairs_per_user": p.max_pairs_per_user,
            "num_clients": len(given.data.clients),
            **given.data.split.public_count(federated=recipe.evaluation.federated),
            "num_rounds": recipe.federation.num_rounds,
            "num_units": given.data.num_units(p.unit),
            "num_units_declared": recipe.federation.num_units,
            **(
                public_facts(mechanism.secagg, p.secure_aggregation)
                if isinstance(mechanism, DistributedMechanism)
                else {}
            ),
        },
    )


def _expect(ledger: Ledger, node_ledger: Ledger, mechanism: Mechanism, done: int, num_rounds: int) -> None:
    """Check the plan as a whole against both budgets, so that no round needs an accountant of its own.

    An interrupted round that goes on under its own booking is already counted.
    """
    for book, node in ((ledger, False), (node_ledger, True)):
        first = done + 1 + (1 if book.open_reservation is not None else 0)
        for adversary, events in mechanism.composition(first, num_rounds, node=node).items():
            book.expect(adversary, events)
