"""What a ledger adds up to, and what it remembers across restarts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from privacy.accounting import epsilon
from privacy.errors import (
    LedgerError,
)
from privacy.events import GaussianEvent
from privacy.ledger import Ledger, Reservation, read_ledger
from privacy.units import Adversary, Trust
from tests.privacy.books import DELTA, EVENT, events, header, write_ledger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def close_as(how: str, book: Ledger, reservation: Reservation) -> None:
    if how == "commit":
        book.commit(reservation)
    elif how == "spent":
        book.abort(reservation, "too few clients", spent=True)
    elif how == "given back":
        book.abort(reservation, "nothing left a client", spent=False)


def test_seeded_random_numbers_make_every_epsilon_infinite(path: Path) -> None:
    write_ledger(path, 2, private_rng=False)
    view = read_ledger(path)
    assert all(view.epsilon(adversary) == math.inf for adversary in Adversary)
    assert epsilon(view.nominal(Adversary.READER), DELTA) == epsilon({EVENT: 2}, DELTA)


def test_seeded_random_numbers_that_were_never_used_cost_nothing(path: Path) -> None:
    write_ledger(path, 0, private_rng=False)
    assert read_ledger(path).epsilon(Adversary.READER) == 0.0


def test_adversaries_are_composed_apart(path: Path) -> None:
    book = Ledger(path, header(trust=Trust.LOCAL))
    other = GaussianEvent(9.0, 0.5)
    book.commit(book.reserve(1, events(server=other)))
    book.commit(book.reserve(2, events(server=other)))
    book.close()
    view = read_ledger(path)
    assert view.composition(Adversary.READER) == {EVENT: 2}
    assert view.composition(Adversary.SERVER) == {other: 2}
    assert view.epsilon(Adversary.SERVER) == epsilon({other: 2}, DELTA) < view.epsilon(Adversary.READER)


def test_every_line_holds_public_facts_alone(path: Path) -> None:
    """The realised cohort and its size are secret (rule 8): the books have no place for them."""
    write_ledger(path, 2)
    fields = [set(json.loads(line)["body"]) for line in path.read_text().splitlines()]
    assert fields == [set(header().to_json()), *([{"round", "events"}, {"reserve"}] * 2)]


@pytest.mark.parametrize(("how", "committed"), [("commit", 2), ("spent", 1), ("given back", 1), ("crash", 1)])
def test_the_last_committed_round_is_the_same_before_and_after_a_restart(path: Path, how: str, committed: int) -> None:
    """A round that was aborted, spent or not, was not released: nobody may go on behind it."""
    book = Ledger(path, header())
    book.commit(book.reserve(1, events()))
    close_as(how, book, book.reserve(2, events()))
    assert book.committed_round == committed
    book.close()
    book = Ledger(path, header())
    assert book.committed_round == committed
    book.close()


def test_before_the_first_commit_the_last_committed_round_is_zero(path: Path) -> None:
    book = Ledger(path, header())
    assert (book.committed_round, book.num_reserved) == (0, 0)
    book.reserve(1, events())
    assert (book.committed_round, book.num_reserved) == (0, 1)
    book.close()


def test_repetitions_are_counted_and_what_was_given_back_is_not(path: Path) -> None:
    book = Ledger(path, header())
    book.abort(book.reserve(1, events()), "x", spent=True)
    book.abort(book.reserve(1, events()), "x", spent=False)
    book.commit(book.reserve(1, events()))
    assert book.num_reserved == 2
    book.close()
    book = Ledger(path, header())
    assert book.num_reserved == 2
    book.close()


def test_a_run_does_not_go_on_over_books_that_lack_a_released_round(path: Path) -> None:
    """A lost or rolled-back ledger beside checkpoints of later rounds."""
    write_ledger(path, 3)
    book = Ledger(path, header())
    for done in range(4):
        book.check_rounds(done)
    with pytest.raises(LedgerError, match="round 4"):
        book.check_rounds(5)
    book.close()
    path.unlink()
    book = Ledger(path, header())
    with pytest.raises(LedgerError, match="round 1"):
        book.check_rounds(1)
    book.close()
