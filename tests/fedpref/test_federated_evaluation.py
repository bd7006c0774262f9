"""Federated evaluation's core: one person moves a client's sum within the bound; the interval covers noise and people."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from fedpref.client.evaluation import evaluation_rows
from fedpref.federated_evaluation import estimates, evaluation_bound
from privacy.clipping import clip_and_sum

GROUPS = ("seen topics", "unseen topics")
Votes = list[tuple[str, int, float]]  # user, group, correct


def sums(votes: Votes, clients: int = 2) -> npt.NDArray[np.float64]:
    correct = [np.array([c for _, g, c in votes if g == group], dtype=np.float64) for group in (0, 1)]
    users = [np.array([u for u, g, _ in votes if g == group], dtype=np.str_) for group in (0, 1)]
    client_of = {u: int(u[1:]) % clients for u, _, _ in votes}
    rows = evaluation_rows(correct, users, client_of)
    return np.stack([s.value for s in clip_and_sum(rows.value, rows.client, clients, evaluation_bound(2))])


def random_votes(seed: int) -> Votes:
    rng = np.random.default_rng(seed)
    return [(f"u{rng.integers(12)}", int(rng.integers(2)), float(rng.choice([0, 0.5, 1]))) for _ in range(60)]


def test_the_sums_are_those_of_a_slow_loop_over_people() -> None:
    votes = random_votes(0)
    expected = np.zeros((2, 4))
    for user in {u for u, _, _ in votes}:
        for group in (0, 1):
            own = [2 * c - 1 for u, g, c in votes if (u, g) == (user, group)]
            if own:
                expected[int(user[1:]) % 2, [group, 2 + group]] += 1, sum(own) / len(own)
    np.testing.assert_allclose(sums(votes), expected, atol=1e-3)  # cut to the grid, a step per person


@pytest.mark.parametrize("poison", [None, np.nan, np.inf, -1e300, 7.0])
def test_one_person_moves_one_clients_sum_by_at_most_the_bound(poison: float | None) -> None:
    votes = random_votes(1)
    votes += [("u2", g, 1.0 if poison is None else poison) for g in (0, 1) for _ in range(50)]
    whole = sums(votes)
    for user in sorted({u for u, _, _ in votes}):
        moved = whole - sums([v for v in votes if v[0] != user])
        own = int(user[1:]) % 2
        assert 0 < np.linalg.norm(moved[own]) <= evaluation_bound(2)
        assert np.abs(moved[1 - own]).max() == 0.0


def test_somebody_right_in_every_group_reaches_the_bound() -> None:
    """What the bound can be too small for: presence and margin at their largest in all groups."""
    moved = sums([("u0", 0, 1.0), ("u0", 1, 1.0)], clients=1)
    assert 0.999 * evaluation_bound(2) < np.linalg.norm(moved) <= evaluation_bound(2)


def test_a_client_and_a_group_without_anybody_send_zeros_of_the_same_size() -> None:
    assert sums([("u0", 0, 1.0)]).shape == sums([]).shape == (2, 4)
    assert np.abs(sums([])).max() == 0.0
    assert np.abs(sums([("u0", 0, 1.0)])[:, [1, 3]]).max() == 0.0


@pytest.mark.parametrize("accuracy", [0.5, 0.75, 0.95])
def test_the_interval_covers_as_often_as_it_says_and_noise_widens_it(accuracy: float) -> None:
    """2,000 draws; a coverage of 95 % falls below 93 % with probability under 1e-4."""
    rng, people, noise = np.random.default_rng(3), 300, 20.0
    right = rng.binomial(people, accuracy, size=2000)
    released = np.stack([np.full(2000, people), 2 * right - people], axis=1) + rng.normal(0, noise, (2000, 2))
    rows = [estimates(row, noise, ("g",))["g"] for row in released]
    covered = np.mean([r["interval"][0] <= accuracy <= r["interval"][1] for r in rows])
    assert 0.93 < covered < 0.995
    quiet = estimates(np.array([300.0, 150.0]), 0.0, ("g",))["g"]["interval"]
    loud = estimates(np.array([300.0, 150.0]), noise, ("g",))["g"]["interval"]
    assert loud[1] - loud[0] > 1.05 * (quiet[1] - quiet[0])


@pytest.mark.parametrize("people", [-50.0, 0.0, 39.0, np.nan, np.inf])
def test_no_accuracy_where_people_cannot_be_told_from_noise(people: float) -> None:
    row = estimates(np.array([people, 10.0]), 10.0, ("g",))["g"]
    assert row["too_few"]
    assert "accuracy_per_person" not in row
