"""A project's books: all runs on one unit against one cap, booked before the run's own ledger, never given back."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from privacy.chain import ChainWriter
from privacy.errors import BudgetError, CodedError, LedgerError
from privacy.events import GaussianEvent, NonPrivateEvent
from privacy.ledger import Ledger
from privacy.project import ProjectRun, read_project
from privacy.project_book import Account, ProjectBook
from privacy.report import verify
from privacy.signing import SigningKey
from privacy.units import Adversary, PrivacyUnit, Trust
from tests.privacy.books import DELTA, EVENT, events, header

CAP = dict.fromkeys(Adversary, 3.0)
FITS = 28  # rounds of EVENT under that cap, by the filter


class Project:
    """A folder with a project's books, and runs that join them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "project.jsonl"

    def open(self) -> ProjectBook:
        return ProjectBook(self.path, SigningKey.at(self.folder / "project.key"))

    def join(self, book: ProjectBook, name: str, unit: PrivacyUnit = PrivacyUnit.USER, **cap: Any) -> Account:
        key = SigningKey.at(self.folder / f"{name}.key")
        book.fix_cap(unit, cap.get("cap", CAP), DELTA, events())
        run = ProjectRun(0, key.public, "federation", "plan", unit, Trust.CENTRAL, ("votes",))
        return book.join(run, private_rng=True)

    def run(self, name: str, rounds: range, unit: PrivacyUnit = PrivacyUnit.USER) -> None:
        """A run of its own that joins, books these rounds, and ends."""
        book = self.open()
        ledger = Ledger(self.folder / f"{name}.jsonl", header(unit=unit), project=self.join(book, name, unit))
        try:
            for number in rounds:
                ledger.commit(ledger.reserve(number, events()))
        finally:
            ledger.close()
            book.close()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_a_second_run_adds_to_the_first_and_the_cap_holds_for_both(project: Project) -> None:
    project.run("first", range(1, 21))
    view = read_project(project.path)
    spent = view.bound(PrivacyUnit.USER, Adversary.READER)
    assert 2.0 < spent < 3.0
    with pytest.raises(BudgetError, match="round 9 is refused before it runs"):
        project.run("second", range(1, 21))
    view = read_project(project.path)
    assert view.spent(PrivacyUnit.USER, Adversary.READER) == Counter({EVENT: FITS})
    assert spent < view.bound(PrivacyUnit.USER, Adversary.READER) <= 3.0
    assert verify(project.path).ok
    assert [len(run.rounds) for run in view.runs] == [20, 8]


def test_a_run_that_would_pass_the_cap_is_refused_before_it_starts_and_is_told_what_fits(project: Project) -> None:
    project.run("first", range(1, 21))
    book = project.open()
    account = project.join(book, "second")
    account.expect(Adversary.READER, {EVENT: 8})
    before = project.path.read_bytes()
    with pytest.raises(BudgetError) as caught:
        account.expect(Adversary.READER, {EVENT: 9})
    assert "8 rounds at this noise" in caught.value.fix
    assert project.path.read_bytes() == before
    louder = float(caught.value.fix.split("noise_multiplier ")[1].split(" ")[0])
    account.expect(Adversary.READER, {GaussianEvent(louder, 1.0): 9})
    book.close()


def test_a_run_that_goes_on_is_the_same_run_and_one_that_starts_over_is_another(project: Project) -> None:
    project.run("first", range(1, 4))
    project.run("first", range(4, 6))
    project.run("again", range(1, 3))
    assert [len(run.rounds) for run in read_project(project.path).runs] == [5, 2]


def test_totals_of_different_units_are_never_added(project: Project) -> None:
    project.run("people", range(1, 21))
    project.run("records", range(1, 21), PrivacyUnit.EXAMPLE)
    view = read_project(project.path)
    for unit in (PrivacyUnit.USER, PrivacyUnit.EXAMPLE):
        assert view.spent(unit, Adversary.READER) == Counter({EVENT: 20})
    verdict = verify(project.path)
    assert len(verdict.epsilons) == 4
    assert sum("trusted in some rounds" in note for note in verdict.notes) == 2  # the server, on either unit: no number


def test_a_cap_is_fixed_before_the_first_run_and_for_good(project: Project) -> None:
    book = project.open()
    with pytest.raises(BudgetError, match="no cap yet"):
        project.join(book, "first", cap=None)
    project.join(book, "first")
    project.join(book, "second", cap=None)
    for other in (dict.fromkeys(Adversary, 4.0), dict.fromkeys(Adversary, 2.0)):
        with pytest.raises(BudgetError, match="cannot be changed"):
            project.join(book, "third", cap=other)
    book.close()


def test_a_run_without_privacy_cannot_join_and_fixes_no_cap(project: Project) -> None:
    book = project.open()
    with pytest.raises(BudgetError, match="not private"):
        book.fix_cap(PrivacyUnit.USER, CAP, DELTA, events(NonPrivateEvent("no noise")))
    project.join(book, "first")
    key = SigningKey.at(project.folder / "seeded.key")
    with pytest.raises(BudgetError, match="not private"):
        book.join(ProjectRun(0, key.public, "federation", "p", PrivacyUnit.USER, Trust.CENTRAL, ()), private_rng=False)
    book.close()
    assert len(read_project(project.path).runs) == 1


def test_one_run_at_a_time_writes_the_books(project: Project) -> None:
    book = project.open()
    with pytest.raises(LedgerError, match="another process"):
        project.open()
    book.close()
    book.close()
    project.open().close()


def test_books_rolled_back_behind_a_runs_ledger_are_found(project: Project) -> None:
    project.run("first", range(1, 4))
    lines = project.path.read_bytes().splitlines(keepends=True)
    project.path.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(LedgerError, match="signed head"):
        project.open()
    (project.folder / "project.head.json").unlink()
    with pytest.raises(LedgerError, match="lacks 1 rounds"):
        project.run("first", range(4, 5))


def test_a_round_booked_here_that_never_began_stays_spent(project: Project) -> None:
    """A kill between the two books: the run books the round again, and the project has two."""
    project.run("first", range(1, 3))
    book = project.open()
    project.join(book, "first").reserve(3, events())
    book.close()
    project.run("first", range(3, 4))
    assert read_project(project.path).spent(PrivacyUnit.USER, Adversary.READER) == Counter({EVENT: 4})


def spoilt(path: Path, kind: str, change: dict[str, Any]) -> None:
    """An intact chain in which the first line of a kind says something else."""
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    path.unlink()
    writer, done = ChainWriter(path), False
    for line in lines:
        body = {**line["body"], **change} if line["kind"] == kind and not done else line["body"]
        done = done or line["kind"] == kind
        writer.append(line["kind"], body, durable=False)
    writer.close()


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("open", {"schema": "fedpref-project-2"}),
        ("open", {"relation": "replace_one"}),
        ("cap", {"order": 1}),
        ("cap", {"order": 4.0}),
        ("cap", {"delta": 2.0}),
        ("cap", {"unit": "household"}),
        ("cap", {"epsilon": {"reader": 3.0}}),
        ("cap", {"epsilon": {"reader": 3, "other_clients": 3.0, "server": 3.0}}),
        ("cap", {"surplus": 1}),
        ("run", {"unit": "client"}),
        ("run", {"trust": "blind"}),
        ("run", {"datasets": [7]}),
        ("reserve", {"run": 1}),
        ("reserve", {"run": True}),
        ("reserve", {"round": 0}),
        ("reserve", {"round": 1.0}),
        ("reserve", {"events": {"reader": EVENT.to_json()}}),
    ],
)
def test_a_line_that_no_honest_writer_writes_is_found(project: Project, kind: str, change: dict[str, Any]) -> None:
    project.run("first", range(1, 3))
    spoilt(project.path, kind, change)
    with pytest.raises(CodedError):
        read_project(project.path)
    assert not verify(project.path).ok


def test_books_above_their_own_cap_fail(project: Project) -> None:
    project.run("first", range(1, 3))
    (project.folder / "project.head.json").unlink()
    spoilt(project.path, "cap", {"epsilon": dict.fromkeys([a.value for a in Adversary], 0.5)})
    assert "above the cap 0.5" in "\n".join(verify(project.path).failed)
