"""A node's private data: bounded by a fixed rule, weighted, laid out by unit; features cached in the node's folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from fedpref.client.work import CHUNK, FeatureStore, NodeData, prepare_node
from fedpref.data.preferences import Preferences
from privacy.units import PrivacyUnit
from reward.pairs import Conversation
from tests.tiny import fake_features, preferences

FEATURES = fake_features(4)


def clients_of(*tables: Preferences) -> dict[str, Preferences]:
    return {f"client-{i}": table for i, table in enumerate(tables)}


def node(clients: dict[str, Preferences], unit: PrivacyUnit = PrivacyUnit.USER, limit: int = 3) -> NodeData:
    return prepare_node(clients, FEATURES, unit, limit)


def unit_rows(data: NodeData, unit: int) -> set[tuple[float, ...]]:
    """A unit's records as a set of (chosen, rejected, weight)."""
    of = slice(int(data.start[unit]), int(data.start[unit + 1]))
    table = np.hstack([data.chosen[of].numpy(), data.rejected[of].numpy(), data.weight[of, None].numpy()])
    return {tuple(row) for row in table.tolist()}


def many(user: str, count: int) -> list[tuple[str, str, str]]:
    return [(user, f"{user} good {i}", f"{user} bad {i}") for i in range(count)]


def test_units_are_users_sorted_into_their_clients() -> None:
    data = node(clients_of(preferences([*many("b", 2), *many("a", 1)]), preferences(many("c", 5))))
    assert data.num_units == 3
    assert data.client.tolist() == [0, 0, 1]
    assert np.diff(data.start).tolist() == [1, 2, 3]  # users in the order of their names; c is bounded
    assert data.start[-1] == len(data.chosen) == len(data.weight)


def test_features_land_at_the_records_that_they_belong_to() -> None:
    table = preferences([("u", "a!!!", "b"), ("v", "b", "c!")])
    data = node(clients_of(table))
    texts = {t.completion: row for t, row in zip(table.texts, FEATURES(table.texts), strict=True)}
    assert np.array_equal(data.chosen.numpy(), np.stack([texts["a!!!"], texts["b"]]))
    assert np.array_equal(data.rejected.numpy(), np.stack([texts["b"], texts["c!"]]))


@pytest.mark.parametrize(("count", "used"), [(1, 1), (3, 3), (4, 3), (50, 3)])
def test_a_users_records_are_bounded_and_weigh_one_over_root_count(count: int, used: int) -> None:
    data = node(clients_of(preferences(many("u", count))))
    assert len(data.weight) == used
    assert np.allclose(data.weight.numpy(), used**-0.5)


def test_which_records_stay_depends_on_the_users_own_texts_alone() -> None:
    """Neither the order in the file, nor other people's records, nor the client's number choose among a user's pairs."""
    rows = many("u", 12)
    alone = unit_rows(node(clients_of(preferences(rows))), 0)
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(12)]
    assert unit_rows(node(clients_of(preferences(shuffled))), 0) == alone
    crowd = node(clients_of(preferences(many("w", 2)), preferences([*many("v", 9), *shuffled])))
    assert unit_rows(crowd, 1) == alone


def test_the_choice_does_not_look_at_which_answer_won() -> None:
    """Otherwise the vote itself would decide whether it is used."""
    rows = many("u", 12)
    flipped = [(user, rejected, chosen) for user, chosen, rejected in rows]
    pairs = {(row[:4], row[4:8]) for row in unit_rows(node(clients_of(preferences(rows))), 0)}
    assert pairs == {(row[4:8], row[:4]) for row in unit_rows(node(clients_of(preferences(flipped))), 0)}


def test_unit_example_keeps_every_record_as_its_own_unit() -> None:
    data = node(clients_of(preferences(many("u", 7)), preferences(many("v", 2))), PrivacyUnit.EXAMPLE)
    assert data.num_units == 9
    assert np.diff(data.start).tolist() == [1] * 9
    assert data.client.tolist() == [0] * 7 + [1] * 2
    assert (data.weight == 1).all()


@pytest.mark.parametrize("unit", [PrivacyUnit.USER, PrivacyUnit.EXAMPLE])
def test_a_client_without_records_keeps_its_number(unit: PrivacyUnit) -> None:
    empty = Preferences.concat([])
    data = node(clients_of(empty, preferences(many("u", 1)), empty), unit)
    assert data.client.tolist() == [1]
    nobody = prepare_node(clients_of(empty, empty), lambda texts: np.zeros((len(texts), 4), np.float32), unit, 3)
    assert nobody.num_units == 0
    assert len(nobody.batch(np.zeros(0, dtype=np.bool_)).row_unit) == 0


def test_a_batch_holds_exactly_the_selected_units_numbered_from_zero() -> None:
    data = node(clients_of(preferences([*many("a", 2), *many("b", 1), *many("c", 3)])))
    batch = data.batch(np.array([True, False, True]))
    assert batch.row_unit.tolist() == [0, 0, 1, 1, 1]
    assert np.array_equal(batch.chosen.numpy(), data.chosen.numpy()[[0, 1, 3, 4, 5]])
    assert np.array_equal(batch.rejected.numpy(), data.rejected.numpy()[[0, 1, 3, 4, 5]])
    assert np.array_equal(batch.weight.numpy(), data.weight.numpy()[[0, 1, 3, 4, 5]])
    assert len(data.batch(np.zeros(3, dtype=np.bool_)).chosen) == 0


def test_two_clients_that_share_texts_share_features_but_not_records() -> None:
    first, second = preferences([("u", "a", "b")]), preferences([("v", "b", "a")])
    asked: list[int] = []

    def features(texts: Sequence[Conversation]) -> npt.NDArray[np.float32]:
        asked.append(len(texts))
        return FEATURES(texts)

    data = prepare_node(clients_of(first, second), features, PrivacyUnit.USER, 3)
    assert asked == [2]
    assert np.array_equal(data.chosen[0].numpy(), data.rejected[1].numpy())


class CountingExtractor:
    """Fake features that count how many texts were computed."""

    shape = (4,)

    def __init__(self) -> None:
        self.seen: list[Conversation] = []

    def __call__(self, conversations: Sequence[Conversation], progress: object = None) -> npt.NDArray[np.float32]:
        self.seen += conversations
        return FEATURES(conversations)


def texts(count: int) -> list[Conversation]:
    return [Conversation((("user", f"prompt {i % 3}"),), f"text {i} {'!' * (i % 7)}") for i in range(count)]


def test_features_are_computed_once_per_distinct_text_and_come_back_in_order(tmp_path: Path) -> None:
    extractor = CountingExtractor()
    store = FeatureStore(extractor, "key", tmp_path / "f.safetensors")
    asked = [*texts(5), *texts(3), *texts(5)[::-1]]
    assert np.array_equal(store(asked), FEATURES(asked))
    assert len(extractor.seen) == 5
    assert np.array_equal(store(texts(6)), FEATURES(texts(6)))
    assert len(extractor.seen) == 6
    assert store([]).shape == (0, 4)


def test_a_kept_cache_serves_the_same_key_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    first = FeatureStore(CountingExtractor(), "key", path)(texts(5))
    again, other = CountingExtractor(), CountingExtractor()
    assert np.array_equal(FeatureStore(again, "key", path)(texts(5)), first)
    assert again.seen == []
    FeatureStore(other, "another model, layer or length", path)(texts(5))
    assert len(other.seen) == 5


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "other tensors"])
def test_a_damaged_cache_is_computed_anew(tmp_path: Path, damage: str) -> None:
    import safetensors.numpy

    path = tmp_path / "f.safetensors"
    FeatureStore(CountingExtractor(), "key", path)(texts(5))
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[:-9], "empty": b"", "foreign": b"x" * 500, "other tensors": b""}[damage])
    if damage == "other tensors":
        path.write_bytes(safetensors.numpy.save({"weights": np.zeros(3)}, metadata={"key": "key"}))
    extractor = CountingExtractor()
    assert np.array_equal(FeatureStore(extractor, "key", path)(texts(5)), FEATURES(texts(5)))
    assert len(extractor.seen) == 5


def test_an_interrupted_computation_keeps_whole_chunks(tmp_path: Path) -> None:
    path, count = tmp_path / "f.safetensors", 2 * CHUNK + 5

    class Dying(CountingExtractor):
        def __call__(self, conversations: Sequence[Conversation], progress: object = None) -> npt.NDArray[np.float32]:
            if len(self.seen) >= 2 * CHUNK:
                raise KeyboardInterrupt
            return super().__call__(conversations)

    with pytest.raises(KeyboardInterrupt):
        FeatureStore(Dying(), "key", path)(texts(count))
    extractor = CountingExtractor()
    assert np.array_equal(FeatureStore(extractor, "key", path)(texts(count)), FEATURES(texts(count)))
    assert len(extractor.seen) == 5


def test_the_cache_file_holds_numbers_and_digests_but_no_text(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    table = replace(preferences([("u", "Zebra-planted", "b")]))
    FeatureStore(CountingExtractor(), "key", path)(table.texts)
    assert b"Zebra" not in path.read_bytes()
