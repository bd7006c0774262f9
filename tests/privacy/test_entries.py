"""The rules that the entries of a ledger obey: every violation is found when it is read, and its line named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from privacy.accounting import epsilon
from privacy.chain import ChainWriter
from privacy.entries import read_ledger
from privacy.errors import LedgerError, UnsupportedEventError
from privacy.ledger import Ledger
from privacy.units import Adversary, PrivacyUnit, Trust
from tests.privacy.books import DELTA, EVENT, events, header

OPEN = ("open", header().to_json())
EVENTS = {adversary.value: event.to_json() for adversary, event in events().items()}
Line = tuple[str, dict[str, Any]]


def reserve(number: Any, **changed: Any) -> Line:
    return ("reserve", {"round": number, "events": {**EVENTS, **changed}})


def commit(seq: Any) -> Line:
    return ("commit", {"reserve": seq})


def abort(seq: Any, spent: Any = True) -> Line:
    return ("abort", {"reserve": seq, "spent": spent, "reason": "x"})


def retry(seq: Any) -> Line:
    return ("retry", {"reserve": seq, "sealed": "x"})


def written(path: Path, *lines: Line) -> Path:
    """An intact chain of these lines, whatever they say."""
    writer = ChainWriter(path)
    for kind, body in lines:
        writer.append(kind, body, durable=False)
    writer.close()
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([OPEN, reserve(1), commit(1)], id="commit"),
        pytest.param([OPEN, reserve(1), retry(1), retry(1), commit(1)], id="retries"),
        pytest.param([OPEN, reserve(1), abort(1, False), reserve(1), commit(3)], id="the same round again"),
        pytest.param([OPEN, reserve(1), abort(1), reserve(7), commit(3)], id="a gap in the rounds"),
        pytest.param([OPEN, reserve(1)], id="left open"),
    ],
)
def test_these_orders_are_kept(path: Path, lines: list[Line]) -> None:
    assert read_ledger(written(path, *lines)).num_entries == len(lines)


@pytest.mark.parametrize(
    ("lines", "number"),
    [
        pytest.param([], 1, id="empty"),
        pytest.param([reserve(1)], 1, id="no opening line"),
        pytest.param([OPEN, OPEN], 2, id="opened twice"),
        pytest.param([OPEN, reserve(1), OPEN], 3, id="opened again"),
        pytest.param([OPEN, reserve(1), reserve(2)], 3, id="second reservation while one is open"),
        pytest.param([OPEN, reserve(2), commit(1), reserve(1)], 4, id="rounds go back"),
        pytest.param([OPEN, reserve(0)], 2, id="round 0"),
        pytest.param([OPEN, reserve(-1)], 2, id="negative round"),
        pytest.param([OPEN, reserve(1.0)], 2, id="round as a float"),
        pytest.param([OPEN, reserve(True)], 2, id="round as a bool"),
        pytest.param([OPEN, reserve("1")], 2, id="round as a string"),
        pytest.param([OPEN, reserve(1, stranger=EVENT.to_json())], 2, id="an adversary nobody knows"),
        pytest.param([OPEN, ("reserve", {"round": 1, "events": {"reader": EVENT.to_json()}})], 2, id="one adversary"),
        pytest.param([OPEN, ("reserve", {"round": 1, "events": []})], 2, id="events as a list"),
        pytest.param([OPEN, ("reserve", {"round": 1, "events": EVENTS, "count": 3})], 2, id="surplus field"),
        pytest.param([OPEN, ("reserve", {"round": 1})], 2, id="missing field"),
        pytest.param([OPEN, commit(0)], 2, id="commit of nothing"),
        pytest.param([OPEN, reserve(1), commit(0)], 3, id="commit of another line"),
        pytest.param([OPEN, reserve(1), commit(1), commit(1)], 4, id="committed twice"),
        pytest.param([OPEN, reserve(1), commit(1), abort(1, False)], 4, id="given back after the commit"),
        pytest.param([OPEN, reserve(1), abort(1), abort(1, False)], 4, id="given back after an abort"),
        pytest.param([OPEN, abort(0)], 2, id="abort of nothing"),
        pytest.param([OPEN, reserve(1), abort(1, 0)], 3, id="spent as an int"),
        pytest.param([OPEN, reserve(1), abort(1, None)], 3, id="spent as null"),
        pytest.param([OPEN, reserve(1), ("abort", {"reserve": 1, "spent": False})], 3, id="abort without a reason"),
        pytest.param([OPEN, reserve(1), commit(1.0)], 3, id="a commit of line 1.0"),
        pytest.param([OPEN, reserve(1), commit(True)], 3, id="a commit of line true"),
        pytest.param([OPEN, reserve(1), abort(1.0)], 3, id="an abort of line 1.0"),
        pytest.param([OPEN, reserve(1), abort(True, False)], 3, id="a give-back of line true"),
        pytest.param([OPEN, reserve(1), retry(1.0)], 3, id="a retry of line 1.0"),
        pytest.param([OPEN, reserve(1), ("retry", {"reserve": 1, "sealed": 7})], 3, id="sealed as a number"),
        pytest.param([OPEN, reserve(1), ("abort", {"reserve": 1, "spent": True, "reason": None})], 3, id="reason null"),
        pytest.param([OPEN, retry(0)], 2, id="retry of nothing"),
        pytest.param([OPEN, reserve(1), retry(0)], 3, id="retry of another line"),
        pytest.param([OPEN, reserve(1), commit(1), retry(1)], 4, id="retry of a closed round"),
        pytest.param([OPEN, ("refund", {"reserve": 1})], 2, id="unknown kind"),
    ],
)
def test_a_violated_order_is_found_and_its_line_named(path: Path, lines: list[Line], number: int) -> None:
    with pytest.raises(LedgerError, match=f"line {number} "):
        read_ledger(written(path, *lines))


@pytest.mark.parametrize(
    "event",
    [
        {"kind": "laplace"},
        {**EVENT.to_json(), "sample_rate": 0.0},
        {**EVENT.to_json(), "noise_multiplier": 8},
        "trusted",
        None,
    ],
    ids=str,
)
def test_an_event_outside_the_vocabulary_stops_the_reader(path: Path, event: Any) -> None:
    with pytest.raises(UnsupportedEventError):
        read_ledger(written(path, OPEN, reserve(1, reader=event)))


@pytest.mark.parametrize(
    "changed",
    [
        {"schema": "fedpref-ledger-2"},
        {"schema": None},
        {"unit": "household"},
        {"unit": ["user"]},
        {"relation": "replace_one"},
        {"trust": "blind"},
        {"private_rng": "false"},
        {"private_rng": 1},
        {"target_epsilon": "8"},
        {"target_epsilon": True},
        {"target_epsilon": "nan"},
        {"target_epsilon": 10**400},
        {"target_delta": None},
        {"target_delta": [1e-5]},
        {"facts": [["num_units", 3]]},
        {"facts": None},
        {"surplus": 1},
    ],
    ids=str,
)
def test_a_header_that_is_none_is_refused(path: Path, changed: dict[str, Any]) -> None:
    with pytest.raises(LedgerError):
        read_ledger(written(path, ("open", {**OPEN[1], **changed})))


@pytest.mark.parametrize("missing", OPEN[1])
def test_a_header_that_lacks_a_field_is_refused(path: Path, missing: str) -> None:
    with pytest.raises(LedgerError):
        read_ledger(written(path, ("open", {k: v for k, v in OPEN[1].items() if k != missing})))


def test_a_header_survives_the_file(path: Path) -> None:
    full = header(target_epsilon=8.0, trust=Trust.LOCAL, unit=PrivacyUnit.EXAMPLE, private_rng=False)
    Ledger(path, full).close()
    assert read_ledger(path).header == full


def test_an_aborted_round_is_spent_or_given_back_but_never_committed(path: Path) -> None:
    view = read_ledger(
        written(path, OPEN, reserve(1), commit(1), reserve(2), abort(3, True), reserve(3), abort(5, False), reserve(4))
    )
    assert [set(s) for s in (view.committed, view.aborted, view.given_back)] == [{1}, {3}, {5}]
    assert view.open_reservation == view.reservations[-1]
    assert view.composition(Adversary.READER) == {EVENT: 3}
    assert view.epsilon(Adversary.READER) == epsilon({EVENT: 3}, DELTA)


@pytest.mark.parametrize("end", [commit(1), abort(1, True), abort(1, False)], ids=["commit", "spent", "given back"])
def test_a_closed_round_is_not_open(path: Path, end: Line) -> None:
    assert read_ledger(written(path, OPEN, reserve(1), end)).open_reservation is None


GOLDEN = Path(__file__).parent / "golden" / "ledger-1.jsonl"


def test_a_ledger_of_the_first_version_still_reads() -> None:
    """Written by the first version; its bytes are the promise that the format does not break."""
    view = read_ledger(GOLDEN)
    assert view.head == "b79bdc2e676989cf38bd6ab9fc1b1259ec255fb0557058764b52fd9f575c0390"
    assert view.header == header(target_epsilon=8.0)
    assert [r.round for r in view.reservations] == [1, 2, 3, 3, 4, 5]
    assert view.composition(Adversary.READER) == {EVENT: 5}
    assert (len(view.committed), len(view.aborted), len(view.given_back)) == (3, 1, 1)


def test_a_ledger_of_the_first_version_can_be_continued_and_only_grows(path: Path) -> None:
    path.write_bytes(GOLDEN.read_bytes())
    book = Ledger(path, header(target_epsilon=8.0))
    interrupted = book.open_reservation
    assert interrupted is not None
    book.retry(interrupted, "never sent")
    book.commit(interrupted)
    book.close()
    assert path.read_bytes().startswith(GOLDEN.read_bytes())
    assert len(read_ledger(path).committed) == 4
