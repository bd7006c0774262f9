"""A reservation is leave for one release of each party, given once, in one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from privacy.accounting import epsilon
from privacy.errors import LedgerError, LedgerWriteError, MechanismMisuseError
from privacy.events import GaussianEvent
from privacy.ledger import Ledger, Reservation, read_ledger
from privacy.units import Adversary
from tests.privacy.books import DELTA, EVENT, events, header


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def reopened(path: Path) -> tuple[Ledger, Reservation]:
    """A ledger whose round 1 was reserved, and perhaps released, by a process that is gone."""
    first = Ledger(path, header())
    first.reserve(1, events()).use("client 0")
    first.close()
    book = Ledger(path, header())
    interrupted = book.open_reservation
    assert interrupted is not None
    return book, interrupted


def test_an_interrupted_reservation_is_no_leave_until_the_ledger_says_that_nothing_left(path: Path) -> None:
    book, interrupted = reopened(path)
    assert interrupted.used
    with pytest.raises(MechanismMisuseError, match="no leave"):
        interrupted.use("client 0")
    book.retry(interrupted, "never sent")
    interrupted.use("client 0")
    with pytest.raises(MechanismMisuseError, match="second release"):
        interrupted.use("client 0")
    book.close()
    assert path.read_text().count('"kind":"retry"') == 1


@pytest.mark.parametrize("retried", [False, True])
def test_an_interrupted_reservation_is_never_given_back(path: Path, retried: bool) -> None:
    book, interrupted = reopened(path)
    if retried:
        book.retry(interrupted, "never sent")
    with pytest.raises(MechanismMisuseError, match="given back"):
        book.abort(interrupted, "nothing left, I am told", spent=False)
    book.abort(interrupted, "who knows", spent=True)
    book.close()
    assert read_ledger(path).epsilon(Adversary.READER) == epsilon({EVENT: 1}, DELTA)


def test_a_reservation_built_by_hand_is_nobodys_leave(path: Path) -> None:
    Ledger(path, header()).close()
    with pytest.raises(MechanismMisuseError, match="no leave"):
        Reservation(1, 1, events()).use("server")


def test_the_events_of_a_reservation_cannot_be_changed(path: Path) -> None:
    book = Ledger(path, header())
    mine = events()
    reservation = book.reserve(1, mine)
    mine[Adversary.READER] = GaussianEvent(0.1, 1.0)
    assert reservation.events[Adversary.READER] == EVENT
    with pytest.raises(TypeError):
        reservation.events[Adversary.READER] = GaussianEvent(0.1, 1.0)  # type: ignore[index]
    book.close()


def test_a_round_that_was_given_back_is_not_one_that_was_released(path: Path) -> None:
    book = Ledger(path, header())
    book.abort(book.reserve(1, events()), "nothing left", spent=False)
    book.close()
    book = Ledger(path, header())
    with pytest.raises(LedgerError, match="does not know round 1"):
        book.check_rounds(1)
    book.close()


def test_a_ledger_can_be_closed_twice_and_not_written_afterwards(path: Path) -> None:
    book = Ledger(path, header())
    book.close()
    book.close()
    with pytest.raises(LedgerWriteError):
        book.reserve(1, events())
    Ledger(path, header()).close()
