"""Randomised labels in a project's books: a total of its own, one draw a run, against a cap that is fixed once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from privacy.chain import ChainWriter
from privacy.errors import BudgetError, CodedError, LedgerError
from privacy.events import GaussianEvent, RandomizedResponseEvent
from privacy.project import read_project
from privacy.project_book import ProjectBook
from privacy.report import verify
from privacy.report.budget import budget_rows, budget_text
from privacy.units import PrivacyUnit
from tests.privacy.test_project import Project

DRAW = RandomizedResponseEvent(0.5, 20)  # 10 for a person


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def book(project: Project) -> Iterator[ProjectBook]:
    opened = project.open()
    yield opened
    opened.close()


def test_labels_of_all_runs_are_added_up_and_the_one_too_many_is_refused(project: Project, book: ProjectBook) -> None:
    for name in ("first", "second"):
        account = project.join(book, name)
        book.fix_label_cap(PrivacyUnit.USER, 25.0)
        account.book_labels(DRAW)
        account.book_labels(DRAW)  # a resumed run: the draw that is booked is this one
    assert book.label_total(PrivacyUnit.USER) == 20.0
    third = project.join(book, "third")
    assert third.label_total(10.0) == 30.0
    with pytest.raises(BudgetError, match="the cap is 25"):
        third.book_labels(DRAW)
    third.book_labels(RandomizedResponseEvent(0.25, 20))
    book.close()
    view = read_project(project.path)
    assert view.label_total(PrivacyUnit.USER) == 25.0
    assert view.label_total(PrivacyUnit.EXAMPLE) == 0.0
    verdict = verify(project.path)
    assert verdict.ok
    assert any("epsilon 25 of 25" in note for note in verdict.notes)
    row = next(row for row in budget_rows(project.path) if row.measure == "label epsilon")
    assert (row.adversary, row.delta, row.spent, row.cap, row.left) == ("everybody", 0.0, 25.0, 25.0, 0.0)
    assert "(label epsilon)" in budget_text([row])


def test_a_label_cap_is_needed_and_fixed_once(project: Project, book: ProjectBook) -> None:
    account = project.join(book, "first")
    with pytest.raises(BudgetError, match="missing"):
        account.book_labels(DRAW)
    assert book.fix_label_cap(PrivacyUnit.USER, 25.0) == 25.0
    assert book.fix_label_cap(PrivacyUnit.USER, None) == 25.0
    for other in (24.0, 26.0):
        with pytest.raises(BudgetError, match="cannot be changed"):
            book.fix_label_cap(PrivacyUnit.USER, other)
    account.book_labels(DRAW)
    with pytest.raises(LedgerError, match="another draw"):
        account.book_labels(RandomizedResponseEvent(0.1, 1))


def test_the_rounds_filter_knows_nothing_of_labels(project: Project, book: ProjectBook) -> None:
    """Totals stand apart (rule 12): what labels spend takes nothing from the rounds' cap, and the reverse."""
    from privacy.units import Adversary

    account = project.join(book, "first")
    before = account.bound(Adversary.READER)
    book.fix_label_cap(PrivacyUnit.USER, 25.0)
    account.book_labels(DRAW)
    assert account.bound(Adversary.READER) == before


LABELS = {"run": 2, "event": DRAW.to_json()}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("label_cap", {"unit": "user", "epsilon": 30.0}),
        ("label_cap", {"unit": "person", "epsilon": 30.0}),
        ("label_cap", {"unit": "example", "epsilon": -1.0}),
        ("label_cap", {"unit": "example", "epsilon": 3}),
        ("labels", LABELS),
        ("labels", {**LABELS, "run": 77}),
        ("labels", {**LABELS, "event": GaussianEvent(1.0, 1.0).to_json()}),
        ("labels", {**LABELS, "event": {"kind": "free"}}),
        ("labels", {**LABELS, "more": 1}),
    ],
    ids=str,
)
def test_lines_that_no_honest_writer_writes_are_refused(
    project: Project, book: ProjectBook, kind: str, body: dict[str, object]
) -> None:
    account = project.join(book, "first")
    book.fix_label_cap(PrivacyUnit.USER, 25.0)
    account.book_labels(DRAW)
    book.close()
    writer = ChainWriter(project.path)
    writer.append(kind, body, durable=False)
    writer.close()
    with pytest.raises(CodedError):
        read_project(project.path)
