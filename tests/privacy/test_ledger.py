"""The books: reserve before, commit or abort after; nothing over budget begins, nothing spent is forgotten."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from privacy import ledger
from privacy.accounting import epsilon
from privacy.errors import (
    BudgetError,
    CodedError,
    LedgerError,
    LedgerWriteError,
    MechanismMisuseError,
)
from privacy.events import Event, GaussianEvent, NonPrivateEvent
from privacy.ledger import Ledger, LedgerHeader, Reservation, read_ledger
from privacy.units import Adversary, PrivacyUnit, Trust
from tests.privacy.books import DELTA, EVENT, events, header, write_ledger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def epsilon_of(rounds: int) -> float:
    return epsilon({EVENT: rounds}, DELTA)


CHANGES: dict[str, Any] = {
    "scope": "node:a",
    "run": "other",
    "unit": PrivacyUnit.EXAMPLE,
    "trust": Trust.LOCAL,
    "target_epsilon": 9.0,
    "target_delta": 1e-6,
    "private_rng": False,
    "facts": {"max_grad_norm": 2.0},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_ledger_is_not_continued_under_other_terms(path: Path, name: str) -> None:
    Ledger(path, header()).close()
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="other terms"):
        Ledger(path, header(**{name: CHANGES[name]}))
    assert path.read_bytes() == before
    Ledger(path, header()).close()  # the refusal left no lock behind


def test_every_field_of_a_header_is_compared() -> None:
    assert set(CHANGES) == {f.name for f in dataclasses.fields(LedgerHeader)} - {"relation"}  # it has one value


def test_exactly_the_rounds_that_fit_the_budget_are_reserved_and_the_next_writes_nothing(path: Path) -> None:
    target = epsilon_of(3) * 1.0001
    book = Ledger(path, header(target_epsilon=target))
    for number in (1, 2, 3):
        book.commit(book.reserve(number, events()))
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(BudgetError):
            book.reserve(4, events())
    assert path.read_bytes() == before
    assert book.epsilon(Adversary.READER) == epsilon_of(3) <= target < epsilon_of(4)
    book.close()
    assert read_ledger(path).epsilon(Adversary.READER) == epsilon_of(3)


def test_a_refused_round_leaves_the_ledger_fit_for_a_cheaper_one(path: Path) -> None:
    book = Ledger(path, header(target_epsilon=epsilon_of(1)))
    with pytest.raises(BudgetError):
        book.reserve(1, events(GaussianEvent(4.0, 1.0)))
    book.commit(book.reserve(1, events()))
    book.close()
    assert len(read_ledger(path).reservations) == 1


def test_the_budget_survives_restarts(path: Path) -> None:
    """Planted bug of well-known systems: budget lost on restart, accountant reset each round."""
    terms = header(target_epsilon=epsilon_of(3) * 1.0001)
    for number in (1, 2, 3):
        book = Ledger(path, terms)
        book.commit(book.reserve(number, events()))
        book.close()
    book = Ledger(path, terms)
    with pytest.raises(BudgetError):
        book.reserve(4, events())
    book.close()


def test_the_budget_binds_every_adversary_that_is_not_trusted(path: Path) -> None:
    book = Ledger(path, header(target_epsilon=epsilon_of(1), trust=Trust.LOCAL))
    for exposed in Adversary:
        booked: dict[Adversary, Event] = dict.fromkeys(Adversary, EVENT)
        booked[exposed] = NonPrivateEvent("no noise")
        with pytest.raises(BudgetError, match=exposed.described[:10]):
            book.reserve(1, booked)
    book.close()


def test_a_trusted_server_does_not_break_the_budget(path: Path) -> None:
    book = Ledger(path, header(target_epsilon=epsilon_of(1)))
    book.reserve(1, events())
    assert book.epsilon(Adversary.SERVER) == math.inf
    book.close()


def test_without_a_budget_everything_is_booked_and_counts(path: Path) -> None:
    book = Ledger(path, header())
    book.commit(book.reserve(1, events(NonPrivateEvent("no noise"))))
    book.close()
    assert read_ledger(path).epsilon(Adversary.READER) == math.inf


def test_a_plan_that_fits_is_checked_once_and_its_rounds_need_no_accountant(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = Ledger(path, header(target_epsilon=epsilon_of(3) * 1.0001))
    book.expect(Adversary.READER, {EVENT: 3})
    book.expect(Adversary.OTHER_CLIENTS, {EVENT: 3})
    asked: list[int] = []

    def accountant(composition: dict[Any, int], delta: float) -> float:
        asked.append(sum(composition.values()))
        return epsilon(composition, delta)

    monkeypatch.setattr(ledger, "epsilon", accountant)
    for number in (1, 2, 3):
        book.commit(book.reserve(number, events()))
    assert asked == []
    with pytest.raises(BudgetError):
        book.reserve(4, events())
    assert asked == [4]
    book.close()


def test_a_plan_that_does_not_fit_is_refused_and_nothing_written(path: Path) -> None:
    book = Ledger(path, header(target_epsilon=epsilon_of(3) * 1.0001))
    before = path.read_bytes()
    with pytest.raises(BudgetError):
        book.expect(Adversary.READER, {EVENT: 4})
    assert path.read_bytes() == before
    book.commit(book.reserve(1, events()))
    with pytest.raises(BudgetError):  # what is spent counts
        book.expect(Adversary.READER, {EVENT: 3})
    book.close()


def test_a_plan_of_a_mild_event_is_no_leave_for_a_harsh_one(path: Path) -> None:
    book = Ledger(path, header(target_epsilon=epsilon_of(3) * 1.0001))
    for adversary in (Adversary.READER, Adversary.OTHER_CLIENTS):
        book.expect(adversary, {EVENT: 3})
    with pytest.raises(BudgetError):
        book.reserve(1, events(GaussianEvent(2.0, 1.0)))
    book.close()


def close_as(how: str, book: Ledger, reservation: Reservation) -> None:
    if how == "commit":
        book.commit(reservation)
    elif how == "spent":
        book.abort(reservation, "too few clients", spent=True)
    elif how == "given back":
        book.abort(reservation, "nothing left a client", spent=False)


@pytest.mark.parametrize(("how", "counted"), [("commit", 1), ("spent", 1), ("given back", 0), ("crash", 1)])
def test_what_counts_is_every_reservation_that_was_not_given_back(path: Path, how: str, counted: int) -> None:
    book = Ledger(path, header())
    close_as(how, book, book.reserve(1, events()))
    assert book.epsilon(Adversary.READER) == epsilon_of(counted)
    book.close()
    view = read_ledger(path)
    assert view.epsilon(Adversary.READER) == view.epsilon(Adversary.OTHER_CLIENTS) == epsilon_of(counted)
    assert (view.open_reservation is not None) == (how == "crash")
    again = Ledger(path, header())
    assert again.epsilon(Adversary.READER) == epsilon_of(counted)
    again.close()


def test_a_retry_of_identical_bytes_is_no_second_event(path: Path) -> None:
    book = Ledger(path, header())
    reservation = book.reserve(1, events())
    book.close()
    book = Ledger(path, header())
    interrupted = book.open_reservation
    assert interrupted == reservation
    assert interrupted is not None
    for _ in range(3):
        book.retry(interrupted, "sha256 of the sealed bytes")
    book.commit(interrupted)
    book.close()
    assert read_ledger(path).composition(Adversary.READER) == {EVENT: 1}


def test_a_round_reserved_again_is_a_second_event(path: Path) -> None:
    book = Ledger(path, header())
    book.abort(book.reserve(1, events()), "asked again with another cohort", spent=True)
    book.commit(book.reserve(1, events()))
    book.close()
    assert read_ledger(path).composition(Adversary.READER) == {EVENT: 2}


def test_what_was_given_back_can_be_spent_again_but_not_twice(path: Path) -> None:
    book = Ledger(path, header(target_epsilon=epsilon_of(1)))
    first = book.reserve(1, events())
    book.abort(first, "nothing left", spent=False)
    with pytest.raises(MechanismMisuseError):
        book.abort(first, "nothing left", spent=False)
    book.commit(book.reserve(1, events()))
    with pytest.raises(BudgetError):
        book.reserve(2, events())
    book.close()
    assert read_ledger(path).epsilon(Adversary.READER) == epsilon_of(1)


Act = Callable[[Ledger, Reservation], object]
ACTS: dict[str, Act] = {
    "commit": lambda book, r: book.commit(r),
    "abort as spent": lambda book, r: book.abort(r, "x", spent=True),
    "give back": lambda book, r: book.abort(r, "x", spent=False),
    "retry": lambda book, r: book.retry(r, "x"),
}


@pytest.mark.parametrize("act", ACTS)
def test_the_writer_touches_only_the_open_reservation(path: Path, act: str) -> None:
    """A writer that took these would leave a ledger that nobody can read."""
    book = Ledger(path, header())
    closed = book.reserve(1, events())
    book.commit(closed)
    forged = Reservation(3, 2, events())
    for wrong in (closed, forged):
        before = path.read_bytes()
        with pytest.raises(MechanismMisuseError):
            ACTS[act](book, wrong)
        assert path.read_bytes() == before
    current = book.reserve(2, events())
    for wrong in (closed, forged):  # the forged one equals the open one but was not handed out
        with pytest.raises(MechanismMisuseError):
            ACTS[act](book, wrong)
    ACTS[act](book, current)
    book.close()
    assert len(read_ledger(path).reservations) == 2


def without_server() -> dict[Adversary, Any]:
    return {a: e for a, e in events().items() if a is not Adversary.SERVER}


@pytest.mark.parametrize(
    ("number", "booked"),
    [
        pytest.param(1, events(), id="an earlier round"),
        pytest.param(0, events(), id="round 0"),
        pytest.param(True, events(), id="a bool"),
        pytest.param(3.0, events(), id="a float"),
        pytest.param(3, without_server(), id="an adversary left out"),
        pytest.param(3, {}, id="no events"),
        pytest.param(3, events(GaussianEvent(8, 1.0)), id="an int that would not be read back"),
        pytest.param(3, events(GaussianEvent(8.0, 1.0, "uniform")), id="a sampler nobody knows"),
        pytest.param(3, events(GaussianEvent(math.nan, 1.0)), id="NaN"),
    ],
)
def test_the_writer_refuses_what_the_reader_would_refuse(path: Path, number: Any, booked: dict[Adversary, Any]) -> None:
    book = Ledger(path, header())
    book.commit(book.reserve(2, events()))
    before = path.read_bytes()
    with pytest.raises((CodedError, ValueError)):
        book.reserve(number, booked)
    assert path.read_bytes() == before
    book.commit(book.reserve(2, events()))
    book.close()
    assert len(read_ledger(path).reservations) == 2


def test_the_order_of_rounds_is_remembered_across_restarts(path: Path) -> None:
    write_ledger(path, 5)
    book = Ledger(path, header())
    with pytest.raises(MechanismMisuseError):
        book.reserve(4, events())
    book.reserve(5, events())
    book.close()


def test_a_second_reservation_while_one_is_open_is_refused(path: Path) -> None:
    book = Ledger(path, header())
    book.reserve(1, events())
    before = path.read_bytes()
    with pytest.raises(MechanismMisuseError):
        book.reserve(2, events())
    assert path.read_bytes() == before
    book.close()


def test_each_party_uses_a_reservation_once(path: Path) -> None:
    book = Ledger(path, header())
    reservation = book.reserve(1, events())
    for party in ("server", "client 0", "client 1"):
        reservation.use(party)
        with pytest.raises(MechanismMisuseError):
            reservation.use(party)
    assert reservation.used
    book.close()


@pytest.mark.parametrize("how", ["commit", "spent", "given back"])
def test_a_closed_reservation_is_no_leave_to_release(path: Path, how: str) -> None:
    book = Ledger(path, header())
    reservation = book.reserve(1, events())
    close_as(how, book, reservation)
    with pytest.raises(MechanismMisuseError):
        reservation.use("server")
    book.close()


def test_a_round_under_which_something_was_released_cannot_be_given_back(path: Path) -> None:
    book = Ledger(path, header())
    reservation = book.reserve(1, events())
    reservation.use("client 3")
    with pytest.raises(MechanismMisuseError):
        book.abort(reservation, "nothing left, honestly", spent=False)
    book.abort(reservation, "too few", spent=True)
    book.close()
    assert read_ledger(path).epsilon(Adversary.READER) == epsilon_of(1)


def test_a_failed_give_back_is_no_leave_to_release_either(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = Ledger(path, header())
    reservation = book.reserve(1, events())

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(LedgerWriteError):
            book.abort(reservation, "nothing left", spent=False)
    with pytest.raises(MechanismMisuseError):  # the line may be on disk, so the round may not go on
        reservation.use("server")
    book.close()
