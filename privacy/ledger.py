"""The books: what was spent on which unit, against whom. Reserve before a round, commit or abort after it.

Ordering rules, checked on every read and write:
1. the first entry is ``open``, and only the first;
2. ``reserve`` names its round, which never decreases, and one event per adversary; only one reservation is open;
3. ``commit`` and ``abort`` name the open reservation; an abort may give back only what provably never left (``spent:
   false``);
4. ``retry`` says that an interrupted round went on with identical sealed bytes: the same event, not a second (rule 15).

The composition of an adversary is every reserved event that was not given back, committed or not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from privacy.accounting import Composition, add, epsilon
from privacy.chain import Chain, ChainWriter, Entry, read_chain
from privacy.errors import BudgetError, LedgerError, MechanismMisuseError
from privacy.events import Event, NonPrivateEvent, TrustedEvent, event_from_json
from privacy.units import Adversary, PrivacyUnit, Relation, Trust

SCHEMA = "fedpref-ledger-1"
Events = Mapping[Adversary, Event]


@dataclass(frozen=True)
class LedgerHeader:
    """What all entries of one ledger are about; the body of the ``open`` line."""

    scope: str  # "federation", or "node:NAME": the events then hold for each client of that node
    run: str
    unit: PrivacyUnit
    trust: Trust
    target_epsilon: float | None
    target_delta: float
    private_rng: bool
    facts: Mapping[str, Any]  # public constants: max_grad_norm, max_pairs_per_user, num_users, ...
    relation: Relation = Relation.ZERO_OUT

    def to_json(self) -> dict[str, Any]:
        """Canonical fields."""
        return {
            "schema": SCHEMA,
            "scope": self.scope,
            "run": self.run,
            "unit": self.unit.value,
            "relation": self.relation.value,
            "trust": self.trust.value,
            "target_epsilon": self.target_epsilon,
            "target_delta": self.target_delta,
            "private_rng": self.private_rng,
            "facts": dict(self.facts),
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any], name: str) -> LedgerHeader:
        """Decode the body of an ``open`` line."""
        try:
            if body["schema"] != SCHEMA or set(body) != {*cls.__dataclass_fields__, "schema"}:
                raise ValueError(f"schema {body.get('schema')!r}")
            if type(body["private_rng"]) is not bool or not isinstance(body["facts"], dict):
                raise TypeError("private_rng or facts")
            return cls(
                scope=str(body["scope"]),
                run=str(body["run"]),
                unit=PrivacyUnit(body["unit"]),
                trust=Trust(body["trust"]),
                target_epsilon=None if body["target_epsilon"] is None else _number(body["target_epsilon"]),
                target_delta=_number(body["target_delta"]),
                private_rng=body["private_rng"],
                facts=dict(body["facts"]),
                relation=Relation(body["relation"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise LedgerError(
                f"{name}: the first line does not open a ledger that this version reads.",
                f"{type(error).__name__}: {error}.",
                "Read it with the version of fedpref that wrote it.",
            ) from None


def _number(value: Any) -> float:
    if type(value) not in {int, float}:
        raise TypeError(f"{value!r} where a number is expected")
    return float(value)


@dataclass(frozen=True)
class Reservation:
    """Leave to run one round: its events are on disk. Only the ledger makes these; each party uses one once."""

    seq: int
    round: int
    events: Events
    _used_by: set[str] = field(default_factory=set, compare=False, repr=False)
    _closed: list[str] = field(default_factory=list, compare=False, repr=False)

    def use(self, party: str) -> None:
        """Mark the one release of ``party`` (the server, or one client) under this reservation.

        Raises:
            MechanismMisuseError: it was used before (a second release needs a second event), or it is closed.
        """
        if self._closed:
            raise MechanismMisuseError(
                f"Round {self.round}: a release of {party} under a reservation that is closed.",
                f"The ledger closed it by {self._closed[0]}.",
                "Reserve again.",
            )
        if party in self._used_by:
            raise MechanismMisuseError(
                f"Round {self.round}: a second release of {party} under one reservation.",
                "The ledger booked one event, a second release is a second event.",
                "Reserve again, or send the journalled bytes of the first release.",
            )
        self._used_by.add(party)

    @property
    def used(self) -> bool:
        """True if some party made its release."""
        return bool(self._used_by)

    def close(self, by: str) -> None:
        """No release from here on: it was committed or aborted."""
        self._closed.append(by)


@dataclass(frozen=True)
class LedgerView:
    """A verified ledger as read: header, what was reserved, and how far the rounds got."""

    header: LedgerHeader
    head: str
    num_entries: int
    reservations: tuple[Reservation, ...]
    given_back: frozenset[int]
    committed: frozenset[int]
    torn_bytes: int = 0  # of a last line without its end, which a crash may leave; it books nothing

    @property
    def open_reservation(self) -> Reservation | None:
        """The last reservation, if it is neither committed nor aborted."""
        last = self.reservations[-1] if self.reservations else None
        return last if last and last.seq not in self.committed and last.seq not in self.given_back else None

    def nominal(self, adversary: Adversary) -> Counter[Event]:
        """The reserved events against one adversary, as if the random numbers were private."""
        return Counter(r.events[adversary] for r in self.reservations if r.seq not in self.given_back)

    def composition(self, adversary: Adversary) -> Counter[Event]:
        """The events that count against one adversary."""
        events = self.nominal(adversary)
        if events and not self.header.private_rng:
            events = add(events, NonPrivateEvent("seeded random numbers can be replayed"))
        return events

    def epsilon(self, adversary: Adversary) -> float:
        """Epsilon at the header's delta, composed afresh from the entries."""
        return epsilon(self.composition(adversary), self.header.target_delta)


def read_ledger(path: Path) -> LedgerView:
    """Read and verify a ledger file.

    Raises:
        LedgerError: the chain is broken, or the entries break an ordering rule.
    """
    return view_of(read_chain(path), path.name)


def view_of(chain: Chain, name: str) -> LedgerView:
    """A verified chain -> a verified ledger."""
    if not chain.entries or chain.entries[0].kind != "open":
        raise _disorder(name, 1, "A ledger begins with an `open` line")
    reader = _Reader(name)
    for entry in chain.entries[1:]:
        reader.take(entry)
    return LedgerView(
        LedgerHeader.from_json(chain.entries[0].body, name),
        chain.head,
        len(chain.entries),
        tuple(reader.reservations),
        frozenset(reader.given_back),
        frozenset(reader.committed),
        len(chain.torn_tail),
    )


class _Reader:
    """Walks the entries after ``open`` and enforces the ordering rules."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.reservations: list[Reservation] = []
        self.given_back: set[int] = set()
        self.committed: set[int] = set()
        self._open: Reservation | None = None

    def take(self, entry: Entry) -> None:
        body = entry.body
        if entry.kind == "reserve" and set(body) == {"round", "events"}:
            self._reserve(entry)
        elif entry.kind == "commit" and set(body) == {"reserve"}:
            self.committed.add(self._close(entry))
        elif entry.kind == "abort" and set(body) == {"reserve", "spent", "reason"} and type(body["spent"]) is bool:
            seq = self._close(entry)
            (self.committed if body["spent"] else self.given_back).add(seq)
        elif entry.kind == "retry" and set(body) == {"reserve", "sealed"}:
            if self._open is None or body["reserve"] != self._open.seq:
                raise _disorder(self.name, entry.seq + 1, "A retry belongs to the open reservation")
        else:
            raise _disorder(self.name, entry.seq + 1, f"Unknown entry kind or fields: {entry.kind!r}")

    def _reserve(self, entry: Entry) -> None:
        number, events = entry.body["round"], entry.body["events"]
        last = self.reservations[-1].round if self.reservations else 0
        if self._open is not None:
            raise _disorder(self.name, entry.seq + 1, "A second reservation while one is open")
        if type(number) is not int or number < max(last, 1) or not isinstance(events, dict):
            raise _disorder(self.name, entry.seq + 1, f"Round {number!r} after round {last}")
        if set(events) != {a.value for a in Adversary}:
            raise _disorder(self.name, entry.seq + 1, "A reservation has one event per adversary")
        decoded = {Adversary(name): event_from_json(fields) for name, fields in events.items()}
        self._open = Reservation(entry.seq, number, decoded)
        self.reservations.append(self._open)

    def _close(self, entry: Entry) -> int:
        if self._open is None or entry.body["reserve"] != self._open.seq:
            raise _disorder(self.name, entry.seq + 1, f"A {entry.kind} names the open reservation")
        seq, self._open = self._open.seq, None
        return seq


def _disorder(name: str, line: int, why: str) -> LedgerError:
    return LedgerError(
        f"{name}: line {line} breaks the order of a ledger.",
        why + ".",
        "Do not trust the figures of this ledger; restore it from a copy whose head hash you know.",
    )


class Ledger:
    """The writing side of one ledger file."""

    def __init__(self, path: Path, header: LedgerHeader) -> None:
        """Open ``path``, or create it with ``header``.

        Raises:
            LedgerError: the file is broken, or belongs to another run or other terms.
        """
        self._writer = ChainWriter(path)
        try:
            self._view = self._begin(path.name, header)
        except BaseException:
            self._writer.close()
            raise
        self.header = header
        self._open = self._view.open_reservation
        self._round = max((r.round for r in self._view.reservations), default=1)
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
        entry = self._writer.append("reserve", body, durable=True)
        for adversary, event in events.items():
            self._spent[adversary][event] += 1
        self._open, self._round = Reservation(entry.seq, round_number, dict(events)), round_number
        return self._open

    def retry(self, reservation: Reservation, sealed_digest: str) -> None:
        """Go on with an interrupted round whose sealed bytes are identical, or were never sent."""
        self._check_open(reservation)
        self._writer.append("retry", {"reserve": reservation.seq, "sealed": sealed_digest}, durable=True)

    def commit(self, reservation: Reservation) -> None:
        """Close a round that ran. Losing this line in a crash loses nothing: the reservation counts anyway."""
        self._check_open(reservation)
        self._writer.append("commit", {"reserve": reservation.seq}, durable=False)
        reservation.close("commit")
        self._open = None

    def abort(self, reservation: Reservation, reason: str, *, spent: bool) -> None:
        """Close a round that failed; ``spent=False`` only if nothing of it can have left a client.

        Raises:
            MechanismMisuseError: it is not the open reservation, or a release was made that is to be given back.
        """
        self._check_open(reservation)
        if reservation.used and not spent:
            raise MechanismMisuseError(
                f"Round {reservation.round} cannot be given back.",
                "A release was made under it.",
                "Abort it as spent.",
            )
        reservation.close("abort")  # first: what is about to be given back may not be released any more
        self._writer.append("abort", {"reserve": reservation.seq, "spent": spent, "reason": reason}, durable=True)
        if not spent:
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
        """Make all lines durable and close the file."""
        self._writer.sync()
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
        """Check a planned composition once, so that its rounds need no accountant each.

        Raises:
            BudgetError: the plan as a whole does not fit; nothing is written.
        """
        total = Counter(self._spent[adversary])
        total.update(planned)
        self._check_budget(adversary, total, max((r.round for r in self._view.reservations), default=0) + 1)
