"""The books of a project: one chain that every run on the same people reserves in before its own ledger.

The book is the population: whoever names a book declares that its runs are about the same people, and all of them are
added up, also runs on data sets that do not overlap. Lines, each as in ``privacy.chain``:

1. ``open`` is first, and only first;
2. ``cap`` fixes, once per privacy unit, epsilon per adversary at a delta, and the order of the filter that watches it;
3. ``run`` lets a run in, by the public key that signs its ledger (a new run folder has a new key, so a run that is
   started over is another run);
4. ``label_cap`` fixes, once per unit, the pure epsilon that randomised labels of all runs may spend, and ``labels`` books the
   one draw of a run. This total is a sum, against everybody, and stands apart from the rounds' (guarantees.md rule 12);
5. ``reserve`` books one round of a run. Nothing is ever given back: a round that was booked here and did not begin stays
   spent.

Totals of different units are never added to one another. Parameters of a later run are chosen by people who saw the
release of an earlier one, hence the filter (``privacy.renyi_filter``), whose figure is called a filter bound.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from privacy.chain import Chain, Entry, read_chain
from privacy.entries import decode_events, disorder, has_fields
from privacy.errors import BudgetError, LedgerError
from privacy.events import Event, RandomizedResponseEvent, TrustedEvent, event_from_json
from privacy.fitting import advice
from privacy.renyi_filter import Cost, RenyiFilter, best_order, event_cost
from privacy.units import Adversary, PrivacyUnit, Relation, Trust

SCHEMA = "fedpref-project-1"
Spent = Mapping[Adversary, Counter[Event]]


@dataclass(frozen=True)
class Cap:
    """What all runs on one unit together may ever spend, per adversary, at one delta; fixed when it is written."""

    unit: PrivacyUnit
    delta: float
    order: int
    epsilon: Mapping[Adversary, float]

    def filter(self, adversary: Adversary) -> RenyiFilter:
        """The filter that watches this cap against one adversary."""
        return RenyiFilter(self.epsilon[adversary], self.delta, self.order)

    def cost(self, events: Mapping[Event, int]) -> Cost:
        """What events cost at this cap's order; rounds in which the adversary was trusted promise nothing."""
        total = Cost(0.0)
        for event, count in events.items():
            if not isinstance(event, TrustedEvent):
                total += event_cost(event, self.order) * count
        return total

    def to_json(self) -> dict[str, Any]:
        """The body of a ``cap`` line."""
        epsilon = {adversary.value: float(self.epsilon[adversary]) for adversary in Adversary}
        return {"unit": self.unit.value, "delta": self.delta, "order": self.order, "epsilon": epsilon}


@dataclass(frozen=True)
class ProjectRun:
    """A run that was let in; ``events`` is every round that it booked."""

    seq: int
    run: str
    scope: str
    plan: str
    unit: PrivacyUnit
    trust: Trust
    datasets: tuple[str, ...]
    rounds: list[tuple[int, Mapping[Adversary, Event]]] = field(default_factory=list, compare=False, repr=False)
    labels: list[RandomizedResponseEvent] = field(default_factory=list, compare=False, repr=False)  # none, or one draw

    def to_json(self) -> dict[str, Any]:
        """The body of a ``run`` line."""
        return {
            "run": self.run,
            "scope": self.scope,
            "plan": self.plan,
            "unit": self.unit.value,
            "trust": self.trust.value,
            "datasets": list(self.datasets),
        }

    def spent(self, adversary: Adversary) -> Counter[Event]:
        """Every event that it booked against one adversary."""
        return Counter(events[adversary] for _, events in self.rounds)


@dataclass(frozen=True)
class ProjectView:
    """A verified project book as read."""

    head: str
    num_entries: int
    caps: Mapping[PrivacyUnit, Cap]
    runs: tuple[ProjectRun, ...]
    hashes: tuple[str, ...] = ()
    torn_bytes: int = 0
    label_caps: Mapping[PrivacyUnit, float] = field(default_factory=dict)

    def label_total(self, unit: PrivacyUnit) -> float:
        """Pure epsilon of the randomised labels of all runs on one unit."""
        return label_total(self.runs, unit)

    def spent(self, unit: PrivacyUnit, adversary: Adversary) -> Counter[Event]:
        """Everything that all runs on one unit booked against one adversary."""
        total: Counter[Event] = Counter()
        for run in self.runs:
            if run.unit is unit:
                total.update(run.spent(adversary))
        return total

    def bound(self, unit: PrivacyUnit, adversary: Adversary) -> float:
        """The filter bound of all runs on one unit."""
        cap = self.caps[unit]
        return cap.filter(adversary).bound(cap.cost(self.spent(unit, adversary)))


def read_project(path: Path) -> ProjectView:
    """Read and verify a project's books.

    Raises:
        LedgerError: the chain is broken, or its lines break a rule of this page.
    """
    return project_view(read_chain(path), path.name)


def is_project(path: Path) -> bool:
    """True if the first line of a file opens a project's books; whether they are intact is for the reader to say."""
    try:
        with open(path, "rb") as file:
            fields = json.loads(file.readline(1 << 16))
        return bool(fields["body"]["schema"] == SCHEMA)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def project_view(chain: Chain, name: str) -> ProjectView:
    """A verified chain -> verified project books."""
    opening = {"schema": SCHEMA, "relation": Relation.ZERO_OUT.value}
    if not chain.entries or (chain.entries[0].kind, chain.entries[0].body) != ("open", opening):
        raise disorder(name, 1, "A project's books begin with their own `open` line")
    reader = _Reader(name)
    for entry in chain.entries[1:]:
        try:
            reader.take(entry)
        except (ValueError, KeyError, TypeError) as error:
            raise disorder(name, entry.seq + 1, f"{type(error).__name__}: {error}") from None
    return ProjectView(
        chain.head,
        len(chain.entries),
        reader.caps,
        tuple(reader.runs.values()),
        tuple(entry.hash for entry in chain.entries),
        len(chain.torn_tail),
        reader.label_caps,
    )


class _Reader:
    """Walks the lines after ``open`` and enforces the rules."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.caps: dict[PrivacyUnit, Cap] = {}
        self.runs: dict[int, ProjectRun] = {}
        self.label_caps: dict[PrivacyUnit, float] = {}

    def take(self, entry: Entry) -> None:
        body, line = entry.body, entry.seq + 1
        if entry.kind == "cap" and has_fields(body, unit=str, delta=float, order=int, epsilon=dict):
            cap = cap_from_json(body)
            if cap.unit in self.caps:
                raise disorder(self.name, line, f"The cap for unit {cap.unit.value} was fixed before")
            self.caps[cap.unit] = cap
        elif entry.kind == "run" and has_fields(body, run=str, scope=str, plan=str, unit=str, trust=str, datasets=list):
            run = run_from_json(entry)
            if run.unit not in self.caps or any(run.run == known.run for known in self.runs.values()):
                raise disorder(self.name, line, "A run is let in once, after its unit has a cap")
            self.runs[entry.seq] = run
        elif entry.kind == "label_cap" and has_fields(body, unit=str, epsilon=float):
            unit = PrivacyUnit(body["unit"])
            if unit in self.label_caps or not 0 < body["epsilon"] < math.inf:
                raise disorder(self.name, line, "A label cap is positive, and fixed once per unit")
            self.label_caps[unit] = body["epsilon"]
        elif entry.kind == "labels" and has_fields(body, run=int, event=dict):
            self._labels(body, line)
        elif entry.kind == "reserve" and has_fields(body, run=int, round=int, events=dict):
            if body["run"] not in self.runs or body["round"] < 1:
                raise disorder(self.name, line, "A round belongs to a run that was let in")
            self.runs[body["run"]].rounds.append((body["round"], decode_events(body["events"], self.name, line)))
        else:
            raise disorder(self.name, line, f"Unknown entry kind or fields: {entry.kind!r}")

    def _labels(self, body: Mapping[str, Any], line: int) -> None:
        event, drawer = event_from_json(body["event"]), self.runs.get(body["run"])
        if (
            drawer is None
            or drawer.labels
            or drawer.unit not in self.label_caps
            or not isinstance(event, RandomizedResponseEvent)
        ):
            raise disorder(self.name, line, "Labels are drawn once by a run that was let in, under a label cap")
        drawer.labels.append(event)


def label_total(runs: Iterable[ProjectRun], unit: PrivacyUnit) -> float:
    """Pure epsilon of the randomised labels of these runs on one unit, added up."""
    return math.fsum(label_cost(event) for run in runs if run.unit is unit for event in run.labels)


def label_cost(event: RandomizedResponseEvent) -> float:
    """Pure epsilon of one draw for one unit."""
    return event.label_epsilon * event.labels_per_unit


def over_label_cap(name: str, unit: PrivacyUnit, cap: float, spent: float, more: float) -> BudgetError | None:
    """Why a draw of labels does not fit what is left of a cap; None if it fits."""
    if spent + more <= cap:
        return None
    return BudgetError(
        f"{name}: the labels of this run are refused before one is drawn.",
        f"The randomised labels of all runs on unit {unit.value} would spend {spent + more:g}; the cap is {cap:g}, {spent:g} "
        "is spent.",
        "Ask for a smaller privacy.label_epsilon, or fewer labels of a person (privacy.max_pairs_per_user).",
    )


def cap_from_json(body: Mapping[str, Any]) -> Cap:
    """Decode a ``cap`` line; a filter that cannot be is an error here already."""
    epsilon = {Adversary(name): value for name, value in body["epsilon"].items()}
    if set(epsilon) != set(Adversary) or any(type(value) is not float for value in epsilon.values()):
        raise ValueError("a cap has one epsilon per adversary")
    cap = Cap(PrivacyUnit(body["unit"]), body["delta"], body["order"], epsilon)
    for adversary in Adversary:
        cap.filter(adversary)
    return cap


def run_from_json(entry: Entry) -> ProjectRun:
    """Decode a ``run`` line."""
    body = entry.body
    if any(type(name) is not str for name in body["datasets"]):
        raise ValueError("datasets are names")
    return ProjectRun(
        entry.seq,
        body["run"],
        body["scope"],
        body["plan"],
        PrivacyUnit(body["unit"]),
        Trust(body["trust"]),
        tuple(body["datasets"]),
    )


def over_cap(
    name: str, cap: Cap, adversary: Adversary, spent: Mapping[Event, int], planned: Mapping[Event, int]
) -> BudgetError | None:
    """Why a planned run does not fit what is left of a cap, and which rounds or noise would; None if it fits."""
    watch, before = cap.filter(adversary), cap.cost(spent)
    if watch.admits(before + cap.cost(planned)):
        return None
    return BudgetError(
        f"{name}: the run is refused before it starts.",
        f"It would take the filter bound of all runs on unit {cap.unit.value} against {adversary.described} to "
        f"{watch.bound(before + cap.cost(planned)):.4f} at delta {cap.delta:g}; the cap is {watch.epsilon:g}, "
        f"{watch.bound(before):.4f} is spent.",
        advice(planned, lambda events: watch.admits(before + cap.cost(events))),
    )


def new_cap(
    name: str, unit: PrivacyUnit, epsilon: Mapping[Adversary, float], delta: float, planned: Mapping[Adversary, Event]
) -> Cap:
    """A cap for a unit that has none yet; ``planned``, of a run that released nothing yet, chooses the filter's order.

    Raises:
        BudgetError: the run has no noise.
        ParameterError: numbers that make no filter.
    """
    costs = {event: event_cost(event, 2).rdp for event in planned.values() if not isinstance(event, TrustedEvent)}
    if not costs or any(cost == math.inf for cost in costs.values()):
        raise not_private(name)
    costliest = max(costs, key=costs.__getitem__)
    cap = Cap(unit, delta, best_order(max(epsilon.values()), delta, costliest), dict(epsilon))
    for adversary in Adversary:
        cap.filter(adversary)
    return cap


def not_private(name: str) -> BudgetError:
    """The refusal of a run that spends an infinite epsilon of any cap."""
    return BudgetError(
        f"{name}: a run that is not private cannot join.",
        "Without noise, or with `privacy.rng: seeded`, it spends an infinite epsilon of any cap.",
        "Take out privacy.ledger for such a run (its people are then not protected), or make it private.",
    )


def round_name(number: int, events: Mapping[Adversary, Event]) -> str:
    """One round's booking as text, to be counted and compared."""
    return str((number, sorted((adversary.value, str(event)) for adversary, event in events.items())))


def lost_rounds(name: str, run: ProjectRun, booked: Counter[str]) -> LedgerError | None:
    """A run's own ledger may not know more than the project's books do: they were written first."""
    known = Counter(round_name(number, events) for number, events in run.rounds)
    missing = booked - known
    if not missing:
        return None
    return LedgerError(
        f"{name}: lacks {sum(missing.values())} rounds of run {run.run[:12]}….",
        "The run's own ledger has them, and every round is booked here first: these books were rolled back or replaced.",
        "Restore them from a copy; without them nobody knows what the project has spent.",
    )
