"""A node answers a round for its clients: coins, per-unit gradients, clip, sum, seal, journal, send.

Order of a round: check the request, ask the clients' terms, book it in the clients' own books and in the node's ledger
(durable), compute, seal, keep the sealed bytes (durable), then let them go. Asked again for the same round, the node
sends the same bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Protocol

import numpy as np

from fedpref.channel.base import Failure, RoundRequest
from fedpref.client.contribution import ClientWork, RoundClipping, RowWork
from fedpref.client.guard import Guard, failure
from fedpref.client.local_training import private_steps
from fedpref.errors import RunFolderError
from fedpref.journal import SealedJournal
from fedpref.manifest import Manifest
from privacy.adaptive import QuantileClipping
from privacy.clipping import ClippedSum
from privacy.errors import CodedError, MechanismMisuseError, TermsRefusal
from privacy.ledger import Ledger, Reservation
from privacy.local_sgd import LocalDpSgd
from privacy.mechanism import GaussianMechanism, Mechanism
from privacy.rng import RandomSource
from privacy.sampling import Mask
from privacy.terms import Offer
from privacy.units import Trust


class Journal(Protocol):
    """What a node keeps before it sends."""

    def intact(self) -> bool:
        """True if nothing is kept, or a whole file is."""


class Node:
    """Holds the data of one or many clients, one ledger, one journal; releases nothing but sealed messages."""

    def __init__(
        self,
        *,
        name: str,
        num_clients: int,
        work: ClientWork,
        manifest: Manifest,
        mechanism: Mechanism,
        ledger: Ledger,
        journal: Journal,
        rng: RandomSource,
        clipping: QuantileClipping | None = None,
        offer: Offer | None = None,
        guards: Mapping[int, Guard] | None = None,
    ) -> None:
        """``work`` computes what the clients contribute, from their data.

        ``guards`` hold the terms of the clients that have any; ``offer`` is what they are asked about every round.

        ``clipping``: adaptive, with the norm of the request; None: fixed, at the mechanism's bound.
        """
        self._name, self._num_clients, self._work = name, num_clients, work
        self._manifest, self._mechanism = manifest, mechanism
        self._ledger, self._journal, self._rng = ledger, journal, rng
        self._clipping, self._offer, self._guards = clipping, offer, dict(guards or {})

    def contribute(self, request: RoundRequest) -> list[bytes | Failure]:
        """One sealed contribution per client, all of the same size; a client whose terms refuse sends a coded failure.

        Raises:
            RunFolderError: the request is for another trainable part.
            BudgetError: the round would overspend the node's own budget.
        """
        self._check(request)
        if not isinstance(self._mechanism, GaussianMechanism) or not isinstance(self._journal, SealedJournal):
            raise RunFolderError(
                "A sealed contribution is asked for under trust `distributed`.",
                "There only masked vectors leave a client.",
                "Run server and nodes from one resolved recipe.",
            )
        kept = self._journal.load(request.round, self._ledger.holds)
        if kept is not None:
            self._finish_booking(request.round)
            return self._replies(kept)
        refusals = self._refusals(request.round)
        if len(refusals) == self._num_clients:
            return [failure(refusal) for _, refusal in sorted(refusals.items())]
        reservation = self._reserve(request.round, refusals)
        mechanism = replace(self._mechanism, max_grad_norm=self._bound_of(request))
        if isinstance(mechanism, LocalDpSgd):
            messages = self._private_steps(request, mechanism, reservation, refusals)
        else:
            selected = self._selected(request.round, refusals.keys())
            sums = self._work.clipped_sums(request.parameters, selected, self._clipping_of(request))
            messages = [
                b"" if i in refusals else self._seal(i, total, reservation, mechanism) for i, total in enumerate(sums)
            ]
        self._journal.save(reservation, messages)
        self._ledger.commit(reservation)
        return self._replies(messages, refusals)

    def _replies(
        self, messages: list[bytes], refusals: Mapping[int, CodedError] | None = None
    ) -> list[bytes | Failure]:
        """Kept bytes as they were; a client that sent none refused then and is not asked again."""
        again = TermsRefusal("The client's terms refused this round.", "It sent nothing.", "Nothing to do.")
        return [m or failure((refusals or {}).get(i, again)) for i, m in enumerate(messages)]

    def _refusals(self, round_number: int) -> dict[int, CodedError]:
        """Which clients' terms say no to this round, before any of their data are touched."""
        if self._offer is None:
            return {}
        goes_on = round_number if self._goes_on(round_number) else None
        events = {} if goes_on else self._mechanism.node_events(round_number)
        checked = {id(guard): guard.check(self._offer, events, goes_on) for guard in self._guards.values()}
        answers = {client: checked[id(guard)] for client, guard in self._guards.items()}
        return {client: refusal for client, refusal in answers.items() if refusal is not None}

    def _goes_on(self, round_number: int) -> bool:
        """True if this round was booked before the node stopped and nothing of it left: damaged bytes may have."""
        interrupted = self._ledger.open_reservation
        return interrupted is not None and interrupted.round == round_number and self._journal.intact()

    def _check(self, request: RoundRequest) -> None:
        if (
            request.manifest_digest != self._manifest.digest
            or request.parameters.shape != (self._manifest.dimension,)
            or not np.isfinite(request.parameters).all()
            or request.round < 1
            or (request.clipping_norm is None) != (self._clipping is None)
        ):
            raise RunFolderError(
                f"Round {request.round} asks for another trainable part than this node has.",
                "Names, shapes, the way of clipping or the round number differ, or a parameter is NaN or inf.",
                "Run server and nodes from one resolved recipe.",
            )

    def _reserve(self, round_number: int, refusals: Mapping[int, CodedError]) -> Reservation:
        """Book the round; an interrupted one whose bytes never left goes on under its own booking."""
        interrupted = self._ledger.open_reservation
        if interrupted is not None and self._goes_on(round_number):
            self._ledger.retry(interrupted, "never sent")
            return interrupted
        if interrupted is not None:
            self._ledger.abort(interrupted, "superseded by another round, or its kept bytes are damaged", spent=True)
        events = self._mechanism.node_events(round_number)
        willing = {id(guard): guard for client, guard in self._guards.items() if client not in refusals}
        for guard in willing.values():
            guard.reserve(round_number, events)
        return self._ledger.reserve(round_number, events)

    def _finish_booking(self, round_number: int) -> None:
        """The kept bytes of a round are its booking's; close it if a kill left it open."""
        interrupted = self._ledger.open_reservation
        if interrupted is not None and interrupted.round == round_number:
            self._ledger.commit(interrupted)

    def _bound_of(self, request: RoundRequest) -> float:
        """The bound of this round's rows."""
        if self._clipping is None or request.clipping_norm is None:
            return self._mechanism.max_grad_norm
        return self._clipping.joint_bound(request.clipping_norm)

    def _selected(self, round_number: int, left_out: Collection[int]) -> Mask:
        """The units that take part; the coins are tossed here and stay here, as does the realised sample."""
        coins = self._rng.stream("coins", round=round_number, node=self._name)
        selected = self._mechanism.sampling.select(coins, self._work.units, round_number)
        selected &= ~np.isin(self._work.units.client, list(left_out))
        return selected

    def _clipping_of(self, request: RoundRequest) -> RoundClipping:
        return RoundClipping(self._bound_of(request), self._clipping, request.clipping_norm)

    def _private_steps(
        self,
        request: RoundRequest,
        mechanism: LocalDpSgd,
        reservation: Reservation,
        refusals: Mapping[int, CodedError],
    ) -> list[bytes]:
        work = rows_of(self._work)
        return [
            b""
            if i in refusals
            else private_steps(mechanism, work, request.parameters, reservation, client=i, rng=self._rng).to_bytes()
            for i in range(self._num_clients)
        ]

    def _seal(self, client: int, total: ClippedSum, reservation: Reservation, mechanism: GaussianMechanism) -> bytes:
        if mechanism.trust is Trust.CENTRAL:
            return mechanism.entrust(total, reservation, client).to_bytes()
        return mechanism.release_locally(total, reservation, client, self._rng).to_bytes()


def rows_of(work: ClientWork) -> RowWork:
    """The same work, for who needs single rows.

    Raises:
        MechanismMisuseError: it gives clipped sums alone; `plan` refuses such recipes.
    """
    if not isinstance(work, RowWork):
        raise MechanismMisuseError(
            f"{type(work).__name__} gives no single rows.",
            "Local DP-SGD clips and noises them by itself, in every step.",
            "Use trust `local` without local steps, or another trust.",
        )
    return work
