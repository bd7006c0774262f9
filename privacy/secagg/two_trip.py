"""The same protocol in two trips a round (three if strict): the set-up of round r+1 rides on the messages of round r.

| trip | server -> client | client -> server |
|---|---|---|
| S1, S2 | ``invite``, ``roster`` of the first round | ``keys``, ``shares`` |
| A(r) | ``cohort`` of r, ``invite`` of r+1 | ``masked``, ``keys`` |
| B(r) | ``survivors`` of r, ``roster`` of r+1 | ``agreed`` and ``unmask`` (strict: ``agreed``), ``shares`` |
| C(r), strict | ``agreement`` of r | ``unmask`` |

A bundle is a list of the single messages, each signed and checked as ever; a run of T rounds takes 2T + 2 trips (3T + 2).
All buckets of a round go through its trips together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from privacy.errors import CodedError
from privacy.secagg.client import SecAggClient, Ticket
from privacy.secagg.errors import MalformedMessage, RoundAborted
from privacy.secagg.keys import Identity
from privacy.secagg.plan import Consistency, SecAggPlan
from privacy.secagg.robust import Unmasked
from privacy.secagg.round_server import Requests, RoundServer
from privacy.secagg.server import SecAggServer
from privacy.secagg.shares import NoisedShare
from privacy.secagg.wire import MAGIC, divide, join

_PARTS = 2


@dataclass(frozen=True)
class BundleReply:
    """Replies in the order of the requests, empty where one was refused; and the refusals, for the client's own log."""

    data: bytes
    refusals: tuple[CodedError, ...]


def answer_bundle(client: SecAggClient, bundle: bytes, contribute: Callable[[Ticket], NoisedShare]) -> BundleReply:
    """Answer the requests of one trip; ``contribute`` turns a checked request into the client's noised share.

    A refused request does not stop the others.

    Raises:
        MalformedMessage: the bundle itself cannot be taken apart.
    """
    replies, refusals = list[bytes](), list[CodedError]()
    for request in divide(bundle, at_most=_PARTS):
        try:
            replies.append(_answer(client, request, contribute))
        except CodedError as error:
            replies.append(b"")
            refusals.append(error)
    return BundleReply(join(replies), tuple(refusals))


def wants_vector(bundle: bytes) -> bool:
    """True if a request for a vector is in the bundle, checked or not; False if it cannot be taken apart."""
    try:
        return any(part[: len(MAGIC)] != MAGIC for part in divide(bundle, at_most=_PARTS))
    except MalformedMessage:
        return False


def _answer(client: SecAggClient, request: bytes, contribute: Callable[[Ticket], NoisedShare]) -> bytes:
    if request[: len(MAGIC)] == MAGIC:
        return client.answer(request)
    kept = client.kept(request)
    if kept is not None:
        return kept
    ticket = client.open_cohort(request)
    return client.seal(ticket, contribute(ticket))


class Trip(StrEnum):
    """Which exchange is due."""

    KEYS = "S1"
    SHARES = "S2"
    VECTORS = "A"
    SURVIVORS = "B"
    AGREEMENT = "C"


class TwoTripServer:
    """The server over a run: ``requests`` of the trip that is due, then ``take`` what came back, until ``finished``.

    A round that aborts is left in ``aborted`` (a bucket of one that does not, in ``missing``), and the run goes on with the
    next; if the set-up of that one failed too, it begins again with S1 and a new number, because the number of a round is
    never used twice.
    """

    def __init__(
        self,
        *,
        plan: SecAggPlan,
        identity: Identity,
        clients: Mapping[int, bytes],
        invite: Callable[[int], Sequence[int]],
        rounds: int,
        first_round: int = 1,
        closure: bytes = b"",
    ) -> None:
        """``invite`` names who is asked in a round; ``rounds`` sums are wanted; ``first_round`` is above all used ones.

        ``closure``: of the last sum that an earlier process unmasked.
        """
        self._plan, self._identity, self._clients, self._invite = plan, identity, dict(clients), invite
        self._wanted, self._next_number = rounds, first_round
        self._current: RoundServer | None = None
        self._next: RoundServer | None = None
        self._closure = closure
        self._sent: list[tuple[Iterable[int], Callable[[int, bytes], bool]]] = []
        self.trip = Trip.KEYS
        self.aborted: list[RoundAborted] = []
        self.missing: list[RoundAborted] = []
        self.faults: dict[int, str] = {}

    @property
    def under_way(self) -> bool:
        """True while vectors are asked for or being unmasked: something of a round may have left clients."""
        return self._current is not None

    @property
    def closure(self) -> bytes:
        """Of the last sum, to be kept over a restart: the clients want to see it next."""
        return self._closure

    @property
    def finished(self) -> bool:
        """True once as many sums were unmasked as were wanted."""
        return self._wanted == 0

    def requests(self, model: bytes = b"") -> dict[int, bytes]:
        """The bundle of the due trip for each client that has one; ``model`` is the digest of what trip A sends along."""
        self._sent, parts = [], dict[int, list[bytes]]()
        if self.trip is Trip.VECTORS:
            self._current, self._next = self._next, None
            self._add(parts, lambda r: r.cohort(model, self._closure), SecAggServer.take_masked, "_current")
        elif self.trip is Trip.SURVIVORS:
            take = SecAggServer.take_unmask if self._is_last else SecAggServer.take_agreed
            self._add(parts, lambda r: r.survivors(), take, "_current")
        elif self.trip is Trip.AGREEMENT:
            self._add(parts, lambda r: r.agreement(), SecAggServer.take_unmask, "_current")
        if self.trip in {Trip.KEYS, Trip.VECTORS} and self._more:
            self._open_next()
            self._add(parts, lambda r: r.invitation(self._invite(r.round)), SecAggServer.take_keys, "_next")
        elif self.trip in {Trip.SHARES, Trip.SURVIVORS} and self._next is not None:
            self._add(parts, lambda r: r.roster(), SecAggServer.take_shares, "_next")
        return {client: join(requests) for client, requests in parts.items()}

    def take(self, replies: Mapping[int, bytes]) -> Unmasked | None:
        """Bundles that came back; the sum of the round, or those of its buckets, once unmasked."""
        for client, bundle in replies.items():
            self._take_bundle(client, bundle)
        result = self._finish() if self._is_last else None
        self._advance()
        return result

    @property
    def _more(self) -> bool:
        return self._wanted > (1 if self._current is not None else 0)

    @property
    def _is_last(self) -> bool:
        """True if the current round ends with this trip."""
        strict = self._plan.cohort.consistency is Consistency.STRICT
        return self.trip is (Trip.AGREEMENT if strict else Trip.SURVIVORS)

    def _open_next(self) -> None:
        self._next = RoundServer(
            plan=self._plan, identity=self._identity, clients=self._clients, round_number=self._next_number
        )
        self._next_number += 1

    def _add(
        self,
        parts: dict[int, list[bytes]],
        make: Callable[[RoundServer], Requests],
        take: Callable[[SecAggServer, int, bytes], bool],
        which: str,
    ) -> None:
        """One round's part of the trip; if the round cannot go on, it is dropped."""
        r: RoundServer | None = getattr(self, which)
        if r is None:
            return
        try:
            requests = make(r)
        except RoundAborted as error:
            self._drop(r, which, error)
            return
        for client, request in requests.items():
            parts.setdefault(client, []).append(request)
        self._sent.append((requests.keys(), r.taker(take)))

    def _drop(self, r: RoundServer, which: str, error: RoundAborted) -> None:
        self.aborted.append(error)
        self.faults.update(r.faults)
        setattr(self, which, None)

    def _take_bundle(self, client: int, bundle: bytes) -> None:
        asked = [take for clients, take in self._sent if client in clients]
        try:
            parts = divide(bundle, at_most=_PARTS)
        except MalformedMessage as error:
            self.faults[client] = error.why
            return
        for take, part in zip(asked, parts, strict=False):
            if part:
                take(client, part)

    def _finish(self) -> Unmasked | None:
        r, self._closure = self._current, b""
        if r is None:
            return None
        try:
            result = r.finish()
        except RoundAborted as error:
            self._drop(r, "_current", error)
            return None
        finally:
            self._closure = r.closure
        self.faults.update(r.faults)
        self.missing += r.aborted
        self._current, self._wanted = None, self._wanted - 1
        return result

    def _advance(self) -> None:
        if self.trip is Trip.KEYS:
            self.trip = Trip.SHARES
        elif self.trip is Trip.VECTORS:
            self.trip = Trip.SURVIVORS
        elif self.trip is Trip.SURVIVORS and not self._is_last and self._current is not None:
            self.trip = Trip.AGREEMENT
        else:
            self.trip = Trip.KEYS if self._next is None else Trip.VECTORS
