"""Local steps from a recipe: DP-FedAvg for unit `client`, local DP-SGD under trust `local`; against slow loops."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fedpref.channel.base import RoundRequest
from fedpref.client.head import HeadWork
from fedpref.client.local_training import LocalTraining
from fedpref.client.node import Node
from fedpref.client.records import prepare_records
from fedpref.client.work import NodeData, prepare_node
from fedpref.data.preferences import Preferences
from fedpref.errors import RecipeError
from fedpref.journal import SealedJournal
from fedpref.plan import make_plan
from privacy.clipping import grid_step
from privacy.events import RepeatedEvent, TrustedEvent
from privacy.ledger import Ledger, LedgerHeader, read_ledger
from privacy.local_sgd import LocalDpSgd
from privacy.mechanism import GaussianMechanism
from privacy.report import build_report, verify
from privacy.rng import SeededNonPrivateRandom
from privacy.sampling import PoissonSampling
from privacy.sealed import Entrusted, LocallyPrivate, sealed_from_bytes
from privacy.units import Adversary, PrivacyUnit, Trust
from reward.head import RewardHead, bradley_terry_objective, set_weight
from reward.layout import HeadLayout
from tests.fedpref.test_node import three_clients
from tests.privacy.oracles import discrete
from tests.tiny import fake_features, head_manifest, make_recipe, preferences, train

D, CLIP, STEPS, RATE = 5, 0.05, 4, 0.6
MANIFEST = head_manifest(D)
START = np.random.default_rng(3).normal(size=D)
Vector = npt.NDArray[np.float64]


def ask(
    folder: Path, clients: dict[str, Preferences], mechanism: GaussianMechanism, unit: PrivacyUnit
) -> tuple[list[bytes], NodeData]:
    folder.mkdir()
    data = prepare_node(clients, fake_features(D), unit, 3)
    header = LedgerHeader("node:t", "t", unit, mechanism.trust, None, 1e-5, False, {})
    ledger = Ledger(folder / "node.jsonl", header)
    local = LocalTraining(STEPS, RATE) if unit is PrivacyUnit.CLIENT else None
    node = Node(
        name="t",
        num_clients=len(clients),
        work=HeadWork(data, len(clients), MANIFEST.tensors, local=local),
        manifest=MANIFEST,
        mechanism=mechanism,
        ledger=ledger,
        journal=SealedJournal(folder / "sealed.bin", "plan"),
        rng=SeededNonPrivateRandom(7),
    )
    replies = node.contribute(RoundRequest(1, MANIFEST.digest, START))
    ledger.close()
    return [reply for reply in replies if isinstance(reply, bytes)], data


def gradient(data: NodeData, rows: range, weight: Vector, *, mean: bool) -> Vector:
    """Of the weighted Bradley-Terry loss of some records, by the formula, in double precision."""
    total = np.zeros(D)
    for row in rows:
        apart = (data.chosen[row] - data.rejected[row]).double().numpy()
        total -= float(data.weight[row]) * apart / (1 + np.exp(apart @ weight))
    return total / max(len(rows), 1) if mean else total


def clipped(vector: Vector) -> Vector:
    return vector * min(1.0, CLIP / max(float(np.linalg.norm(vector)), 1e-12))


def central(rate: float = 1.0) -> GaussianMechanism:
    return GaussianMechanism(Trust.CENTRAL, PoissonSampling(rate), CLIP, 1.5)


def sums(clients: dict[str, Preferences], folder: Path) -> Vector:
    messages, _ = ask(folder, clients, central(), PrivacyUnit.CLIENT)
    return np.stack([sealed_from_bytes(m, Entrusted, i, 1, D).value for i, m in enumerate(messages)])


def test_a_client_sends_its_whole_update_clipped_once(tmp_path: Path) -> None:
    clients = three_clients()
    messages, data = ask(tmp_path / "a", clients, central(), PrivacyUnit.CLIENT)
    assert data.num_units == 3
    for client, message in enumerate(messages):
        rows = range(int(data.start[client]), int(data.start[client + 1]))
        weight = START.copy()
        for _ in range(STEPS):
            weight -= RATE * gradient(data, rows, weight, mean=True)
        assert np.linalg.norm(START - weight) > CLIP  # the bound is at work
        sent = sealed_from_bytes(message, Entrusted, client, 1, D).value
        np.testing.assert_allclose(sent, clipped(START - weight), atol=2e-6 + grid_step(CLIP, D) * 2)


def test_zeroing_out_a_client_moves_its_own_message_alone_and_by_at_most_the_bound(tmp_path: Path) -> None:
    clients = three_clients()
    whole = sums(clients, tmp_path / "whole")
    without = sums({**clients, "client-1": preferences([])}, tmp_path / "without")
    assert 0.9 * CLIP < np.linalg.norm(whole[1] - without[1]) <= CLIP
    assert not without[1].any()
    assert (whole[[0, 2]] == without[[0, 2]]).all()


def test_a_client_whose_steps_diverge_contributes_nothing(tmp_path: Path) -> None:
    head_rows = LocalTraining(3, 1e30)
    head = RewardHead(D)
    set_weight(head, START)
    data = prepare_node(three_clients(), fake_features(D), PrivacyUnit.CLIENT, 3)
    data.chosen[int(data.start[1])] = float("inf")
    rows = head_rows.updates(head, bradley_terry_objective, data.batch(np.ones(3, dtype=np.bool_)), 3)
    assert not np.isfinite(rows[1]).all()
    assert np.isfinite(rows[[0, 2]]).all()
    assert torch.equal(head.score.weight.detach().reshape(-1), torch.from_numpy(START).float())


def test_a_coin_of_tails_sends_zeros_of_the_same_size(tmp_path: Path) -> None:
    messages, _ = ask(tmp_path / "a", three_clients(), central(rate=1e-9), PrivacyUnit.CLIENT)
    assert len({len(message) for message in messages}) == 1
    assert not any(sealed_from_bytes(m, Entrusted, i, 1, D).value.any() for i, m in enumerate(messages))


LOCAL = {"max_steps": STEPS, "learning_rate": RATE}
NOISE: dict[str, Any] = {"privacy__noise_multiplier": 8.0}  # cheap for the accountants
FED_AVG: dict[str, Any] = {"privacy__unit": "client", "reward__local": LOCAL, "federation__num_units": 3, **NOISE}
DP_SGD: dict[str, Any] = {"privacy__trust": "local", "reward__local": LOCAL, **NOISE}


def test_a_run_of_unit_client_books_what_the_plan_said_and_its_report_speaks_of_clients(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, **FED_AVG)
    plan, weight = make_plan(recipe), train(recipe)
    assert np.isfinite(weight).all()
    assert weight.any()
    run = Path(recipe.output_dir)
    federation, node = read_ledger(run / "ledger.jsonl"), read_ledger(run / "nodes/local/ledger.jsonl")
    coins = discrete(8.0, 0.3)  # every client tosses its own: amplified for readers
    assert (
        federation.nominal(Adversary.READER)
        == Counter({coins: 6})
        == plan.mechanism().composition(1, 6)[Adversary.READER]
    )
    assert federation.nominal(Adversary.SERVER) == Counter({TrustedEvent(): 6})
    assert node.nominal(Adversary.READER) == Counter({discrete(8.0, 1.0): 6})  # what a client can vouch for
    assert federation.header.facts["num_units"] == 3
    report = build_report(run)
    assert report.fields["unit"] == "client"
    assert report.fields["claim"][0]["epsilon"] == plan.rows[0].epsilon_total
    assert report.summary.startswith("Each of the 3 clients in this federation is protected")
    assert "any one client's data" in report.summary
    assert verify(run).ok


def test_local_dp_sgd_takes_the_noised_steps_of_a_slow_loop(tmp_path: Path) -> None:
    """Next to no noise and everybody in every step: what is left is the clipped gradients along the client's own path."""
    divisor = 7.0
    mechanism = LocalDpSgd(Trust.LOCAL, PoissonSampling(1.0), CLIP, 1e-6, STEPS, RATE, divisor)
    messages, data = ask(tmp_path / "a", three_clients(), mechanism, PrivacyUnit.USER)
    for client, message in enumerate(messages):
        weight, expected = START.copy(), np.zeros(D)
        for _ in range(STEPS):
            total = np.zeros(D)
            for unit in np.flatnonzero(data.client == client):
                rows = range(int(data.start[unit]), int(data.start[unit + 1]))
                total += clipped(gradient(data, rows, weight, mean=False))
            weight -= RATE * total / divisor
            expected += total
        sent = sealed_from_bytes(message, LocallyPrivate, client, 1, D).value
        np.testing.assert_allclose(sent, expected, atol=5e-4)
        assert np.abs(expected).max() > 0.1


def test_a_run_of_local_dp_sgd_books_every_step_in_every_clients_book(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, **DP_SGD)
    plan = make_plan(recipe)
    assert np.isfinite(train(recipe)).all()
    run = Path(recipe.output_dir)
    event = RepeatedEvent(discrete(8.0, 0.3), STEPS)
    for book in (run / "ledger.jsonl", run / "nodes/local/ledger.jsonl"):
        for adversary in Adversary:
            assert read_ledger(book).nominal(adversary) == Counter({event: 6})
    report = build_report(run)
    assert [row["epsilon"] for row in report.fields["claim"]] == [row.epsilon_total for row in plan.rows]
    plain = make_plan(make_recipe(tmp_path, privacy__trust="local", federation__num_rounds=6 * STEPS, **NOISE))
    assert plan.rows[2].epsilon_total == plain.rows[2].epsilon_total  # as many releases, wherever the rounds are cut
    assert verify(run).ok


def test_noise_is_calibrated_to_every_step(tmp_path: Path) -> None:
    target: dict[str, Any] = {
        **DP_SGD,
        "privacy__noise_multiplier": None,
        "privacy__target_epsilon": 9.0,
        "privacy__sample_rate": 1.0,
    }
    plan = make_plan(make_recipe(tmp_path, **target))
    assert 8.99 < plan.rows[0].epsilon_total <= 9.0


@pytest.mark.parametrize(
    "changes",
    [
        {"privacy__unit": "client"},
        {"reward__local": LOCAL},
        {**DP_SGD, "privacy__clipping": "adaptive"},
        {**DP_SGD, "privacy__sampling": "fixed_order", "privacy__sample_rate": 0.5},
        {**DP_SGD, "federation__partition": {"by": "natural", "num_clients": None}},
        {**FED_AVG, "privacy__labels": "randomized_response", "privacy__label_epsilon": 1.0},
        {**FED_AVG, "privacy__sampling": "truncated_poisson", "privacy__max_units_per_round": 1,
         "privacy__max_units_per_client": 1},
    ],
    ids=str,
)  # fmt: skip
def test_what_no_clipped_update_covers_is_no_recipe(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(RecipeError) as refusal:
        make_recipe(tmp_path, **changes)
    assert refusal.value.code == "FP101"


def test_a_clients_place_is_the_same_whatever_is_trained() -> None:
    """Else a fixed order would put it into other blocks in other runs, and a project's books would add up too little."""
    head = prepare_node(three_clients(), fake_features(D), PrivacyUnit.CLIENT, 3)
    adapter = prepare_records(three_clients(), PrivacyUnit.CLIENT, 3)
    assert head.place.tolist() == adapter.place.tolist()
    assert head.client.tolist() == adapter.client.tolist() == [0, 1, 2]


def test_local_steps_train_every_part_of_a_head_as_torch_sgd_does() -> None:
    layout = HeadLayout(D, hidden_dim=3)
    start = np.random.default_rng(4).normal(size=layout.size)
    data = prepare_node(three_clients(), fake_features(D), PrivacyUnit.CLIENT, 3)
    work = HeadWork(data, 3, layout.shapes, local=LocalTraining(STEPS, RATE))
    selected = np.array([True, False, True])
    rows = work.rows(start, selected)
    assert (work.rows(start, selected) == rows).all()  # nothing of a client outlives its steps
    for row, client in zip(rows, (0, 2), strict=True):
        head, own = RewardHead.of(layout.shapes), slice(int(data.start[client]), int(data.start[client + 1]))
        set_weight(head, start)
        optimizer = torch.optim.SGD(head.parameters(), lr=RATE)
        for _ in range(STEPS):
            optimizer.zero_grad()
            margin = head(data.chosen[own]) - head(data.rejected[own])
            torch.nn.functional.softplus(-margin).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        trained = torch.cat([p.detach().reshape(-1) for p in head.parameters()]).numpy()
        np.testing.assert_allclose(row, start - trained, atol=2e-6)
        assert (row != 0).all()
