"""The entries of a ledger and the rules that they obey; reading is verifying.

Ordering rules, checked on every read and write:
1. the first entry is ``open``, and only the first;
2. ``reserve`` names its round, which never decreases, and one event per adversary; only one reservation is open;
3. ``commit`` and ``abort`` name the open reservation; an abort may give back only what provably never left (``spent:
   false``);
4. ``retry`` says that an interrupted round went on with identical sealed bytes, or that none had left: the same event,
   not a second (rule 15). Without that line an interrupted reservation is nobody's leave.

The composition of an adversary is every reserved event that was not given back, committed or not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from privacy.accounting import add, epsilon
from privacy.chain import Chain, Entry, read_chain
from privacy.errors import LedgerError, MechanismMisuseError
from privacy.events import Event, NonPrivateEvent, event_from_json
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
    """Leave to run one round: its events are on disk. ``grant`` makes these for the ledger; each party uses one once.

    One that was built by hand, or read from a file by anyone but the ledger, is nobody's leave: ``use`` refuses it. This
    stops mistakes, not an attacker inside the process, whom nothing in Python stops.
    """

    seq: int
    round: int
    events: Events
    scope: str = "federation"  # whose book: as in the header
    hash: str = field(default="", kw_only=True)  # of its line
    _used_by: set[str] = field(default_factory=set, compare=False, repr=False)
    _closed: list[str] = field(default_factory=list, compare=False, repr=False)
    _granted: list[bool] = field(default_factory=list, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "events", MappingProxyType(dict(self.events)))

    def use(self, party: str) -> None:
        """Mark the one release of ``party`` (the server, or one client) under this reservation.

        Raises:
            MechanismMisuseError: it was used before (a second release needs a second event), it is closed, no ledger
                gave it out, or it is that of an interrupted run and nobody said yet that nothing of it left.
        """
        if not self._granted:
            raise MechanismMisuseError(
                f"Round {self.round}: a release of {party} under a reservation that is no leave.",
                "No ledger gave it out in this process, or an earlier process may have released something under it.",
                "Take it from `Ledger.reserve`; go on with an interrupted one through `Ledger.retry`.",
            )
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
        """True if some party made its release, or if nobody here knows."""
        return bool(self._used_by) or not self._granted

    def grant(self) -> Reservation:
        """For the ledger alone, once the line that allows the round is on disk."""
        self._granted.append(True)
        return self

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
    aborted: frozenset[int] = frozenset()  # and spent: counted like the committed ones, but no release came of them
    hashes: tuple[str, ...] = ()  # of every line

    @property
    def booked(self) -> tuple[Reservation, ...]:
        """The reservations that count: all but those given back."""
        return tuple(r for r in self.reservations if r.seq not in self.given_back)

    @property
    def open_reservation(self) -> Reservation | None:
        """The last reservation, if it is neither committed nor aborted."""
        last = self.reservations[-1] if self.reservations else None
        closed = self.committed | self.given_back | self.aborted
        return last if last and last.seq not in closed else None

    def nominal(self, adversary: Adversary) -> Counter[Event]:
        """The reserved events against one adversary, as if the random numbers were private."""
        return Counter(r.events[adversary] for r in self.booked)

    def composition(self, adversary: Adversary) -> Counter[Event]:
        """The events that count against one adversary."""
        events = self.nominal(adversary)
        if events and not self.header.private_rng:
            events = add(events, NonPrivateEvent("seeded random numbers can be replayed"))
        if events and adversary is Adversary.SERVER and self.simulated:
            events = add(events, NonPrivateEvent("secure aggregation was simulated: the integers were added openly"))
        return events

    @property
    def simulated(self) -> bool:
        """True if the sums of this run were not masked, so that nothing protects anybody against the server."""
        return self.header.facts.get("secure_aggregation") == "simulated"

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
        raise disorder(name, 1, "A ledger begins with an `open` line")
    header = LedgerHeader.from_json(chain.entries[0].body, name)
    reader = _Reader(name, header.scope)
    for entry in chain.entries[1:]:
        reader.take(entry)
    return LedgerView(
        header,
        chain.head,
        len(chain.entries),
        tuple(reader.reservations),
        frozenset(reader.given_back),
        frozenset(reader.committed),
        len(chain.torn_tail),
        frozenset(reader.aborted),
        tuple(entry.hash for entry in chain.entries),
    )


class _Reader:
    """Walks the entries after ``open`` and enforces the ordering rules."""

    def __init__(self, name: str, scope: str) -> None:
        self.name, self.scope = name, scope
        self.reservations: list[Reservation] = []
        self.given_back: set[int] = set()
        self.committed: set[int] = set()
        self.aborted: set[int] = set()
        self._open: Reservation | None = None

    def take(self, entry: Entry) -> None:
        body = entry.body
        if entry.kind == "reserve" and has_fields(body, round=int, events=dict):
            self._reserve(entry)
        elif entry.kind == "commit" and has_fields(body, reserve=int):
            self.committed.add(self._close(entry))
        elif entry.kind == "abort" and has_fields(body, reserve=int, spent=bool, reason=str):
            seq = self._close(entry)
            (self.aborted if body["spent"] else self.given_back).add(seq)
        elif entry.kind == "retry" and has_fields(body, reserve=int, sealed=str):
            if self._open is None or body["reserve"] != self._open.seq:
                raise disorder(self.name, entry.seq + 1, "A retry belongs to the open reservation")
        else:
            raise disorder(self.name, entry.seq + 1, f"Unknown entry kind or fields: {entry.kind!r}")

    def _reserve(self, entry: Entry) -> None:
        number, events = entry.body["round"], entry.body["events"]
        last = self.reservations[-1].round if self.reservations else 0
        if self._open is not None:
            raise disorder(self.name, entry.seq + 1, "A second reservation while one is open")
        if number < max(last, 1):
            raise disorder(self.name, entry.seq + 1, f"Round {number!r} after round {last}")
        decoded = decode_events(events, self.name, entry.seq + 1)
        self._open = Reservation(entry.seq, number, decoded, self.scope, hash=entry.hash)
        self.reservations.append(self._open)

    def _close(self, entry: Entry) -> int:
        if self._open is None or entry.body["reserve"] != self._open.seq:
            raise disorder(self.name, entry.seq + 1, f"A {entry.kind} names the open reservation")
        seq, self._open = self._open.seq, None
        return seq


def decode_events(events: Mapping[str, Any], name: str, line: int) -> dict[Adversary, Event]:
    """The events of a line: one per adversary, through the closed table.

    Raises:
        LedgerError: an adversary too many or too few.
        UnsupportedEventError: an event outside the vocabulary.
    """
    if set(events) != {a.value for a in Adversary}:
        raise disorder(name, line, "A reservation has one event per adversary")
    return {Adversary(who): event_from_json(fields) for who, fields in events.items()}


def has_fields(body: Mapping[str, Any], **kinds: type) -> bool:
    """Exactly these fields, of exactly these types: 1.0 and true are no line numbers."""
    return set(body) == set(kinds) and all(type(body[name]) is kind for name, kind in kinds.items())


def disorder(name: str, line: int, why: str) -> LedgerError:
    """The error for a line that an honest writer would not have written there."""
    return LedgerError(
        f"{name}: line {line} breaks the order of a ledger.",
        why + ".",
        "Do not trust the figures of this ledger; restore it from a copy whose head hash you know.",
    )
