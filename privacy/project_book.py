"""The writing side of a project's books: caps, runs, and every round before the run's own ledger books it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from privacy.accounting import Composition
from privacy.chain import ChainWriter
from privacy.entries import Events, Reservation
from privacy.errors import BudgetError, LedgerError, MechanismMisuseError
from privacy.events import Event, RandomizedResponseEvent
from privacy.project import (
    SCHEMA,
    Cap,
    ProjectRun,
    label_cost,
    label_total,
    lost_rounds,
    new_cap,
    not_private,
    over_cap,
    over_label_cap,
    project_view,
    round_name,
)
from privacy.renyi_filter import Cost
from privacy.signing import SigningKey
from privacy.signing_files import check_signed_head, write_signed_head
from privacy.units import Adversary, PrivacyUnit, Relation


class ProjectBook:
    """One writer of one project's books; another run waits until it is closed (file lock)."""

    def __init__(self, path: Path, signer: SigningKey) -> None:
        """Open ``path``, or create it.

        Raises:
            LedgerError: broken, no project's books, rolled back behind its signed head, or another run writes it.
            LedgerWriteError: the disk refused.
        """
        self._path, self._signer = path, signer
        self._writer = ChainWriter(path)
        try:
            if not self._writer.chain.entries:
                opening = {"schema": SCHEMA, "relation": Relation.ZERO_OUT.value}
                self._writer.append("open", opening, durable=True)
                self._caps: dict[PrivacyUnit, Cap] = {}
                self._runs: dict[str, ProjectRun] = {}
                self._label_caps: dict[PrivacyUnit, float] = {}
            else:
                view = project_view(self._writer.chain, path.name)
                self._caps, self._runs = dict(view.caps), {run.run: run for run in view.runs}
                self._label_caps = dict(view.label_caps)
            self._totals: dict[tuple[PrivacyUnit, Adversary], Counter[Event]] = {}
            for known in self._runs.values():
                for adversary in Adversary:
                    self.total(known.unit, adversary).update(known.spent(adversary))
            check_signed_head(path, [entry.hash for entry in self._writer.chain.entries])
        except BaseException:
            self._writer.close()
            raise

    def fix_cap(
        self,
        unit: PrivacyUnit,
        epsilon: Mapping[Adversary, float] | None,
        delta: float,
        planned: Mapping[Adversary, Event],
    ) -> Cap:
        """The unit's cap; fixed now if the unit has none. ``planned`` (no release yet) chooses the filter's order.

        Raises:
            BudgetError: there is no cap and none is given, or another one is given than was fixed.
        """
        known = self._caps.get(unit)
        if known is None:
            if epsilon is None:
                raise BudgetError(
                    f"{self._path.name}: unit {unit.value} has no cap yet.",
                    "A project's cap is fixed before its first run on that unit, never afterwards.",
                    "Set privacy.project_cap, the epsilon that all runs on these people together may spend.",
                )
            known = new_cap(self._path.name, unit, epsilon, delta, planned)
            self._writer.append("cap", known.to_json(), durable=True)
            self._caps[unit] = known
        elif epsilon is not None and (dict(known.epsilon), known.delta) != (dict(epsilon), delta):
            fixed = ", ".join(f"{value:g} against {who.value}" for who, value in known.epsilon.items())
            fixed += f" at delta {known.delta:g}"
            raise BudgetError(
                f"{self._path.name}: the cap of unit {unit.value} cannot be changed.",
                f"It was fixed when the books were opened: {fixed}. A cap chosen after seeing releases bounds nothing.",
                "Leave the cap out (privacy.project_cap), or give the fixed one. New people need new books.",
            )
        return known

    def fix_label_cap(self, unit: PrivacyUnit, epsilon: float | None) -> float:
        """What randomised labels of all runs on a unit may spend, pure; fixed now if the unit has no such cap.

        Raises:
            BudgetError: there is no cap and none is given, or another one is given than was fixed.
        """
        known = self._label_caps.get(unit)
        if known is None and epsilon is not None:
            self._writer.append("label_cap", {"unit": unit.value, "epsilon": float(epsilon)}, durable=True)
            known = self._label_caps[unit] = float(epsilon)
        if known is None or (epsilon is not None and epsilon != known):
            raise BudgetError(
                f"{self._path.name}: the label cap of unit {unit.value} is "
                + ("missing." if known is None else f"{known:g}, and cannot be changed."),
                "It is fixed before the first run that randomises labels, never afterwards.",
                "Set privacy.project_label_cap, the pure epsilon that labels of all runs on these people may spend."
                if known is None
                else "Leave it out (privacy.project_label_cap), or give the fixed one.",
            )
        return known

    def label_cap_of(self, unit: PrivacyUnit) -> float | None:
        """The label cap that was fixed for a unit."""
        return self._label_caps.get(unit)

    def label_total(self, unit: PrivacyUnit) -> float:
        """Pure epsilon of the randomised labels of all runs on a unit."""
        return label_total(self._runs.values(), unit)

    def append_labels(self, run: ProjectRun, event: RandomizedResponseEvent) -> None:
        """Write the one draw of a run; the caller checked it."""
        self._writer.append("labels", {"run": run.seq, "event": event.to_json()}, durable=True)
        run.labels.append(event)

    def join(self, run: ProjectRun, *, private_rng: bool) -> Account:
        """Let a run in, or back in. ``run.seq`` is ignored; ``run.run`` is the public key that signs its ledger.

        Raises:
            BudgetError: its random numbers can be replayed, so its epsilon is infinite.
            LedgerError: it was let in under other terms before.
            MechanismMisuseError: its unit has no cap yet.
        """
        if run.unit not in self._caps:
            raise MechanismMisuseError(
                f"A run on unit {run.unit.value} cannot join.", "The unit has no cap.", "Call `fix_cap` first."
            )
        if not private_rng:
            raise not_private(self._path.name)
        known = self._runs.get(run.run)
        if known is None:
            entry = self._writer.append("run", run.to_json(), durable=True)
            known = ProjectRun(entry.seq, run.run, run.scope, run.plan, run.unit, run.trust, run.datasets)
            self._runs[run.run] = known
        elif known.to_json() != run.to_json():
            raise LedgerError(
                f"{self._path.name}: this run joined under another plan.",
                "Plan, unit, trust or data sets differ from those of its `run` line.",
                "Resume with the recipe that the run folder holds, or start a new run folder.",
            )
        return Account(self, known, self._caps[run.unit])

    def total(self, unit: PrivacyUnit, adversary: Adversary) -> Counter[Event]:
        """Everything that all runs on one unit booked against one adversary."""
        return self._totals.setdefault((unit, adversary), Counter())

    def append_round(self, run: ProjectRun, round_number: int, events: Events) -> None:
        """Write one round; the caller checked it."""
        body = {"run": run.seq, "round": round_number, "events": {a.value: e.to_json() for a, e in events.items()}}
        self._writer.append("reserve", body, durable=True)
        run.rounds.append((round_number, dict(events)))
        for adversary, event in events.items():
            self.total(run.unit, adversary)[event] += 1

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def num_entries(self) -> int:
        """Lines so far."""
        return self._writer.num_entries

    @property
    def head(self) -> str:
        """Hash of the last line."""
        return self._writer.head

    def holds(self, lines: int, head: str) -> bool:
        """True if line number ``lines``, counted from 1, had this hash when the book was opened."""
        entries = self._writer.chain.entries
        return 0 < lines <= len(entries) and entries[lines - 1].hash == head

    def cap_of(self, unit: PrivacyUnit) -> Cap | None:
        """The cap that was fixed for a unit."""
        return self._caps.get(unit)

    def close(self) -> None:
        """Make all lines durable, sign the head, close the file; closing again does nothing."""
        if self._writer.closed:
            return
        entries, head = self._writer.num_entries, self._writer.head
        try:
            self._writer.sync()
            write_signed_head(self._path, self._signer, scope="project", run="", entries=entries, head=head)
        finally:
            self._writer.close()


class Account:
    """One run's place in a project's books."""

    def __init__(self, book: ProjectBook, run: ProjectRun, cap: Cap) -> None:
        self._book, self._run, self._cap = book, run, cap

    @property
    def cap(self) -> Cap:
        """The cap of this run's unit."""
        return self._cap

    def check_booked(self, reservations: Sequence[Reservation]) -> None:
        """Every round of the run's own ledger must be in these books.

        Raises:
            LedgerError: these books were rolled back or replaced.
        """
        booked = Counter(round_name(r.round, r.events) for r in reservations)
        lost = lost_rounds(self._book.path.name, self._run, booked)
        if lost is not None:
            raise lost

    def has_booked(self, round_number: int) -> bool:
        """Is this round of this run in these books?"""
        return any(number == round_number for number, _ in self._run.rounds)

    def bound(self, adversary: Adversary, more: Composition | None = None) -> float:
        """The filter bound of all runs on this unit, with ``more`` on top."""
        return self._cap.filter(adversary).bound(self._total(adversary, more or {}))

    def expect(self, adversary: Adversary, planned: Composition) -> None:
        """Check what a run still plans before it starts; writes nothing.

        Raises:
            BudgetError: with the bound, the cap, and the rounds or the noise that would fit.
        """
        spent = self._book.total(self._cap.unit, adversary)
        refusal = over_cap(self._book.path.name, self._cap, adversary, spent, planned)
        if refusal is not None:
            raise refusal

    def reserve(self, round_number: int, events: Events) -> None:
        """Book one round of the run; on disk when this returns, and never given back.

        Raises:
            BudgetError: the cap would be passed; nothing is written.
            LedgerWriteError: the disk refused.
        """
        for adversary, event in events.items():
            if not self._cap.filter(adversary).admits(self._total(adversary, {event: 1})):
                raise BudgetError(
                    f"{self._book.path.name}: round {round_number} is refused before it runs.",
                    f"The filter bound of all runs on unit {self._cap.unit.value} against {adversary.described} would "
                    f"be {self.bound(adversary, {event: 1}):.4f}; the cap is {self._cap.epsilon[adversary]:g}.",
                    "The project's budget is spent: release what there is, or plan more noise next time.",
                )
        self._book.append_round(self._run, round_number, events)

    def label_total(self, more: float) -> float:
        """Pure epsilon of the labels of all runs on this unit, with ``more`` for this run's if they are not booked yet."""
        return self._book.label_total(self._run.unit) + (0.0 if self._run.labels else more)

    def book_labels(self, event: RandomizedResponseEvent) -> None:
        """Book the one draw of this run's labels, before a label is drawn; a draw that is booked already is this one.

        Raises:
            BudgetError: there is no label cap, or it would be passed; nothing is written.
            LedgerError: another draw is booked.
        """
        if self._run.labels == [event]:
            return
        if self._run.labels:
            raise LedgerError(
                f"{self._book.path.name}: this run booked another draw of labels.",
                "A label is drawn once in a run.",
                "Resume with the recipe that the run folder holds, or start a new run folder.",
            )
        unit = self._run.unit
        cap, spent = self._book.fix_label_cap(unit, None), self._book.label_total(unit)
        refusal = over_label_cap(self._book.path.name, unit, cap, spent, label_cost(event))
        if refusal is not None:
            raise refusal
        self._book.append_labels(self._run, event)

    def _total(self, adversary: Adversary, more: Composition) -> Cost:
        return self._cap.cost(self._book.total(self._cap.unit, adversary)) + self._cap.cost(more)
