"""A node's contribution against a slow oracle; one answer per round; nothing that tells the realised sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fedpref.channel.base import RoundRequest
from fedpref.client.head import HeadWork
from fedpref.client.node import Node
from fedpref.client.work import prepare_node
from fedpref.data.preferences import Preferences
from fedpref.errors import RunFolderError
from fedpref.journal import SealedJournal
from privacy.clipping import grid_step
from privacy.errors import BudgetError, CodedError
from privacy.ledger import Ledger, LedgerHeader, read_ledger
from privacy.mechanism import GaussianMechanism
from privacy.rng import RandomSource, SeededNonPrivateRandom, SystemRandom
from privacy.sampling import PoissonSampling
from privacy.sealed import Entrusted, LocallyPrivate, sealed_from_bytes, size_of
from privacy.units import Adversary, PrivacyUnit, Trust
from reward.pairs import Conversation
from tests.tiny import fake_features, head_manifest, preferences, votes

DIMENSION, CLIP, LIMIT = 5, 0.4, 3
FEATURES = fake_features(DIMENSION)
MANIFEST = head_manifest(DIMENSION)
Features = npt.NDArray[np.float32]


def three_clients() -> dict[str, Preferences]:
    rows = [(r["user_id"], r["chosen"], r["rejected"]) for r in votes(30, 5) if r["chosen"] != r["rejected"]]
    of = {n: [r for r in rows if int(r[0][1:]) % 3 == n] for n in range(3)}
    return {f"client-{n}": preferences(part) for n, part in of.items()}


class Bench:
    """A node over three tiny clients, and what it needs."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.clients: dict[str, Preferences] = changes.pop("clients", None) or three_clients()
        self.features = changes.pop("features", FEATURES)
        self.rate = changes.pop("rate", 0.5)
        trust = changes.pop("trust", Trust.CENTRAL)
        self.rng: RandomSource = changes.pop("rng", SeededNonPrivateRandom(7))
        target: float | None = changes.pop("target_epsilon", None)
        self.mechanism = GaussianMechanism(trust, PoissonSampling(self.rate), CLIP, 1.5)
        self.path = folder / "node.jsonl"
        header = LedgerHeader("node:t", "t", PrivacyUnit.USER, trust, target, 1e-5, self.rng.private, {})
        self.ledger = Ledger(self.path, header)
        self.journal = SealedJournal(folder / "sealed.bin", "plan")
        self.data = prepare_node(self.clients, self.features, PrivacyUnit.USER, LIMIT)
        self.node = Node(
            name="t",
            num_clients=len(self.clients),
            work=HeadWork(self.data, len(self.clients), MANIFEST.tensors),
            manifest=MANIFEST,
            mechanism=self.mechanism,
            ledger=self.ledger,
            journal=self.journal,
            rng=self.rng,
        )

    def ask(self, number: int, parameters: npt.NDArray[np.float64] | None = None) -> list[bytes]:
        at = parameters if parameters is not None else np.zeros(DIMENSION)
        return self.node.contribute(RoundRequest(number, MANIFEST.digest, at))

    def values(self, number: int, messages: Sequence[bytes]) -> npt.NDArray[np.float64]:
        kind = Entrusted if self.mechanism.trust is Trust.CENTRAL else LocallyPrivate
        return np.stack([sealed_from_bytes(m, kind, i, number, DIMENSION).value for i, m in enumerate(messages)])


def slow_oracle(bench: Bench, number: int, parameters: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Loop over people: their own coin, autograd on their own weighted loss, clip, add to their client."""
    unit = 0
    coins = bench.rng.stream("coins", round=number, node="t").bernoulli(bench.rate, bench.data.num_units)
    sums = np.zeros((len(bench.clients), DIMENSION))
    for client, records in enumerate(bench.clients.values()):
        for user in sorted(set(records.user.tolist())):
            drawn, unit = coins[unit], unit + 1
            if not drawn:
                continue
            weight = torch.tensor(parameters, dtype=torch.float64, requires_grad=True)
            rows = range(int(bench.data.start[unit - 1]), int(bench.data.start[unit]))
            own = records.select(records.user == user)
            assert len(rows) == min(len(own), LIMIT)
            loss = torch.zeros((), dtype=torch.float64)
            for row in rows:
                margin = (bench.data.chosen[row].double() - bench.data.rejected[row].double()) @ weight
                loss = loss + torch.log1p(torch.exp(-margin)) / len(rows) ** 0.5
            loss.backward()
            gradient = weight.grad.numpy()  # type: ignore[union-attr]
            sums[client] += gradient * min(1.0, CLIP / max(float(np.linalg.norm(gradient)), 1e-12))
    return sums


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_rounds_contribution_is_that_of_a_slow_loop_over_people(tmp_path: Path, number: int) -> None:
    bench = Bench(tmp_path)
    parameters = np.random.default_rng(number).normal(size=DIMENSION)
    sent = bench.values(number, bench.ask(number, parameters))
    expected = slow_oracle(bench, number, parameters)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(sent, expected, atol=2e-6 + 40 * grid_step(CLIP, DIMENSION))  # fp32 and the grid


def test_every_person_moves_a_message_by_at_most_the_clipping_norm(tmp_path: Path) -> None:
    clients = three_clients()
    whole = Bench(tmp_path, rate=1.0, clients=clients)
    sent = whole.values(1, whole.ask(1))
    for name in sorted(set(clients["client-0"].user.tolist())):
        folder = tmp_path / name
        folder.mkdir()
        without = {**clients, "client-0": clients["client-0"].select(clients["client-0"].user != name)}
        other = Bench(folder, rate=1.0, clients=without)
        moved = sent - other.values(1, other.ask(1))
        assert 0 < np.linalg.norm(moved[0]) <= CLIP
        assert np.abs(moved[1:]).max() == 0.0


def test_a_person_with_long_gradients_moves_a_message_by_the_clipping_norm_and_no_more(tmp_path: Path) -> None:
    """Every record alone would reach the bound; a person's records together may not pass it."""
    clients = {"one": three_clients()["client-0"]}

    def long(texts: Sequence[Conversation]) -> Features:
        return 50 * FEATURES(texts)

    whole = Bench(tmp_path, rate=1.0, clients=clients, features=long)
    assert int(np.diff(whole.data.start).max()) == LIMIT
    sent, norms = whole.values(1, whole.ask(1)), []
    for name in sorted(set(clients["one"].user.tolist())):
        folder = tmp_path / name
        folder.mkdir()
        without = {"one": clients["one"].select(clients["one"].user != name)}
        other = Bench(folder, rate=1.0, clients=without, features=long)
        norms.append(float(np.linalg.norm(sent - other.values(1, other.ask(1)))))
    assert max(norms) <= CLIP
    assert sorted(norms)[len(norms) // 2] > 0.99 * CLIP


def test_asked_twice_a_node_sends_identical_bytes_and_books_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, rng=SystemRandom(), trust=Trust.LOCAL)
    first = bench.ask(1)
    assert bench.ask(1) == first
    assert bench.ask(1, np.ones(DIMENSION)) == first  # also if the server pretends that the parameters differ
    bench.ledger.close()
    assert len(read_ledger(bench.path).reservations) == 1


def test_without_the_journal_the_answers_would_differ(tmp_path: Path) -> None:
    """What the test above can fail by: fresh coins and fresh noise."""
    bench = Bench(tmp_path, rng=SystemRandom(), trust=Trust.LOCAL)
    first = bench.ask(1)
    bench.journal.clear()
    assert bench.ask(1) != first


@pytest.mark.parametrize("trust", [Trust.CENTRAL, Trust.LOCAL])
@pytest.mark.parametrize("rate", [1e-9, 0.5, 1.0])
def test_messages_have_one_size_whatever_the_sample(tmp_path: Path, trust: Trust, rate: float) -> None:
    clients = {**three_clients(), "client-3": Preferences.concat([])}
    bench = Bench(tmp_path, trust=trust, rate=rate, clients=clients)
    for number in (1, 2):
        messages = bench.ask(number)
        assert [len(m) for m in messages] == [size_of(DIMENSION)] * 4


def test_an_empty_sample_is_a_normal_round(tmp_path: Path) -> None:
    central = Bench(tmp_path, rate=1e-9)
    assert np.abs(central.values(1, central.ask(1))).max() == 0.0
    (tmp_path / "local").mkdir()
    local = Bench(tmp_path / "local", rate=1e-9, trust=Trust.LOCAL)
    noise = local.values(1, local.ask(1))
    assert np.abs(noise).min() > 0.0  # pure noise, and not the same at two clients
    assert len(np.unique(noise)) == noise.size


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 3e38])
def test_a_person_with_broken_features_contributes_zero_and_the_others_do_not_notice(
    tmp_path: Path, poison: float
) -> None:
    clients = {"one": preferences([("ann", "a!", "b"), ("bob", "bad", "b"), ("eve", "c", "a!")])}

    def poisoned(texts: Sequence[Conversation]) -> Features:
        rows = FEATURES(texts)
        rows[[t.completion == "bad" for t in texts]] = poison
        return rows

    bench = Bench(tmp_path, rate=1.0, clients=clients, features=poisoned)
    parameters = np.linspace(-1, 1, DIMENSION)
    sent = bench.values(1, bench.ask(1, parameters))
    (tmp_path / "without").mkdir()
    without = {"one": clients["one"].select(clients["one"].user != "bob")}
    other = Bench(tmp_path / "without", rate=1.0, clients=without)
    if poison == 3e38:  # finite, hence a contribution, but no larger than anybody's
        assert np.linalg.norm(sent - other.values(1, other.ask(1, parameters))) <= CLIP
    else:
        assert np.array_equal(sent, other.values(1, other.ask(1, parameters)))


def test_a_request_for_another_trainable_part_is_refused_before_anything_is_booked(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    fine = np.zeros(DIMENSION)
    for request in (
        RoundRequest(1, "0" * 64, fine),
        RoundRequest(1, MANIFEST.digest, np.zeros(DIMENSION + 1)),
        RoundRequest(0, MANIFEST.digest, fine),
        RoundRequest(-3, MANIFEST.digest, fine),
    ):
        with pytest.raises(RunFolderError, match="another trainable part") as caught:
            bench.node.contribute(request)
        assert caught.value.code == "FP501"
    bench.ledger.close()
    assert read_ledger(bench.path).num_entries == 1


def test_going_back_to_an_earlier_round_is_refused_and_the_books_stay_readable(tmp_path: Path) -> None:
    """An active server that asks for round 1 after round 2 may not make the node write an unreadable ledger."""
    bench = Bench(tmp_path)
    bench.ask(1)
    bench.ask(2)
    with pytest.raises(CodedError):
        bench.ask(1)
    bench.ledger.close()
    assert len(read_ledger(bench.path).reservations) == 2


@pytest.mark.parametrize("size", [1e30, 1e300])
def test_parameters_that_overflow_cannot_blow_up_a_contribution(tmp_path: Path, size: float) -> None:
    bench = Bench(tmp_path, rate=1.0)
    assert np.isfinite(bench.values(1, bench.ask(1, np.full(DIMENSION, size)))).all()


def test_trust_decides_kind_of_message_and_events(tmp_path: Path) -> None:
    for trust, kind, sample_rate in ((Trust.CENTRAL, Entrusted, 1.0), (Trust.LOCAL, LocallyPrivate, 0.5)):
        folder = tmp_path / trust.value
        folder.mkdir()
        bench = Bench(folder, trust=trust)
        for i, message in enumerate(bench.ask(1)):
            assert isinstance(sealed_from_bytes(message, kind, i, 1, DIMENSION), kind)
        bench.ledger.close()
        (reader,) = read_ledger(bench.path).nominal(Adversary.READER)
        assert reader.sample_rate == sample_rate  # type: ignore[union-attr]


def test_a_node_with_its_own_budget_refuses_the_round_that_would_overspend(tmp_path: Path) -> None:
    bench = Bench(tmp_path, trust=Trust.LOCAL, target_epsilon=2.5)
    bench.ask(1)
    with pytest.raises(BudgetError) as caught:
        bench.ask(2)
    assert caught.value.code == "FP410"
    bench.ledger.close()
    assert len(read_ledger(bench.path).reservations) == 1  # nothing was booked for the round that did not run
    assert bench.journal.load(2, bench.ledger.holds) is None
