"""Buckets: the rule, the trimmed mean, disjoint sums that are exact, and what a lie can and cannot do to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from privacy.errors import ParameterError
from privacy.secagg.buckets import Buckets, price, trimmed_deviation, trimmed_mean
from privacy.secagg.choice import make_plan
from privacy.secagg.errors import RoundAborted
from privacy.secagg.plan import Cohort, SecAggPlan
from privacy.secagg.robust import BucketSum, BucketSums, robust_sum, simulated_round
from privacy.secagg.server import SecAggServer
from privacy.secagg.shares import NoisedShare, SecureSum, simulated_sum
from privacy.secagg.two_trip import TwoTripServer, answer_bundle
from privacy.units import PrivacyUnit
from tests.privacy.secagg.federation import MODEL, MODES, client, identity, pinned, plain_sum, plan, share

B, SIZE = 3, 4
N = B * SIZE
QUICK = settings(deadline=None, derandomize=True, max_examples=60)


def bucketed(
    mode: str = "folded", *, colluders: int = 1, count: int = B, sigma: float = 0.0, **more: int
) -> SecAggPlan:
    """``count`` buckets of four clients, of which one may be missing."""
    one = plan(SIZE, least=3, colluders=colluders, mode=MODES[mode == "strict"], sigma=sigma, **more)
    return replace(one, buckets=Buckets(count, 3.0))


# ---- the rule


@given(st.sets(st.integers(0, 10_000), min_size=1, max_size=80), st.integers(1, 9), st.binary(max_size=8))
@QUICK
def test_every_client_is_in_one_bucket_and_sizes_differ_by_one_at_most(
    clients: set[int], count: int, context: bytes
) -> None:
    buckets = Buckets(count, 1.0).split(context, clients)
    assert len(buckets) == count
    assert sorted(client for bucket in buckets for client in bucket) == sorted(clients)
    assert max(map(len, buckets)) - min(map(len, buckets)) <= 1
    assert Buckets(count, 1.0).split(context, sorted(clients, reverse=True)) == buckets


def test_each_round_and_each_run_is_cut_anew_and_any_two_meet_as_often_as_chance_has_it() -> None:
    p = bucketed()
    cuts = [p.split(number, range(N)) for number in range(1, 601)]
    assert len(set(cuts)) > 590
    assert p.split(1, range(N)) != replace(p, run="another").split(1, range(N))
    met = Counter(pair for cut in cuts for bucket in cut for pair in ((a, b) for a in bucket for b in bucket if a < b))
    chance = (SIZE - 1) / (N - 1)
    low, high = stats.binom.ppf([5e-9, 1 - 5e-9], len(cuts), chance)  # 66 pairs: a false alarm below 1e-6
    assert len(met) == N * (N - 1) // 2
    assert all(low <= times <= high for times in met.values())


def test_one_bucket_is_everybody_and_changes_no_digest() -> None:
    one = plan(5)
    assert one.split(3, [4, 0, 2]) == ((0, 2, 4),)
    assert "buckets" not in one.to_json()
    assert bucketed().digest != replace(bucketed(), buckets=Buckets()).digest


@pytest.mark.parametrize(("count", "largest"), [(0, 1.0), (3, float("inf")), (3, 0.0)])
def test_buckets_that_are_none_are_refused(count: int, largest: float) -> None:
    with pytest.raises(ParameterError):
        Buckets(count, largest)


@pytest.mark.parametrize(
    ("count", "liars", "outvoted", "least"), [(1, 5, 0, 1), (2, 1, 0, 2), (3, 1, 1, 3), (5, 1, 1, 3), (5, 9, 2, 5)]
)
def test_a_minority_of_buckets_is_outvoted(count: int, liars: int, outvoted: int, least: int) -> None:
    assert (Buckets(count, 1.0).outvoted(liars), Buckets(count, 1.0).least(liars)) == (outvoted, least)


# ---- the trimmed mean


@given(st.integers(1, 9), st.data())
@QUICK
def test_the_trimmed_mean_is_that_of_the_sorted_rest(count: int, data: st.DataObject) -> None:
    trim = data.draw(st.integers(0, (count - 1) // 2))
    rows = data.draw(st.lists(st.lists(st.integers(-9, 9), min_size=3, max_size=3), min_size=count, max_size=count))
    kept = [sorted(column)[trim : count - trim] for column in zip(*rows, strict=True)]
    expected = [sum(column) / len(column) for column in kept]
    np.testing.assert_allclose(trimmed_mean(np.array(rows, dtype=np.float64), trim), expected)


@given(st.integers(1, 3), st.data())
@QUICK
def test_no_minority_leaves_the_span_of_the_honest(trim: int, data: st.DataObject) -> None:
    honest = np.random.default_rng(data.draw(st.integers(0, 99))).standard_normal((trim + 1, 4))
    lies = data.draw(st.lists(st.floats(-1e300, 1e300), min_size=4 * trim, max_size=4 * trim))
    result = trimmed_mean(np.concatenate([honest, np.array(lies).reshape(trim, 4)]), trim)
    assert (honest.min(axis=0) <= result).all()
    assert (result <= honest.max(axis=0)).all()


def test_trimming_everything_is_refused() -> None:
    with pytest.raises(ParameterError):
        trimmed_mean(np.zeros((4, 2)), 2)


@pytest.mark.parametrize(
    ("count", "trim", "variance"), [(3, 1, 0.4487), (5, 2, 0.2868), (5, 1, 0.2268), (9, 4, 0.1661)]
)
def test_the_deviation_of_a_trimmed_mean_is_that_of_the_tables(count: int, trim: int, variance: float) -> None:
    """Order statistics of the normal law, Sarhan and Greenberg 1956; (5, 1) from their covariances."""
    assert trimmed_deviation(count, trim) == pytest.approx(variance**0.5, rel=0.01)
    assert trimmed_deviation(count, 0) == pytest.approx(count**-0.5)


def test_the_price_is_at_least_the_square_root_of_the_number() -> None:
    assert price(8, 8, 1, 1) == 1.0
    assert price(20, 10, 2, 1) == pytest.approx(2**0.5)
    assert price(27, 9, 3, 1) == pytest.approx(3**0.5 * 3**0.5 * 0.4487**0.5, rel=0.01)


# ---- sums


def run(
    p: SecAggPlan, rounds: int, silent: Mapping[tuple[str, int], Collection[int]] | None = None
) -> tuple[list[SecureSum | BucketSums], dict[tuple[int, int], NoisedShare], TwoTripServer]:
    """A run in two trips a round; ``silent``: who does not answer a trip, by its name and how often it came before."""
    people, everybody = {i: client(p, i, N) for i in range(N)}, pinned(N)
    s = TwoTripServer(
        plan=p, identity=identity(-1), clients=everybody.clients, invite=lambda _: range(N), rounds=rounds
    )
    found, shares, trips = list[SecureSum | BucketSums](), dict[tuple[int, int], NoisedShare](), list[str]()
    while not s.finished and len(trips) < 3 * rounds + 6:
        name, replies = s.trip.value, dict[int, bytes]()
        gone = (silent or {}).get((name, trips.count(name)), ())
        trips.append(name)
        for i, bundle in s.requests(MODEL).items():
            if i not in gone:
                reply = answer_bundle(
                    people[i], bundle, lambda t, i=i: shares.setdefault((t.round, i), share(p, i, t.round))
                )
                assert reply.refusals == (), (name, i, reply.refusals)
                replies[i] = reply.data
        total = s.take(replies)
        found += [] if total is None else [total]
    return found, shares, s


def check(p: SecAggPlan, sums: SecureSum | BucketSums, number: int, shares: dict[tuple[int, int], NoisedShare]) -> None:
    """Each bucket's sum is the plain sum of its survivors, and the round without masks gives the same."""
    assert isinstance(sums, BucketSums)
    cut = p.split(number, range(N))
    own = {i: given for (of, i), given in shares.items() if of == number}
    for bucket in sums.buckets:
        alive = bucket.total.survivors
        assert any(set(alive) <= set(members) and bucket.size == len(members) for members in cut)
        np.testing.assert_array_equal(bucket.total.integers, plain_sum(p, own, alive))
    open_round = simulated_round(p, number, range(N), {i: own[i] for i in sums.survivors})
    assert isinstance(open_round, BucketSums)
    assert robust_sum(p, sums)[0].tobytes() == robust_sum(p, open_round)[0].tobytes()
    assert robust_sum(p, sums)[1] == robust_sum(p, open_round)[1]


@pytest.mark.parametrize("mode", MODES)
def test_every_buckets_sum_is_exact_over_rounds_that_are_cut_anew_and_closures_are_found(mode: str) -> None:
    """No round may lack a closure here: each client finds those of its last bucket among all buckets'."""
    p = bucketed(mode, unclosed=0, sigma=5.0)
    found, shares, s = run(p, 3, {("A", 1): [p.split(2, range(N))[1][0]]})
    assert (len(found), s.aborted, s.missing, s.faults) == (3, [], [], {})
    for number, sums in enumerate(found, 1):
        check(p, sums, number, shares)
    assert len(found[1].survivors) == N - 1


def test_a_cut_with_too_many_small_buckets_makes_no_round() -> None:
    p = bucketed(count=5, colluders=1)
    p = replace(p, cohort=Cohort(3, 3, 3, 1), noise=replace(p.noise, honest_shares=1))
    cut = p.split(1, range(N))
    assert sorted(map(len, cut)) == [2, 2, 2, 3, 3]  # three buckets are too small from the start
    _, _, s = run(p, 1)
    assert len(s.aborted) >= 1
    assert "2 of 5 buckets" in s.aborted[0].why


@pytest.mark.parametrize("trip", ["A", "B"])
def test_one_of_four_buckets_may_fail_and_not_two(trip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    p = replace(bucketed(count=4), buckets=Buckets(4, 3.0), cohort=Cohort(3, 3, 3, 1))
    p = replace(p, noise=replace(p.noise, honest_shares=1))
    cut = p.split(1, range(N))
    found, shares, s = run(p, 1, {(trip, 0): [cut[2][0]]})
    assert (len(found), len(s.aborted), len(s.missing)) == (1, 0, 1)
    check(p, found[0], 1, shares)
    assert set(found[0].survivors) == set(range(N)) - set(cut[2])
    assert robust_sum(p, found[0])[0].shape == (p.codec.dimension,)  # type: ignore[arg-type]
    finish, unmasked = SecAggServer.finish, Counter[int]()
    monkeypatch.setattr(SecAggServer, "finish", lambda self: unmasked.update([self.round]) or finish(self))
    found, _, s = run(p, 1, {(trip, 0): [cut[2][0], cut[0][0]]})
    assert unmasked[1] == (0 if trip == "A" else 4)  # too few vectors: the other buckets' sums stay masked
    assert len(found) == 1  # the run went on with another round
    assert "2 of 4 buckets" in s.aborted[0].why


def test_an_open_round_with_too_few_is_aborted() -> None:
    p = bucketed()
    cut = p.split(1, range(N))
    shares = {i: share(p, i) for i in range(N) if i not in cut[0][:2]}
    with pytest.raises(RoundAborted):
        simulated_round(p, 1, range(N), shares)


# ---- lies


def rows(i: int, d: int) -> np.ndarray:
    """People agree up to some variation."""
    return np.full((1, d), 0.4 * d**-0.5) + 0.05 * np.random.default_rng(i).standard_normal((1, d)) * d**-0.5


def test_a_lie_moves_one_sum_without_bound_and_buckets_by_no_more_than_honest_ones_differ() -> None:
    """The liar sits behind its mask; its vector is well formed. One sum: it decides alone. Buckets: it is outvoted."""
    whole, cut = plan(N, 20, steps=512.0, colluders=1), bucketed(d=20, steps=512)
    honest = sum(rows(i, 20)[0] for i in range(N))
    for size in (10**3, 10**5):
        lie = NoisedShare(np.full(20, -size, dtype=np.int64).astype(np.uint32), 1, b"")
        moved = []
        for p in (whole, cut):
            shares = {i: share(p, i, rows=rows(i, 20)) for i in range(N)} | {0: replace(lie, plan=p.digest)}
            if p is whole:
                moved.append(simulated_sum(p, shares).value)
            else:
                sums = simulated_round(p, 1, range(N), shares)
                assert isinstance(sums, BucketSums)
                moved.append(robust_sum(p, sums)[0])
        step = whole.codec.max_grad_norm / whole.codec.steps
        assert np.linalg.norm(moved[0] - honest) > 0.9 * size * step * 20**0.5  # as large as the liar likes
        assert np.linalg.norm(moved[1] - honest) < 0.2 * np.linalg.norm(honest)
        assert moved[1] @ honest > 0 > moved[0] @ honest


def test_more_liars_than_are_outvoted_are_bounded_by_the_cut() -> None:
    p = bucketed(count=2)  # nothing can be outvoted among two
    people = range(2 * SIZE)
    shares = {i: share(p, i, rows=rows(i, 6)) for i in people}
    cut = p.split(1, people)
    shares[cut[0][0]] = NoisedShare(np.full(6, 10**8, dtype=np.uint32), 1, p.digest)
    sums = simulated_round(p, 1, people, shares)
    assert isinstance(sums, BucketSums)
    lied = next(bucket for bucket in sums.buckets if cut[0][0] in bucket.total.survivors)
    step = p.codec.max_grad_norm / p.codec.steps
    most = SIZE * (p.buckets.largest_norm * p.codec.steps + 6**0.5) * step
    assert np.linalg.norm(lied.total.value) > 1000 * most
    others = next(bucket.total.value for bucket in sums.buckets if bucket is not lied)
    assert np.linalg.norm(robust_sum(p, sums)[0] - others) <= most * 1.001


# ---- noise


def of_noise(p: SecAggPlan, d: int) -> BucketSums:
    sums = simulated_round(p, 1, range(N), {i: share(p, i, rows=np.zeros((0, d))) for i in range(N)})
    assert isinstance(sums, BucketSums)
    return sums


def test_each_bucket_carries_the_whole_noise_and_the_result_what_is_said() -> None:
    """Chi-square at 1e-6 per bucket; the trimmed mean's variance within 4 % of the stated one, four standard errors."""
    d, z = 20_000, 2.0
    cohort = Cohort(SIZE, 3, 3, 1)
    p = make_plan(
        "run",
        cohort,
        dimension=d,
        max_grad_norm=1.0,
        unit=PrivacyUnit.USER,
        largest_norm=3.0,
        noise_multiplier=z,
        buckets=B,
    )
    assert p.event is not None
    assert p.event.noise_multiplier >= z  # one bucket's, which is the round's
    sums = of_noise(p, d)
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], d)
    for bucket in sums.buckets:
        squares = float(bucket.total.value @ bucket.total.value)
        assert low < squares / bucket.total.noise_std**2 < high
        assert not low < squares / (bucket.total.noise_std**2 / B) < high  # a third of the noise would be too little
        assert bucket.total.noise_std * (cohort.honest_shares / SIZE) ** 0.5 >= z
    value, deviation = robust_sum(p, sums)
    assert float(value @ value) / d == pytest.approx(deviation**2, rel=0.04)


def test_an_honest_bucket_is_not_cut_back() -> None:
    p = bucketed(sigma=200.0)
    sums = simulated_round(p, 1, range(N), {i: share(p, i) for i in range(N)})
    assert isinstance(sums, BucketSums)
    plain = trimmed_mean(np.stack([b.total.value / b.size for b in sums.buckets]), 1) * N
    np.testing.assert_array_equal(robust_sum(p, sums)[0], plain)
    assert all(isinstance(bucket, BucketSum) for bucket in sums.buckets)
