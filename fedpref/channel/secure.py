"""Secure aggregation as a channel: what comes back from the clients is one noised sum (or one per bucket), or nothing.

``SecureChannel`` runs the two trips a round (three if strict) of ``privacy.secagg.two_trip`` over any transport;
``SimulatedChannel`` adds the same integers openly, bit for bit the same sums, for large simulations in one process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fedpref.channel.base import Failure, OpenShares, RoundRequest, Trips
from fedpref.errors import RunFolderError, TooFewClientsError
from fedpref.journal import write_durably
from privacy.events import canonical
from privacy.secagg.errors import RoundAborted
from privacy.secagg.keys import Identity
from privacy.secagg.plan import SecAggPlan
from privacy.secagg.robust import Unmasked, simulated_round
from privacy.secagg.shares import NoisedShare
from privacy.secagg.two_trip import Trip, TwoTripServer

_PER_START = 1 << 20  # numbers of exchanges that one start of the server may use; none is ever used twice
_MOST_STARTS = 2000
_ATTEMPTS = 3  # of a set-up (it carries no private data and is not booked), or rounds in a row that may abort
SCHEMA = "fedpref-aggregation-1"


class ServerMemory:
    """What the server of secure aggregation remembers over a restart: how often it started, and the last closure."""

    def __init__(self, path: Path) -> None:
        """Note one more start, on disk.

        Raises:
            RunFolderError: the file is none of this version, or the server started too often.
        """
        self._path = path
        starts, self.closure = self._read() if path.exists() else (0, b"")
        if starts >= _MOST_STARTS:
            raise _unreadable(path, f"the run was started {starts} times")
        self._starts = starts + 1
        self._write()

    @property
    def first_number(self) -> int:
        """Above every number that an earlier start can have used."""
        return self._starts * _PER_START

    def close_round(self, closure: bytes) -> None:
        """Keep the signatures on the last survivors: clients want to see them before they go on."""
        self.closure = closure
        self._write()

    def _read(self) -> tuple[int, bytes]:
        try:
            fields = json.loads(self._path.read_text(encoding="utf-8"))
            if fields["schema"] != SCHEMA or type(fields["starts"]) is not int or fields["starts"] < 1:
                raise ValueError(fields["schema"])
            return fields["starts"], bytes.fromhex(fields["closure"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _unreadable(self._path, type(error).__name__) from None

    def _write(self) -> None:
        fields = {"schema": SCHEMA, "starts": self._starts, "closure": self.closure.hex()}
        write_durably(self._path, (canonical(fields) + "\n").encode())


def _unreadable(path: Path, why: str) -> RunFolderError:
    return RunFolderError(
        f"{path.name}: the server's memory of its exchanges cannot be used.",
        f"{why[0].upper()}{why[1:]}.",
        "Restore it from a copy, or start a new run folder; without it a number could be used twice.",
    )


class SecureChannel:
    """The server's end of secure aggregation. Never sees one client's vector."""

    def __init__(
        self,
        *,
        plan: SecAggPlan,
        identity: Identity,
        clients: Mapping[int, bytes],
        invited: Callable[[int], Sequence[int]],
        rounds: int,
        transport: Trips,
        memory: ServerMemory,
        warn: Callable[[str], None],
    ) -> None:
        """``clients``: pinned identity keys; ``invited``: whom a round of the training asks; ``rounds``: how many are left."""
        self._transport, self._memory, self._warn, self._invited = transport, memory, warn, invited
        self._round, self._asked, self._lost = 1, False, 0
        self._faults, self._silent = dict[int, str](), set[tuple[int, int]]()
        self._server = TwoTripServer(
            plan=plan,
            identity=identity,
            clients=clients,
            invite=self._invite,
            rounds=rounds,
            first_round=memory.first_number,
            closure=memory.closure,
        )

    def _invite(self, number: int) -> Sequence[int]:
        """Set-up of the next round rides on this one; a set-up that is done again is for this one."""
        del number
        return self._invited(self._round + (1 if self._server.under_way else 0))

    def exchange(self, request: RoundRequest) -> Unmasked:
        """All trips of one round.

        Raises:
            RoundAborted: too few clients answered after vectors were asked for; the round stays booked.
            TooFewClientsError: no set-up came about, or too many rounds before this one were lost in a row; nothing private
                left anybody for this one.
        """
        self._round, failed, known = request.round, 0, len(self._server.aborted)
        if self._lost >= _ATTEMPTS:
            raise _gave_up(self._server.aborted[-_ATTEMPTS:])
        while True:
            total = self._trip(request)
            if total is not None:
                self._memory.close_round(self._server.closure)
                self._lost = 0
                return total
            if self._asked and not self._server.under_way:
                self._asked, self._lost = False, self._lost + 1
                raise _aborted(request.round, self._server.aborted[known:])
            failed += self._server.trip is Trip.KEYS
            if failed >= _ATTEMPTS:
                raise _gave_up(self._server.aborted[known:])

    def _trip(self, request: RoundRequest) -> Unmasked | None:
        server = self._server
        vectors = server.trip is Trip.VECTORS
        bundles = server.requests(request.digest)
        if vectors:
            self._asked = server.under_way
        replies = self._transport.trip(bundles, request if vectors and server.under_way else None)
        for client, reply in replies.items():
            if isinstance(reply, Failure) and (client, request.round) not in self._silent:
                self._silent.add((client, request.round))
                self._warn(f"client {client} did not answer round {request.round}: {reply.why}")
        total = server.take({client: reply for client, reply in replies.items() if isinstance(reply, bytes)})
        if total is not None:
            self._asked = False
        self._name_faults(request.round)
        for missing in server.missing:
            self._warn(f"round {request.round}: a bucket is left out: {missing.why}")
        server.missing.clear()
        return total

    def _name_faults(self, round_number: int) -> None:
        for client, why in self._server.faults.items():
            if self._faults.get(client) != why:
                self._warn(f"round {round_number}: client {client} is left out: {why}")
        self._faults = dict(self._server.faults)


def _why(aborted: Sequence[RoundAborted]) -> str:
    return " ".join(dict.fromkeys(error.why for error in aborted))


def _aborted(round_number: int, aborted: Sequence[RoundAborted]) -> RoundAborted:
    return RoundAborted(
        f"Round {round_number} is aborted.",
        _why(aborted),
        "Nothing was unmasked; the event stays booked, and the next round goes on from the same parameters.",
    )


def _gave_up(aborted: Sequence[RoundAborted]) -> TooFewClientsError:
    return TooFewClientsError(
        f"No exchange came about in {_ATTEMPTS} attempts.",
        f"{_why(aborted)} Nothing private left a client for it.",
        "Get more clients to answer, then go on with --resume.",
    )


class SimulatedChannel:
    """Adds the clients' integers without masks: the same sums, no protection against this process."""

    def __init__(
        self,
        *,
        plan: SecAggPlan,
        invited: Callable[[int], Sequence[int]],
        node: OpenShares,
        memory: ServerMemory,
        warn: Callable[[str], None],
    ) -> None:
        self._plan, self._invited, self._node, self._warn = plan, invited, node, warn
        self._next = memory.first_number

    def exchange(self, request: RoundRequest) -> Unmasked:
        """The sum over all clients that answer, or one per bucket.

        Raises:
            RoundAborted: fewer than the least cohort, in all or in too many buckets.
        """
        number, self._next = self._next, self._next + 1
        invited = tuple(self._invited(request.round))
        replies = self._node.shares(request, number, invited)
        shares: dict[int, NoisedShare] = {}
        for client, reply in replies.items():
            if isinstance(reply, Failure):
                self._warn(f"client {client} did not answer round {request.round}: {reply.why}")
            else:
                shares[client] = reply
        try:
            return simulated_round(self._plan, number, invited, shares)
        except RoundAborted as error:
            raise _aborted(request.round, [error]) from None
