"""A node under secure aggregation: its clients' state machines around the same contributions.

What leaves a client is a vector under its masks with its noise share inside, and small messages about keys and shares.
Per trip: check every request, ask the terms, book the round; client by client compute, noise, mask; keep all states
(durable), let go.
A round of training gives one vector a client: if one was kept and the exchange was lost, there is no second.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fedpref.channel.base import Failure, RoundRequest
from fedpref.client.contribution import ClientWork, RoundClipping, Rows, RowsOf, SecureWork
from fedpref.client.guard import failure
from fedpref.client.members import Kept, MemberJournal
from fedpref.client.node import Node
from privacy.distributed import DistributedMechanism
from privacy.errors import CodedError, MechanismMisuseError, TermsRefusal
from privacy.ledger import Reservation
from privacy.secagg.client import SecAggClient, Ticket
from privacy.secagg.errors import ReplayRefusal
from privacy.secagg.keys import Identity, Pinned
from privacy.secagg.messages import replay
from privacy.secagg.shares import NoisedShare
from privacy.secagg.two_trip import answer_bundle, wants_vector


@dataclass(frozen=True)
class Identities:
    """The node's clients' own keys, and whose keys they believe."""

    clients: Mapping[int, Identity]
    pinned: Pinned


@dataclass
class _Round:
    """One round of training at this node, once it is booked."""

    reservation: Reservation
    clients: Collection[int]
    rows: RowsOf
    clipping: RoundClipping
    refusals: Mapping[int, CodedError]

    @property
    def taking_part(self) -> set[int]:
        """Clients that are asked and willing."""
        return set(self.clients) - self.refusals.keys()


class SecureNode(Node):
    """Answers the trips of secure aggregation for its clients; releases nothing but masked vectors."""

    def __init__(
        self,
        *,
        mechanism: DistributedMechanism,
        members: MemberJournal,
        identities: Identities | None,
        max_participations: int | None = None,
        **common: Any,
    ) -> None:
        """``identities``: None for a simulated run, which has no masks. The rest as for ``Node``.

        Raises:
            RunFolderError, LedgerError: what the clients kept cannot be used; see ``MemberJournal.load``.
            MechanismMisuseError: the clients' work gives no single rows.
        """
        super().__init__(mechanism=mechanism, journal=members, **common)
        self._distributed, self._members, self._identities = mechanism, members, identities
        self._rows = _secure(self._work)
        self._max_participations = max_participations
        self._kept: Kept = members.load(self._ledger.holds, self._ledger.committed_line)
        self._machines: dict[int, SecAggClient] = {}

    # ---- secure aggregation

    def trip(self, bundles: Mapping[int, bytes], request: RoundRequest | None) -> dict[int, bytes | Failure]:
        """Answer one trip for every client that has a bundle; ``request`` comes with the one that wants vectors.

        Raises:
            RunFolderError: the request is for another trainable part.
            BudgetError: the round would overspend the node's own budget.
            CodedError: what stopped a client's computation stops the node, before anything is kept or sent.
        """
        if request is not None:
            self._check(request)
        wanted = [client for client, bundle in bundles.items() if wants_vector(bundle)]
        asked = _Lazy(lambda: self._begin(request, wanted))
        try:
            replies = {client: self._answer(client, bundle, request, asked) for client, bundle in bundles.items()}
        except BaseException as stop:
            self._machines.clear()  # what was sealed in this trip was not kept: it must not be sent by the next one
            if isinstance(stop, _NodeStoppedError):
                raise stop.error from None
            raise
        if asked.error is not None and not isinstance(asked.error, (TermsRefusal, ReplayRefusal)):
            raise asked.error  # no client's refusal: the node itself cannot go on
        self._kept.states.update({client: machine.to_bytes() for client, machine in self._machines.items()})
        if asked.value is not None:
            self._kept.booked(asked.value.reservation, asked.value.taking_part)
        self._members.save(self._kept)
        if asked.value is not None:
            self._ledger.commit(asked.value.reservation)
        return replies

    def _answer(self, client: int, bundle: bytes, request: RoundRequest | None, asked: _Lazy) -> bytes | Failure:
        guard = self._guards.get(client)
        if guard is not None and guard.refused is not None:
            return failure(guard.refused)

        def contribute(ticket: Ticket) -> NoisedShare:
            if request is None or ticket.model != request.digest:
                raise replay("A vector is asked for at other parameters than those that came along")
            return self._share(client, ticket.round, asked())

        try:
            reply = answer_bundle(self._machine(client), bundle, contribute)
        except CodedError as error:
            return failure(error)
        no = next((error for error in reply.refusals if isinstance(error, TermsRefusal)), None)
        return failure(no) if no is not None and not any(reply.data) else reply.data

    def _machine(self, client: int) -> SecAggClient:
        if self._identities is None:
            raise replay("A masked vector is asked for in a simulated run")
        if client not in self._machines:
            guard = self._guards.get(client)
            self._machines[client] = SecAggClient(
                client=client,
                identity=self._identities.clients[client],
                pinned=self._identities.pinned,
                plan=self._distributed.secagg,
                least_cohort=max(2, guard.least_cohort if guard else 2),
                journal=self._kept.states.get(client),
            )
        return self._machines[client]

    # ---- simulation

    def shares(self, request: RoundRequest, number: int, clients: tuple[int, ...]) -> dict[int, NoisedShare | Failure]:
        """The same integers without masks, for a server in this very process; see ``SimulatedChannel``.

        Raises:
            ReplayRefusal: the run is not a simulated one.

        The booking stays open until the next round is asked for: until then nothing of this one is known to be released.
        """
        if self._identities is not None:
            raise replay("Unmasked integers are asked for in a run with masks")
        self._check(request)
        self.close_round(request.round)
        try:
            begun = self._begin(request, clients)
        except TermsRefusal as no:
            return dict.fromkeys(clients, failure(no))
        self._kept.booked(begun.reservation, begun.taking_part)
        self._members.save(self._kept)
        replies: dict[int, NoisedShare | Failure] = {}
        for client in clients:
            try:
                replies[client] = self._share(client, number, begun)
            except _NodeStoppedError as stop:
                raise stop.error from None
            except CodedError as error:
                replies[client] = failure(error)
        return replies

    def answered(self, round_number: int) -> bool:
        """True if a vector was kept for this round, hence perhaps sent."""
        return self._kept.round >= round_number

    def close_round(self, before: int) -> None:
        """Commit an open round that lies before this one: the server went on, so it was released."""
        interrupted = self._ledger.open_reservation
        if interrupted is not None and interrupted.round < before:
            self._ledger.commit(interrupted)

    def finish(self, num_rounds: int) -> None:
        """After the last round: close it, and erase the clients' secrets."""
        self.close_round(num_rounds + 1)
        self._machines.clear()
        self._members.forget_states(self._kept)

    # ---- one round of training

    def _begin(self, request: RoundRequest | None, clients: Collection[int]) -> _Round:
        """Ask the terms, book the round, toss the coins; what each client contributes is computed when it is its turn."""
        if request is None:
            raise replay("A vector is asked for without parameters")
        if self._identities is not None and self._kept.round >= request.round:
            self._finish_booking(request.round)
            raise replay(f"A second vector for round {request.round}: the first may have been sent")
        refusals = {**self._refusals(request.round), **self._worn_out(request.round)}
        if refusals.keys() >= set(clients):
            raise refusals[min(clients)]
        others = set(range(self._num_clients)) - set(clients)
        reservation = self._reserve(request.round, {**refusals, **dict.fromkeys(others, _not_asked())})
        selected = self._selected(request.round, refusals.keys() | others)
        rows = self._rows.rows_by_client(request.parameters, selected)
        return _Round(reservation, clients, rows, self._clipping_of(request), refusals)

    def _share(self, client: int, number: int, begun: _Round) -> NoisedShare:
        if client in begun.refusals:
            raise begun.refusals[client]
        bound = begun.clipping.max_grad_norm
        return self._distributed.share(
            _blocks(begun, client), bound, begun.reservation, client, self._rng, number=number
        )

    def _worn_out(self, round_number: int) -> dict[int, CodedError]:
        """Clients that took part as often as they ever will; a round that goes on is counted already."""
        most = self._max_participations
        if most is None:
            return {}
        spent = {
            client for client, n in self._kept.counts.items() if n >= most and not self._counted(client, round_number)
        }
        no = TermsRefusal(
            "The client took part as often as it will.",
            f"Its own count of this run stands at {most}.",
            "Ask other clients.",
            term="max_participations",
        )
        return dict.fromkeys(spent, no)

    def _counted(self, client: int, round_number: int) -> bool:
        del client
        return self._kept.round == round_number and self._goes_on(round_number)


class _NodeStoppedError(Exception):
    """Carries a coded error of a computation past those who would take it for a client's refusal: it is the node's."""

    def __init__(self, error: CodedError) -> None:
        super().__init__(str(error))
        self.error = error


def _blocks(begun: _Round, client: int) -> Iterator[Rows]:
    try:
        for block in begun.rows(client):
            yield begun.clipping.with_bits(block)
    except CodedError as error:
        raise _NodeStoppedError(error) from error


def _secure(work: ClientWork) -> SecureWork:
    if not isinstance(work, SecureWork):
        raise MechanismMisuseError(
            f"{type(work).__name__} gives no single rows.",
            "Secure aggregation clips and rounds them by itself.",
            "Use trust `central` or `local`.",
        )
    return work


class _Lazy:
    """A round that is begun when the first checked request for a vector comes, and once; a refusal is for all."""

    def __init__(self, begin: Callable[[], _Round]) -> None:
        self._begin = begin
        self.value: _Round | None = None
        self.error: CodedError | None = None

    def __call__(self) -> _Round:
        if self.error is not None:
            raise self.error
        if self.value is None:
            try:
                self.value = self._begin()
            except CodedError as error:
                self.error = error
                raise
        return self.value


def _not_asked() -> TermsRefusal:
    return TermsRefusal("The client was not asked.", "It is not in this round's cohort.", "Nothing to do.")
