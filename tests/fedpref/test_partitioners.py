"""iid, Dirichlet and shards: whole users, a fixed deal, and the distribution that the name promises."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fedpref.config import PartitionConfig
from fedpref.data.loading import load_federated
from fedpref.data.partition import assign, dirichlet_shares
from fedpref.errors import UnsupportedPlanError
from tests.tiny import make_recipe, votes, write_dataset

USERS = [f"user-{i}" for i in range(300)]
VALUES = {"topic": {user: f"t{i % 3}" for i, user in enumerate(USERS)}}
NEW = ("iid", "dirichlet", "shards")


def settings(by: str, **more: Any) -> PartitionConfig:
    return PartitionConfig(by=by, num_clients=more.pop("num_clients", 6), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("by", NEW)
def test_the_deal_is_fixed_by_the_seed_and_not_by_the_order(by: str) -> None:
    once = assign(settings(by), USERS, VALUES)
    assert once == assign(settings(by), USERS[::-1], VALUES)
    assert once != assign(settings(by, seed=1), USERS, VALUES)
    assert set(once) == set(USERS)
    assert set(once.values()) <= set(range(6))


def test_frozen_values() -> None:
    """Another deal from one version to the next would change what a resumed run trains on."""
    few = USERS[:6]
    assert [
        list(assign(settings(by, num_clients=3, **more), few, VALUES).values()) for by, more in FROZEN
    ] == FROZEN_DEAL


FROZEN: list[tuple[str, dict[str, Any]]] = [("iid", {}), ("dirichlet", {}), ("shards", {"num_shards_per_partition": 1})]
FROZEN_DEAL = [[0, 1, 2, 0, 1, 2], [1, 0, 2, 1, 0, 2], [0, 0, 2, 2, 1, 1]]


def test_iid_clients_differ_by_one_at_most() -> None:
    for k in (1, 7, 299, 300, 400):
        sizes = Counter(assign(settings("iid", num_clients=k), USERS, {}).values())
        counts = [sizes[i] for i in range(k)]
        assert max(counts) - min(counts) <= 1


def test_shards_are_equal_and_clients_see_few_values() -> None:
    deal = assign(settings("shards", num_clients=6, num_shards_per_partition=1), USERS, VALUES)
    sizes = Counter(deal.values())
    assert set(sizes.values()) == {50}
    for client in range(6):
        assert len({VALUES["topic"][user] for user in USERS if deal[user] == client}) == 1
    with pytest.raises(UnsupportedPlanError, match="600 shards cannot be filled by 300"):
        assign(settings("shards", num_clients=300), USERS, VALUES)


@pytest.mark.statistical
@pytest.mark.parametrize("alpha", [0.05, 0.5, 5.0])
def test_shares_are_dirichlet(alpha: float) -> None:
    """Mean 1/k and variance (1/k)(1-1/k)/(k alpha + 1), against 4 standard errors from numpy's own draws.

    False alarms: about 1 in 15,000 per bound for fixed hashes; both a wider and a narrower law are rejected.
    """
    k, n = 5, 2000
    shares = np.array([dirichlet_shares(f"test:{i}", k, alpha) for i in range(n)])
    oracle = np.random.default_rng(0).dirichlet([alpha] * k, size=20 * n)
    assert np.allclose(shares.sum(axis=1), 1)
    for statistic in (lambda x: x[:, 0], lambda x: x[:, 1] ** 2, lambda x: x.max(axis=1), lambda x: np.sqrt(x[:, 2])):
        mine, theirs = statistic(shares), statistic(oracle)
        assert abs(mine.mean() - theirs.mean()) < 4.1 * theirs.std() / n**0.5


def test_an_alpha_so_small_that_every_gamma_draw_underflows_still_gives_shares() -> None:
    shares = np.array([dirichlet_shares(f"tiny:{i}", 4, 1e-4) for i in range(200)])
    assert np.isfinite(shares).all()
    assert (shares.max(axis=1) > 0.99).mean() > 0.9
    assert len(set(shares.argmax(axis=1).tolist())) == 4


def test_small_alpha_separates_values_and_large_alpha_mixes_them() -> None:
    def spread(alpha: float) -> float:
        deal = assign(settings("dirichlet", alpha=alpha), USERS, VALUES)
        table = np.zeros((3, 6))
        for i, user in enumerate(USERS):
            table[i % 3, deal[user]] += 1
        return float((table / table.sum(axis=1, keepdims=True)).max(axis=1).mean())

    assert spread(0.05) > 0.6
    assert spread(1000.0) < 0.35


def test_one_persons_client_under_dirichlet_does_not_depend_on_the_others() -> None:
    whole, few = (assign(settings("dirichlet"), users, VALUES) for users in (USERS, USERS[:40]))
    assert all(few[user] == whole[user] for user in few)


def test_without_a_column_to_go_by_the_way_out_is_named() -> None:
    with pytest.raises(UnsupportedPlanError, match="choose by: iid"):
        assign(settings("dirichlet"), USERS, {"topic": dict.fromkeys(USERS, "")})


@pytest.mark.parametrize(
    "wrong",
    [
        {"by": "iid", "num_clients": None},
        {"by": "hash", "alpha": 0.1},
        {"by": "iid", "num_shards_per_partition": 3},
        {"by": "hash", "partition_by": "client"},
        {"by": "natural", "seed": 1},
        {"by": "dirichlet", "alpha": 0.0},
    ],
)
def test_keys_that_would_say_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PartitionConfig(**wrong)


@pytest.mark.parametrize("by", NEW)
def test_a_federation_is_dealt_whole_and_zeroing_somebody_out_moves_nobody(tmp_path: Path, by: str) -> None:
    rows = votes()
    member = next(row["user_id"] for row in rows if row["topic"] != "birds")
    silent = [{**row, "rejected": row["chosen"]} if row["user_id"] == member else row for row in rows]
    seen = []
    for name, content in (("all", rows), ("without", silent)):
        (tmp_path / name).mkdir()
        source = write_dataset(tmp_path / name, content)
        recipe = make_recipe(tmp_path, datasets=[str(source)], federation__partition={"by": by, "num_clients": 4})
        data = load_federated(recipe, lambda _: None)
        users = [set(part.user) for part in data.clients.values()]
        assert sum(map(len, users)) == len(set().union(*users))
        assert sum(len(part) for part in data.clients.values()) == len(data.split.train)
        seen.append({user: client for client, part in data.clients.items() for user in part.user if user != member})
    assert seen[0] == seen[1]
