"""The unmasked sum is the plain integer sum, bit for bit, whoever is missing and when; or nothing is unmasked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.secagg.errors import RoundAborted
from privacy.secagg.plan import Consistency
from privacy.secagg.shares import NoisedShare, simulated_sum
from tests.privacy.secagg.federation import MODES, Outcome, client, plain_sum, plan, run_round, run_two_trip, server

STAGES = ("keys", "shares", "masked", "agreed", "unmask")
QUICK = settings(deadline=None, derandomize=True, max_examples=25)


@st.composite
def settings_of_a_round(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, set[int]]]:
    """n, threshold, d, ring, mode; and who is silent from which stage on, never more than the plan tolerates."""
    n = draw(st.integers(3, 9))
    least = draw(st.integers(2 * n // 3 + 1, n))
    missing = draw(st.lists(st.integers(0, n - 1), unique=True, max_size=n - least))
    silent: dict[str, set[int]] = {}
    for i in missing:
        silent.setdefault(draw(st.sampled_from(STAGES)), set()).add(i)
    chosen = {
        "n": n,
        "least": least,
        "d": draw(st.integers(1, 40)),
        "bits": draw(st.sampled_from([16, 20, 24, 32])),
        "mode": draw(st.sampled_from(MODES)),
        "sigma": draw(st.sampled_from([0, 5])),
        "rotated": draw(st.booleans()),
    }
    return chosen, silent


def check(outcome: Outcome, expected: set[int]) -> None:
    p = outcome.server._plan
    assert set(outcome.total.survivors) == expected
    np.testing.assert_array_equal(outcome.total.integers, plain_sum(p, outcome.shares, sorted(expected)))
    alone = simulated_sum(p, {i: outcome.shares[i] for i in expected})
    np.testing.assert_array_equal(outcome.total.integers, alone.integers)
    np.testing.assert_array_equal(outcome.total.value, alone.value)
    assert outcome.total.noise_std == alone.noise_std
    assert outcome.server.faults == {}


@pytest.mark.slow  # seconds
@given(settings_of_a_round())
@QUICK
def test_the_sum_is_exact_for_every_set_of_silent_clients(case: tuple[dict[str, Any], dict[str, set[int]]]) -> None:
    chosen, silent = case
    lost = set().union(*(silent.get(stage, set()) for stage in STAGES[:3]))
    check(run_round(plan(**chosen), silent=silent), set(range(chosen["n"])) - lost)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stage", STAGES)
def test_one_client_too_few_at_any_stage_aborts_and_nothing_is_released(stage: str, mode: Consistency) -> None:
    if stage == "agreed" and mode is Consistency.FOLDED:
        return
    p = plan(6, mode=mode)
    too_many = range(p.cohort.largest - p.cohort.least + 1)
    with pytest.raises(RoundAborted) as aborted:
        run_round(p, silent={stage: too_many})
    assert aborted.value.code == "FP479"


@pytest.mark.parametrize("mode", MODES)
def test_exactly_the_threshold_is_enough_and_one_answer_less_is_not(mode: Consistency) -> None:
    p = plan(9, least=8, mode=mode)
    check(run_round(p, silent={"masked": [1]}), set(range(9)) - {1})
    last = "unmask" if mode is Consistency.FOLDED else "agreed"
    with pytest.raises(RoundAborted, match=r"answered|signed"):
        run_round(p, silent={"masked": [1], last: [2]})


def test_without_all_answers_the_total_stays_masked() -> None:
    """What the server holds after an abort differs from the plain sum in (almost) every coordinate."""
    p, sealed = plan(5, 200, least=4), dict[int, NoisedShare]()
    s = server(p)
    with pytest.raises(RoundAborted):
        run_round(p, silent={"unmask": [0, 1]}, at=s, sealed=sealed)
    plain = sum(x.value.astype(np.uint64) for x in sealed.values()) % 2**32
    assert len(sealed) == 5
    assert np.mean(s._total == plain) < 0.05


@pytest.mark.parametrize("mode", MODES)
@given(data=st.data())
@settings(deadline=None, derandomize=True, max_examples=4)
def test_two_trips_a_round_give_the_same_sums(mode: Consistency, data: st.DataObject) -> None:
    """Somebody else is silent in every trip; two may be missing at once (one of this round, one of the next)."""
    n, rounds = 8, 3
    p = plan(n, 5, least=6, mode=mode)
    trips = {"A": rounds, "B": rounds} | ({"C": rounds} if mode is Consistency.STRICT else {})
    silent = {
        (name, k): [data.draw(st.integers(0, n - 1))]
        for name, times in trips.items()
        for k in range(times)
        if data.draw(st.booleans()) and name == data.draw(st.sampled_from(sorted(trips)))
    }
    sums, shares, names, s = run_two_trip(p, rounds, silent)
    assert len(sums) == rounds
    assert s.faults == {}
    for total in sums:
        own = {i: x for (number, i), x in shares.items() if number == total.round}
        np.testing.assert_array_equal(total.integers, plain_sum(p, own, total.survivors))
        assert set(total.survivors) <= set(own)
    if not s.aborted:
        assert len(names) == (3 if mode is Consistency.STRICT else 2) * rounds + 2


@pytest.mark.parametrize(("mode", "per_round"), [(Consistency.FOLDED, 2), (Consistency.STRICT, 3)])
def test_a_run_takes_two_or_three_trips_a_round_and_two_more(mode: Consistency, per_round: int) -> None:
    _, _, names, s = run_two_trip(plan(5, mode=mode), 4)
    assert names == ["S1", "S2", *(["A", "B", "C"][:per_round] * 4)]
    assert s.aborted == []


@pytest.mark.slow  # seconds
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("trip", [("S1", 0), ("S2", 0), ("A", 0), ("B", 0), ("A", 1), ("B", 1)])
def test_a_run_goes_on_after_a_round_that_aborts(mode: Consistency, trip: tuple[str, int]) -> None:
    p = plan(5, mode=mode)
    sums, shares, _, s = run_two_trip(p, 3, {trip: [0, 1]})
    assert len(sums) == 3
    assert s.aborted
    numbers = [total.round for total in sums]
    assert numbers == sorted(set(numbers))
    for total in sums:
        own = {i: x for (number, i), x in shares.items() if number == total.round}
        np.testing.assert_array_equal(total.integers, plain_sum(p, own, total.survivors))


def test_a_client_that_slept_through_a_round_joins_the_next() -> None:
    p = plan(5)
    people = {i: client(p, i) for i in range(5)}
    first = run_round(p, clients=people, silent={"masked": [2]})
    second = run_round(p, clients=people, round_number=2, closure=first.server.closure)
    assert second.total.survivors == (0, 1, 2, 3, 4)


def test_a_server_refuses_to_invite_fewer_than_the_least_cohort_or_strangers() -> None:
    p = plan(5)
    for invited in (range(3), range(6), [0, 1, 2, 77]):
        with pytest.raises(RoundAborted):
            server(p).invitation(tuple(invited))


def test_a_client_that_missed_the_closure_of_its_last_round_joins_again() -> None:
    """It is shown that of a later round: as good as none, which it takes ``unclosed`` times a run."""
    p = plan(5, unclosed=1)
    people = {i: client(p, i) for i in range(5)}
    closure = run_round(p, clients=people).server.closure
    for number in (2, 3):
        gone = {"keys": [2]} if number == 2 else {}
        outcome = run_round(p, clients=people, round_number=number, closure=closure, silent=gone)
        closure = outcome.server.closure
    assert outcome.total.survivors == (0, 1, 2, 3, 4)
    assert people[2]._state.unclosed == 1
    assert people[1]._state.unclosed == 0
