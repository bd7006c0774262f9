"""Federated evaluation after the rounds: clients score their own evaluation users; one noised, booked sum is released.

    ask the clients' terms; reserve the event in books of its own       (on disk before anybody is scored)
    every client: score its evaluation users' pairs by the released model; sum bounded vectors; seal; keep; send
    server: sum (trust distributed: unmask the sum, or abort: spent, and no figure); noise (trust central); prepare the
        released sum; commit (on disk); publish it

The same order, journals and seals as a round of training (``fedpref.rounds``), so a kill between any two writes leaves no
second draw of noise under one booking. A user trains or evaluates, by a hash, so the two books are of different people.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedpref.aggregation.optimizers import Vector
from fedpref.books import Books, open_books
from fedpref.channel.base import Channel, Failure, RoundRequest
from fedpref.client.evaluation import EvaluationRows, EvaluationWork, evaluation_rows
from fedpref.cohort import check_cohort, public_facts
from fedpref.config import PartitionConfig
from fedpref.connection import Connection, Exchanges, connect
from fedpref.data.loading import FederatedData
from fedpref.data.partition import one_client_each
from fedpref.data.preferences import Preferences
from fedpref.data.split import hash_fraction
from fedpref.errors import NoDataError, RunFolderError, TooFewClientsError
from fedpref.evaluation import Scores, correctness
from fedpref.federated_evaluation import EvaluationPlan, estimates, evaluation_mechanism
from fedpref.folder import RunFolder
from fedpref.journal import Checkpoints
from fedpref.manifest import Manifest, reward_manifest
from fedpref.plan import Plan
from fedpref.training import NODE, random_source, run_name
from privacy.clipping import ClippedSum
from privacy.distributed import DistributedMechanism
from privacy.errors import BudgetError, MechanismMisuseError, SealedMessageError, TermsRefusal
from privacy.ledger import LedgerHeader, Reservation
from privacy.mechanism import GaussianMechanism, Mechanism, Release
from privacy.rng import RandomSource
from privacy.sealed import Entrusted, LocallyPrivate, Sealed, sealed_from_bytes
from privacy.secagg.errors import RoundAborted
from privacy.secagg.shares import SecureSum, implausible
from privacy.units import Trust

Warn = Callable[[str], None]
_SLACK = 10.0  # of the declared number of units, as in training


@dataclass(frozen=True)
class EvaluationClients:
    """The clients that are asked, in the order of their numbers, and the one client of every evaluation user."""

    names: tuple[str, ...]
    client_of: Mapping[str, int]


def evaluation_clients(data: FederatedData, config: PartitionConfig) -> EvaluationClients:
    """Who holds which evaluation user; looks at membership alone, never at a vote.

    | partition.by | client of an evaluation user |
    |---|---|
    | file, column | that of the user's records; a client without a training member is not in the federation, nor its users |
    | natural | the user |
    | others | one of `num_clients`, by a hash of the user's name |

    Raises:
        UnsupportedPlanError: an evaluation user in two clients.
    """
    members = data.roster.evaluation_users
    if config.by == "natural":
        return EvaluationClients(members, {name: i for i, name in enumerate(members)})
    names = tuple(data.clients)
    if config.by in {"file", "column"}:
        held = Preferences.concat([data.split.seen, data.split.unseen])
        one_client_each(held)
        number = {name: i for i, name in enumerate(names)}
        pairs = zip(held.user.tolist(), held.client.tolist(), strict=True)
        return EvaluationClients(names, {user: number[client] for user, client in pairs if client in number})
    return EvaluationClients(names, {user: int(hash_fraction(f"client:{user}") * len(names)) for user in members})


@dataclass(frozen=True)
class EvaluationInput:
    """What federated evaluation starts from; ``scores`` are those of the released ``weight``."""

    plan: Plan
    data: FederatedData
    clients: EvaluationClients
    weight: Vector
    scores: Scores


def run_federated_evaluation(given: EvaluationInput, folder: RunFolder, warn: Warn) -> dict[str, Any]:
    """Group -> estimates, or why there are none. A finished release is read again, never made again.

    Raises:
        LedgerError, RunFolderError: books, kept messages or the released sum are lost or of another run.
        NoDataError: no client sent a usable message.
    """
    evaluation = given.plan.evaluation
    if evaluation is None:
        return {}
    try:
        released = _release(given, evaluation, folder, warn)
    except (
        BudgetError,
        TermsRefusal,
        RoundAborted,
        TooFewClientsError,
    ) as refusal:  # the model is released all the same
        warn(f"federated evaluation is refused: [{refusal.code}] {refusal.what} {refusal.why}")
        return {name: {"refused": f"[{refusal.code}] {refusal.what}"} for name in evaluation.groups}
    return estimates(released["value"], float(released["noise_std"][0]), evaluation.groups)


class _EvaluationFolder(RunFolder):
    """The run's folder with the books and the released sum of federated evaluation in the places of those of training."""

    def __init__(self, run: RunFolder) -> None:
        super().__init__(run.path)
        self.ledger = run.path / "evaluation.jsonl"
        self.node_ledger = self.node / "evaluation.jsonl"
        self.checkpoints = run.path / "evaluation"
        self.sealed = self.node / "evaluation.bin"
        self.members = self.node / "evaluation-members.bin"
        self.aggregation = run.path / "evaluation-aggregation.json"


@dataclass(frozen=True)
class _Stage:
    """One attempt at the release: everything that its steps need."""

    given: EvaluationInput
    plan: EvaluationPlan
    mechanism: Mechanism
    books: Books
    released: Checkpoints
    rng: RandomSource
    manifest: Manifest
    warn: Warn

    @property
    def names(self) -> list[str]:
        """The clients that are asked."""
        return list(self.given.clients.names)


def _release(given: EvaluationInput, evaluation: EvaluationPlan, run: RunFolder, warn: Warn) -> dict[str, Vector]:
    recipe, names, folder = given.plan.recipe, list(given.clients.names), _EvaluationFolder(run)
    check_cohort(recipe, names)
    mechanism = evaluation_mechanism(recipe, evaluation, run_name(given.plan, run))
    headers = _headers(given, evaluation, mechanism)
    books = open_books(given.plan, folder, headers, mechanism.events(evaluation.round_number), names)
    try:
        released, manifest = Checkpoints(folder.checkpoints), reward_manifest(recipe.head)
        stage = _Stage(given, evaluation, mechanism, books, released, random_source(recipe), manifest, warn)
        number = evaluation.round_number
        exchanges = Exchanges(recipe, given.plan.digest, names, folder, left=1, last=number)
        connection = connect(exchanges, mechanism, _node(stage), books.node, warn)
        try:
            done = _restore(books, released, number)
            return _exchange(stage, connection) if done is None else done
        finally:
            if books.federation.closed_round == number:
                connection.close()
    finally:
        books.close()


def _node(stage: _Stage) -> dict[str, Any]:
    """Arguments of the node; its work scores nobody before the books say so."""
    return {
        "name": NODE,
        "num_clients": len(stage.names),
        "work": EvaluationWork(len(stage.names), lambda refused: _rows(stage.given, stage.plan, refused)),
        "manifest": stage.manifest,
        "rng": stage.rng,
        "offer": stage.books.offer,
        "guards": stage.books.guards,
    }


def _exchange(stage: _Stage, connection: Connection) -> dict[str, Vector]:
    """Ask, book, exchange, release.

    Raises:
        RoundAborted, TooFewClientsError: under secure aggregation; the event is spent, and there is no second try.
    """
    books, number = stage.books, stage.plan.round_number
    _agree(stage, kept=connection.answered(number))
    reservation = _reserve(books, stage.mechanism, number)
    try:
        release = _released(stage, connection.channel, reservation)
    except (RoundAborted, TooFewClientsError) as reason:
        books.federation.abort(reservation, f"{reason.code}: {reason.why}", spent=True)
        raise
    done = {"value": release.value, "noise_std": np.array([release.noise_std])}
    stage.released.prepare(number, done)
    books.federation.commit(reservation)
    stage.released.publish(number)
    return done


def _released(stage: _Stage, channel: Channel, reservation: Reservation) -> Release:
    """What came back from the clients as the one release about evaluation users."""
    request = RoundRequest(stage.plan.round_number, stage.manifest.digest, stage.given.weight)
    replies, mechanism = channel.exchange(request), stage.mechanism
    if isinstance(replies, SecureSum) and isinstance(mechanism, DistributedMechanism):
        release = mechanism.release(replies, mechanism.max_grad_norm, reservation)
        if implausible(mechanism.secagg, replies, _most_people(stage.given)):
            raise RoundAborted(
                "Federated evaluation is aborted.",
                "Its sum is larger than any of honest clients.",
                "Somebody put a false vector behind the masks; look at clients that joined lately.",
            )
        return release
    if not isinstance(replies, list) or not isinstance(mechanism, GaussianMechanism):
        raise MechanismMisuseError(
            "What came back is not what this trust gives.",
            "Sealed messages belong to `central` and `local`, an unmasked sum to `distributed`.",
            "Build server and channel from one plan.",
        )
    return _noised(stage, mechanism, _messages(stage, mechanism, replies), reservation)


def _restore(books: Books, released: Checkpoints, number: int) -> dict[str, Vector] | None:
    """The released sum, if its noise was drawn before; a kill may have left it prepared, or committed and unpublished."""
    ledger = books.federation
    if ledger.open_reservation is not None and released.is_prepared(number):
        ledger.commit(ledger.open_reservation)
    if ledger.committed_round:
        released.publish(ledger.committed_round)
    elif ledger.closed_round:
        raise RoundAborted(
            "Federated evaluation was aborted.",
            "Its event is spent and nothing was released; there is no second try.",
            "The released model is unchanged; a new run evaluates again.",
        )
    _, state = released.last()
    if (state is None) is not (ledger.committed_round == 0):
        raise RunFolderError(
            "The books of federated evaluation and its released sum do not belong together.",
            "One of evaluation.jsonl and the folder `evaluation` was lost or rolled back.",
            "Restore it from a copy; noise is not drawn twice under one booking.",
        )
    return state


def _agree(stage: _Stage, *, kept: bool) -> None:
    """Ask every client's terms, and both books, about what is not booked yet.

    Raises:
        TermsRefusal: no client is willing, and none has sent anything.
        BudgetError: it does not fit the project's books.
    """
    p, number, books = stage.given.plan.recipe.privacy, stage.plan.round_number, stage.books
    booked = kept or books.node.open_reservation is not None
    last = number - 1 if booked else number
    planned = stage.mechanism.composition(number, last, node=True)
    refused = books.agree(planned, private_rng=p.rng == "os")
    if len(refused) == len(stage.names) and not kept:
        if books.federation.open_reservation is not None:
            books.federation.abort(books.federation.open_reservation, "no client is willing", spent=True)
        raise TermsRefusal(
            "No client takes part in federated evaluation.",
            "All of them refuse by their own terms, or nobody was held out.",
            "Look at the clients' terms; the released model is unchanged.",
        )
    if books.federation.open_reservation is None:
        for adversary, events in stage.mechanism.composition(number, number).items():
            books.federation.expect(adversary, events)
    for adversary, events in planned.items():
        books.node.expect(adversary, events)


def _reserve(books: Books, mechanism: Mechanism, number: int) -> Reservation:
    """Book it, or go on under a booking of which no release left the server."""
    interrupted = books.federation.open_reservation
    if interrupted is None:
        return books.federation.reserve(number, mechanism.events(number))
    books.federation.retry(interrupted, "no release left the server")
    return interrupted


def _rows(given: EvaluationInput, evaluation: EvaluationPlan, refused: Collection[int]) -> EvaluationRows:
    """The clients' own work: score the pairs of the willing clients' evaluation users, one bounded vector each."""
    willing = {user: client for user, client in given.clients.client_of.items() if client not in refused}
    split = given.data.split
    groups = [part.select(np.isin(part.user, list(willing))) for part in (split.seen, split.unseen)]
    groups = groups[: len(evaluation.groups)]
    correct = [correctness(part, given.scores)[0] if len(part) else np.zeros(0) for part in groups]
    return evaluation_rows(correct, [part.user for part in groups], willing)


def _most_people(given: EvaluationInput) -> float:
    """More than any honest client has."""
    return max(_SLACK * given.plan.recipe.federation.num_units, float(len(given.data.roster.users)))


def _messages(stage: _Stage, mechanism: GaussianMechanism, replies: list[bytes | Failure]) -> list[Sealed]:
    """The usable replies; a malformed one is named and left out, and the noise does not depend on it."""
    messages: list[Sealed] = []
    for client, reply in enumerate(replies):
        if isinstance(reply, Failure):
            stage.warn(f"client {client} did not take part in federated evaluation: {reply.why}")
            continue
        try:
            messages.append(_opened(stage, mechanism, reply, client))
        except SealedMessageError as error:
            stage.warn(f"federated evaluation: {error.what} {error.why}")
    if not messages:
        raise NoDataError(
            "Federated evaluation: no client sent a usable message.",
            "All of them failed or speak another version.",
            "See the warnings above, then go on with --resume.",
        )
    return messages


def _noised(stage: _Stage, mechanism: GaussianMechanism, messages: list[Sealed], reservation: Reservation) -> Release:
    if mechanism.trust is Trust.LOCAL:
        return mechanism.collect([m for m in messages if isinstance(m, LocallyPrivate)], reservation)
    total = ClippedSum(np.zeros(stage.plan.dimension), mechanism.max_grad_norm)
    for message in messages:
        total += ClippedSum(message.value, message.l2_bound)
    return mechanism.release(total, reservation, stage.rng)


def _opened(stage: _Stage, mechanism: GaussianMechanism, reply: bytes, client: int) -> Sealed:
    expected: type[Sealed] = LocallyPrivate if mechanism.trust is Trust.LOCAL else Entrusted
    message = sealed_from_bytes(reply, expected, client, stage.plan.round_number, stage.plan.dimension)
    longest = _most_people(stage.given) * mechanism.max_grad_norm
    too_long = expected is Entrusted and not np.linalg.norm(message.value) <= longest
    if message.l2_bound != mechanism.max_grad_norm or too_long:
        raise SealedMessageError(
            f"Client {client} sent a sum that no honest client can have.",
            "Its bound is another, or its norm is above that of all declared people together.",
            "Look at that client; if it is honest, federation.num_units is declared far too low.",
        )
    return message


def _headers(given: EvaluationInput, evaluation: EvaluationPlan, mechanism: Mechanism) -> dict[str, LedgerHeader]:
    p, target = given.plan.recipe.privacy, given.plan.recipe.evaluation.target_epsilon
    facts = {
        "groups": list(evaluation.groups),
        "max_grad_norm": mechanism.max_grad_norm,
        "num_clients": len(given.clients.names),
        **(public_facts(mechanism.secagg, p.secure_aggregation) if isinstance(mechanism, DistributedMechanism) else {}),
    }
    if given.plan.recipe.federation.partition.by == "natural":  # each is a person: no book counts evaluation users
        del facts["num_clients"]

    def header(scope: str, own: float | None) -> LedgerHeader:
        return LedgerHeader(
            scope=scope,
            run=given.plan.digest[:16],
            unit=p.unit,
            trust=p.trust,
            target_epsilon=own,
            target_delta=p.target_delta,
            private_rng=p.rng == "os",
            facts=facts,
        )

    # Under `central` a node's book is its clients' worst case, not the claim: no budget, as for the rounds.
    return {
        "federation": header("evaluation", target),
        "node": header(f"node:{NODE}:evaluation", None if p.trust is Trust.CENTRAL else target),
    }
