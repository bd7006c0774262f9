"""The books: what was spent on which unit, against whom. Reserve before a round, commit or abort after it.

The entries and the rules that they obey are in ``privacy.entries``; this is the writing side.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from privacy.accounting import Composition, add, epsilon
from privacy.chain import ChainWriter
from privacy.entries import Events, LedgerHeader, LedgerView, Reservation, read_ledger, view_of
from privacy.errors import BudgetError, LedgerError, MechanismMisuseError
from privacy.events import Event, TrustedEvent, event_from_json
from privacy.fitting import advice
from privacy.project_book import Account
from privacy.signing import SigningKey
from privacy.signing_files import check_signed_head, write_signed_head
from privacy.units import Adversary

__all__ = ["Ledger", "LedgerHeader", "LedgerView", "Reservation", "read_ledger", "view_of"]


class Ledger:
    """The writing side of one ledger file."""

    def __init__(
        self, path: Path, header: LedgerHeader, *, signer: SigningKey | None = None, project: Account | None = None
    ) -> None:
        """Open ``path``, or create it with ``header``.

        Args:
            path: the file.
            header: what all its entries are about.
            signer: signs the head when the ledger is closed.
            project: this run's place in a project's books; every round is booked there first.

        Raises:
            LedgerError: the file is broken, belongs to another run or other terms, or lacks what was signed; or the
                project's books lack rounds that it has.
        """
        self._path, self._signer, self._project = path, signer, project
        self._writer = ChainWriter(path)
        try:
            self._view = self._begin(path.name, header)
            check_signed_head(path, [entry.hash for entry in self._writer.chain.entries])
            if project is not None:
                project.check_booked(self._view.reservations)
        except BaseException:
            self._writer.close()
            raise
        self.header = header
        self._open = self._view.open_reservation
        self._round = max((r.round for r in self._view.reservations), default=1)
        committed = (r.round for r in self._view.reservations if r.seq in self._view.committed)
        self._committed_round = max(committed, default=0)
        self._committed_line = max(self._view.committed, default=-1)
        closed = self._view.committed | self._view.aborted
        self._closed_round = max((r.round for r in self._view.reservations if r.seq in closed), default=0)
        self._hashes = {r.seq: r.hash for r in self._view.reservations}
        self._interrupted = self._open
        self._spent = {a: self._view.nominal(a) for a in Adversary}
        self._within_budget: list[tuple[Adversary, Counter[Event]]] = []

    def _begin(self, name: str, header: LedgerHeader) -> LedgerView:
        if not self._writer.chain.entries:
            self._writer.append("open", header.to_json(), durable=True)
            return LedgerView(header, self._writer.head, 1, (), frozenset(), frozenset())
        view = view_of(self._writer.chain, name)
        if view.header != header:
            raise LedgerError(
                f"{name}: was opened under other terms.",
                "Unit, trust, budget, delta, random numbers or clipping differ from this run's.",
                "Resume with the recipe that the run folder holds, or start a new run folder.",
            )
        return view

    @property
    def head(self) -> str:
        """Hash of the last line."""
        return self._writer.head

    @property
    def open_reservation(self) -> Reservation | None:
        """A reservation that an interrupted run left behind."""
        return self._open

    def holds(self, seq: int, digest: str) -> bool:
        """True if line ``seq`` is a reservation with this hash: what was sealed under it was booked here."""
        return self._hashes.get(seq) == digest

    @property
    def committed_line(self) -> int:
        """Line of the last reservation that was committed; -1 before the first."""
        return self._committed_line

    @property
    def committed_round(self) -> int:
        """The last round that was committed; 0 before the first."""
        return self._committed_round

    @property
    def closed_round(self) -> int:
        """The last round that was committed, or aborted as spent; 0 before the first."""
        return self._closed_round

    @property
    def num_reserved(self) -> int:
        """Reservations that count, over all rounds and repetitions."""
        return max((sum(events.values()) for events in self._spent.values()), default=0)

    def check_rounds(self, done: int) -> None:
        """A run that goes on after ``done`` rounds must find every one of them in its books.

        Raises:
            LedgerError: a round is missing: the ledger was lost, cut off or rolled back.
        """
        missing = sorted(set(range(1, done + 1)) - {r.round for r in self._view.booked})
        if missing:
            raise LedgerError(
                f"The ledger of {self.header.scope} does not know round {missing[0]}, which was released.",
                f"{len(missing)} of {done} rounds are missing: it was lost, cut off or rolled back.",
                "Restore the ledger from a copy; without it nobody knows what was spent.",
            )

    def reserve(self, round_number: int, events: Events) -> Reservation:
        """Book one round before it runs; the line is on disk when this returns.

        Raises:
            BudgetError: the round would take some adversary's epsilon above the target; nothing is written.
            MechanismMisuseError: an earlier reservation is still open, the round lies before it, or an adversary has no
                event.
            LedgerWriteError: the disk refused.
        """
        if self._open is not None:
            raise MechanismMisuseError(
                f"Round {round_number} cannot be reserved.",
                f"Round {self._open.round} is still open.",
                "Commit or abort it first.",
            )
        if type(round_number) is not int or round_number < self._round or set(events) != set(Adversary):
            raise MechanismMisuseError(
                f"Round {round_number} cannot be reserved.",
                f"It lies before round {self._round}, or it has not one event per adversary.",
                "Count rounds upwards from 1; take the events from the mechanism.",
            )
        body = {"round": round_number, "events": {a.value: e.to_json() for a, e in events.items()}}
        for event in events.values():
            event_from_json(event.to_json())  # what could not be read back is not written
        for adversary, event in events.items():
            self._check_budget(adversary, add(self._spent[adversary], event), round_number)
        if self._project is not None:
            self._project.reserve(round_number, events)
        entry = self._writer.append("reserve", body, durable=True)
        for adversary, event in events.items():
            self._spent[adversary][event] += 1
        reservation = Reservation(entry.seq, round_number, events, self.header.scope, hash=entry.hash)
        self._open, self._round = reservation.grant(), round_number
        self._hashes[entry.seq] = entry.hash
        return self._open

    def retry(self, reservation: Reservation, sealed_digest: str) -> None:
        """Go on with an interrupted round whose sealed bytes are identical, or were never sent; a leave from here on."""
        self._check_open(reservation)
        self._writer.append("retry", {"reserve": reservation.seq, "sealed": sealed_digest}, durable=True)
        reservation.grant()

    def commit(self, reservation: Reservation) -> None:
        """Close a round that ran; on disk when this returns.

        Whoever commits first and lets the result go afterwards knows that an open reservation released nothing.
        """
        self._check_open(reservation)
        self._writer.append("commit", {"reserve": reservation.seq}, durable=True)
        self._committed_round = self._closed_round = reservation.round
        self._committed_line = reservation.seq
        reservation.close("commit")
        self._open = None

    def abort(self, reservation: Reservation, reason: str, *, spent: bool) -> None:
        """Close a round that failed; ``spent=False`` only if nothing of it can have left a client.

        Raises:
            MechanismMisuseError: it is not the open reservation, or it is to be given back although a release was made
                or may have been made by an earlier process.
        """
        self._check_open(reservation)
        if not spent and (reservation.used or reservation is self._interrupted):
            raise MechanismMisuseError(
                f"Round {reservation.round} cannot be given back.",
                "A release was made under it, or the process that reserved it is gone and nobody knows.",
                "Abort it as spent.",
            )
        reservation.close("abort")  # first: what is about to be given back may not be released any more
        self._writer.append("abort", {"reserve": reservation.seq, "spent": spent, "reason": reason}, durable=True)
        if spent:
            self._closed_round = reservation.round
        else:
            for adversary, event in reservation.events.items():
                self._spent[adversary][event] -= 1
        self._open = None

    def _check_open(self, reservation: Reservation) -> None:
        if reservation is not self._open:
            raise MechanismMisuseError(
                f"Round {reservation.round} is not open.",
                "Only the open reservation can be retried, committed or aborted.",
                "Take it from `Ledger.reserve` or `Ledger.open_reservation`, and close it once.",
            )

    def epsilon(self, adversary: Adversary) -> float:
        """Epsilon of what is reserved so far, as if the random numbers were private."""
        return epsilon(self._spent[adversary], self.header.target_delta)

    def close(self) -> None:
        """Make all lines durable, sign the head, close the file; closing again does nothing."""
        if self._writer.closed:
            return
        try:
            self._writer.sync()
            if self._signer is not None:
                write_signed_head(
                    self._path,
                    self._signer,
                    scope=self.header.scope,
                    run=self.header.run,
                    entries=self._writer.num_entries,
                    head=self.head,
                )
        finally:
            self._writer.close()

    def _check_budget(self, adversary: Adversary, total: Counter[Event], round_number: int) -> None:
        target = self.header.target_epsilon
        if target is None or any(isinstance(event, TrustedEvent) for event in total):
            return
        # Composition is monotone: what is dominated by a composition that fits the budget fits it as well.
        if any(who == adversary and total <= known for who, known in self._within_budget):
            return
        would_be = epsilon(total, self.header.target_delta)
        if would_be > target:
            raise BudgetError(
                f"Round {round_number} is refused before it runs.",
                f"It would take epsilon against {adversary.described} to {would_be:.4f}, the budget is {target:g}.",
                "Plan fewer rounds or more noise: `fedpref plan RECIPE` shows what fits.",
            )
        self._within_budget.append((adversary, total))

    def expect(self, adversary: Adversary, planned: Composition) -> None:
        """Check a planned composition once, before the run starts, so that its rounds need no accountant each.

        Raises:
            BudgetError: the plan as a whole does not fit here, or not in the project's books; nothing is written. It says
                how many rounds, or which noise, would fit.
        """
        if self._project is not None:
            self._project.expect(adversary, planned)
        total = Counter(self._spent[adversary])
        total.update(planned)
        try:
            self._check_budget(adversary, total, max((r.round for r in self._view.reservations), default=0) + 1)
        except BudgetError as refusal:
            raise BudgetError(
                f"The run is refused before it starts: the budget of {self.header.scope} does not cover it.",
                refusal.why,
                advice(planned, lambda events: self._fits(adversary, events)),
            ) from None

    def _fits(self, adversary: Adversary, planned: Composition) -> bool:
        total = Counter(self._spent[adversary])
        total.update(planned)
        return epsilon(total, self.header.target_delta) <= (self.header.target_epsilon or 0.0)
