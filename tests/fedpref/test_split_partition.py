"""Users are split off and dealt to clients by hash: fixed beforehand, disjoint, complete."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedpref.config import EvaluationConfig, PartitionConfig
from fedpref.data import partition as partitioning
from fedpref.data.preferences import Preferences
from fedpref.data.split import hash_fraction, is_evaluation_user, split_preferences
from fedpref.errors import NoDataError, UnsupportedPlanError
from tests.tiny import preferences

SETTINGS = EvaluationConfig()


def population(num_users: int = 400, votes: int = 2) -> Preferences:
    rows = [(f"user-{u}", f"a{u}.{v}", f"b{u}.{v}") for u in range(num_users) for v in range(votes)]
    data = preferences(rows)
    topics = np.array([("cats", "dogs")[i % 2] for i in range(len(rows))])
    clients = np.array([f"org-{int(u.split('-')[1]) % 7}" for u in data.user])
    return replace(data, topic=topics, client=clients)


def rows_of(data: Preferences) -> list[tuple[str, str, str]]:
    text = data.texts
    return sorted(
        (str(u), text[c].completion, text[r].completion)
        for u, c, r in zip(data.user, data.chosen, data.rejected, strict=True)
    )


def test_the_hash_is_the_one_that_was_fixed() -> None:
    """Frozen values: another hash would move people between evaluation and training from one version to the next."""
    assert hash_fraction("evaluation-users-v1:0") == 0.21576916401736135
    held = is_evaluation_user(np.array([str(i) for i in range(40)]), SETTINGS)
    assert np.flatnonzero(held).tolist() == [1, 8, 12, 16, 18, 24, 32]


def test_about_the_fraction_of_users_is_held_out_and_nobody_is_on_both_sides() -> None:
    data = population(4000, 1)
    split = split_preferences(data, SETTINGS)
    held = set(split.seen.user) | set(split.unseen.user)
    train = set(split.train.user)
    assert not held & train
    assert held | train == set(data.user)
    assert abs(len(held) / 4000 - SETTINGS.user_fraction) < 4 * (0.15 * 0.85 / 4000) ** 0.5  # 1 in 16,000 salts
    assert split.num_evaluation_users == len(held)


def test_who_is_held_out_depends_on_salt_and_name_alone() -> None:
    data = population()
    mine = is_evaluation_user(data.user, SETTINGS)
    order = np.random.default_rng(0).permutation(len(data))
    assert (is_evaluation_user(data.user[order], SETTINGS) == mine[order]).all()
    few = data.user[:20]
    assert (is_evaluation_user(few, SETTINGS) == mine[:20]).all()
    assert (is_evaluation_user(data.user, EvaluationConfig(salt="other")) != mine).any()


def test_a_smaller_fraction_holds_out_a_subset() -> None:
    users = population().user
    small, large = (is_evaluation_user(users, EvaluationConfig(user_fraction=f)) for f in (0.05, 0.3))
    assert (small <= large).all()
    assert not is_evaluation_user(users, EvaluationConfig(user_fraction=0.0)).any()


def test_users_are_split_first_then_topics() -> None:
    data = population()
    split = split_preferences(data, EvaluationConfig(unseen_topics=("dogs",)))
    assert set(split.train.topic) == {"cats"}
    assert set(split.seen.topic) == {"cats"}
    assert set(split.unseen.topic) == {"dogs"}
    assert not set(split.train.user) & (set(split.seen.user) | set(split.unseen.user))
    # Training users' votes on unseen topics appear nowhere: no figure is computed from them (rule 18).
    assert len(split.train) + len(split.seen) + len(split.unseen) < len(data)
    evaluation = is_evaluation_user(data.user, SETTINGS)
    assert rows_of(split.unseen) == rows_of(data.select(evaluation & (data.topic == "dogs")))


def test_an_unseen_topic_that_does_not_exist_is_coded_without_those_that_do() -> None:
    with pytest.raises(NoDataError, match=r"'birds'.*2 other values") as caught:
        split_preferences(population(), EvaluationConfig(unseen_topics=("dogs", "birds")))
    assert "cats" not in str(caught.value), "topics of private data are private"
    assert caught.value.code == "FP205"


def partition(data: Preferences, config: PartitionConfig) -> dict[str, Preferences]:
    """With exactly the members that have records."""
    users, clients = np.unique(data.user).tolist(), np.unique(data.client).tolist()
    return partitioning.partition(data, config, users, clients)


def test_a_member_without_usable_records_keeps_its_client() -> None:
    data = population(20)
    for by, extra in (("natural", "nobody"), ("column", "nowhere")):
        users, clients = [*np.unique(data.user).tolist(), "nobody"], [*np.unique(data.client).tolist(), "nowhere"]
        parts = partitioning.partition(data, PartitionConfig(by=by), users, clients)  # type: ignore[arg-type]
        assert len(parts[extra]) == 0


@pytest.mark.parametrize("by", ["hash", "natural", "column"])
def test_a_partition_is_disjoint_over_users_and_complete(by: str) -> None:
    data = population()
    clients = partition(data, PartitionConfig(by=by, num_clients=10))  # type: ignore[arg-type]
    users = [set(part.user) for part in clients.values()]
    assert sum(len(u) for u in users) == len(set().union(*users)) == 400
    assert sorted(row for part in clients.values() for row in rows_of(part)) == rows_of(data)
    assert len(clients) == {"hash": 10, "natural": 400, "column": 7}[by]


def test_hashing_keeps_clients_that_no_user_falls_into() -> None:
    clients = partition(population(2), PartitionConfig(num_clients=16))
    assert len(clients) == 16
    assert list(clients) == sorted(clients)
    assert sum(len(part) == 0 for part in clients.values()) >= 14


def test_a_users_client_does_not_depend_on_the_others() -> None:
    data = population()
    settings = PartitionConfig(num_clients=10)
    where = {u: name for name, part in partition(data, settings).items() for u in set(part.user)}
    fewer = data.select(data.user != "user-0")
    assert {u: name for name, part in partition(fewer, settings).items() for u in set(part.user)} == {
        u: name for u, name in where.items() if u != "user-0"
    }


def test_hashing_deals_users_evenly_and_apart_from_the_evaluation_hash() -> None:
    data = population(4000, 1)
    train = split_preferences(data, SETTINGS).train
    sizes = [len(part) for part in partition(train, PartitionConfig(num_clients=10)).values()]
    expected = len(train) / 10
    assert max(abs(size - expected) for size in sizes) < 4 * expected**0.5


def test_a_person_in_two_clients_is_refused_without_being_named() -> None:
    data = preferences([("planted-person", "a", "b"), ("planted-person", "c", "d"), ("v", "a", "c")])
    data = replace(data, client=np.array(["x", "y", "y"]))
    with pytest.raises(UnsupportedPlanError, match="1 of 2 users have records in several clients") as caught:
        partition(data, PartitionConfig(by="column"))
    assert caught.value.code == "FP103"
    assert "planted-person" not in str(caught.value)
    assert len(partition(data, PartitionConfig(by="natural"))) == 2
