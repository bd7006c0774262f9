"""The round loop as a whole: order of the books, trust settings, and nothing of one person beyond the clipping norm."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedpref.aggregation.optimizers import ServerOptimizer
from fedpref.channel.base import Failure, RoundRequest
from fedpref.channel.local import LocalChannel
from fedpref.client.node import Node
from fedpref.folder import RunFolder
from fedpref.tracking import JsonlTracker
from fedpref.training import train_reward_head
from privacy.events import NonPrivateEvent, TrustedEvent
from privacy.ledger import read_ledger
from privacy.report import build_report, verify
from privacy.rng import SeededNonPrivateRandom
from privacy.sealed import Entrusted, sealed_from_bytes
from privacy.units import Adversary, Trust
from tests.privacy.oracles import discrete, grid_noise
from tests.tiny import make_recipe, train, training_input

SEEDED: dict[str, Any] = {"privacy__rng": "seeded"}
ROUNDS = 6


def capture(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RoundRequest, list[bytes]]]:
    """Every request and the sealed bytes that answered it."""
    seen: list[tuple[RoundRequest, list[bytes]]] = []
    exchange = LocalChannel.exchange

    def spy(self: LocalChannel, request: RoundRequest) -> list[bytes | Failure]:
        replies = exchange(self, request)
        seen.append((request, [r for r in replies if isinstance(r, bytes)]))
        return replies

    monkeypatch.setattr(LocalChannel, "exchange", spy)
    return seen


def test_training_is_the_algorithm_box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the sealed sums on, replayed by hand: sum, seeded noise, public divisor, SGD with momentum, late mean."""
    seen = capture(monkeypatch)
    recipe = make_recipe(tmp_path, **SEEDED)
    weight = train(recipe)
    rng, parameters, velocity, iterates = SeededNonPrivateRandom(recipe.seed), np.zeros(8), np.zeros(8), []
    for number, (request, messages) in enumerate(seen, 1):
        assert np.array_equal(request.parameters, parameters)
        sums = [sealed_from_bytes(m, Entrusted, i, number, 8).value for i, m in enumerate(messages)]
        noise = grid_noise(rng.stream("noise", round=number), 1.5 * 0.5, 0.5, 8)
        velocity = 0.9 * velocity + (np.sum(sums, axis=0) + noise) / (0.3 * 50)
        parameters = parameters - 1.0 * velocity
        parameters = _exact(tmp_path, number, parameters)
        iterates.append(parameters)
    assert len(seen) == ROUNDS
    np.testing.assert_allclose(weight, np.mean(iterates[3:], axis=0), rtol=1e-9)


def _exact(folder: Path, number: int, parameters: Any) -> Any:
    """The checkpoint's parameters, which must agree with those by hand up to rounding."""
    import safetensors.numpy

    state = safetensors.numpy.load_file(folder / f"run/checkpoints/round-{number:06d}.safetensors")
    np.testing.assert_allclose(state["parameters"], parameters, rtol=1e-9)
    return state["parameters"]


def test_a_seeded_run_repeats_itself_and_an_ordinary_one_does_not(tmp_path: Path) -> None:
    weights: dict[str, list[bytes]] = {"seeded": [], "os": []}
    for rng, into in weights.items():
        for i in range(2):
            folder = tmp_path / f"{rng}{i}"
            folder.mkdir()
            into.append(train(make_recipe(folder, privacy__rng=rng)).tobytes())
    assert weights["seeded"][0] == weights["seeded"][1]
    assert len({*weights["os"], weights["seeded"][0]}) == 3


def test_the_event_is_on_disk_before_any_client_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe(tmp_path, **SEEDED)
    run, exchange, seen = Path(recipe.output_dir), LocalChannel.exchange, []

    def spy(self: LocalChannel, request: RoundRequest) -> list[bytes | Failure]:
        view = read_ledger(run / "ledger.jsonl")
        assert view.open_reservation is not None
        seen.append((request.round, view.open_reservation.round, len(view.committed)))
        replies = exchange(self, request)
        assert read_ledger(run / "nodes/local/ledger.jsonl").reservations[-1].round == request.round
        return replies

    monkeypatch.setattr(LocalChannel, "exchange", spy)
    train(recipe)
    assert seen == [(n, n, n - 1) for n in range(1, ROUNDS + 1)]


def events_of(recipe: Any) -> tuple[dict[Adversary, Any], dict[Adversary, Any]]:
    run = Path(recipe.output_dir)
    federation, node = (read_ledger(run / name) for name in ("ledger.jsonl", "nodes/local/ledger.jsonl"))
    for view in (federation, node):
        assert len(view.reservations) == ROUNDS
        assert len({str(dict(r.events)) for r in view.reservations}) == 1
    return dict(federation.reservations[0].events), dict(node.reservations[0].events)


def test_central_books_amplified_for_readers_trusted_for_the_server_and_unamplified_at_the_node(
    tmp_path: Path,
) -> None:
    recipe = make_recipe(tmp_path)
    train(recipe)
    amplified, plain = discrete(1.5, 0.3), discrete(1.5, 1.0)
    federation, node = events_of(recipe)
    assert federation == {
        Adversary.READER: amplified,
        Adversary.OTHER_CLIENTS: amplified,
        Adversary.SERVER: TrustedEvent(),
    }
    assert node == {Adversary.READER: plain, Adversary.OTHER_CLIENTS: plain, Adversary.SERVER: TrustedEvent()}


def test_local_books_the_same_event_against_everybody_in_both_ledgers(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, privacy__trust="local")
    train(recipe)
    federation, node = events_of(recipe)
    assert federation == node == dict.fromkeys(Adversary, discrete(1.5, 0.3))


def test_no_noise_is_booked_as_no_privacy(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, privacy__noise_multiplier=0)
    train(recipe)
    federation, node = events_of(recipe)
    assert federation[Adversary.READER] == node[Adversary.READER] == NonPrivateEvent("no noise")
    assert "NOT PRIVATE" in build_report(Path(recipe.output_dir)).summary


def test_a_seeded_run_is_booked_as_not_private(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, **SEEDED)
    train(recipe)
    report = build_report(Path(recipe.output_dir))
    assert report.summary.startswith("NOT PRIVATE")
    assert [row["epsilon"] for row in report.fields["claim"]] == [None, None, None]
    for name in ("ledger.jsonl", "nodes/local/ledger.jsonl"):
        assert json.loads((Path(recipe.output_dir) / name).read_text().splitlines()[0])["body"]["private_rng"] is False


@pytest.mark.parametrize("trust", [Trust.CENTRAL, Trust.LOCAL])
def test_every_message_has_one_size_in_rounds_without_a_sample_and_at_empty_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trust: Trust
) -> None:
    seen = capture(monkeypatch)
    recipe = make_recipe(
        tmp_path,
        privacy={"noise_multiplier": 0, "sample_rate": 1e-7, "trust": trust.value},
        federation__partition__num_clients=40,
    )
    given = training_input(recipe)
    assert any(len(part) == 0 for part in given.data.clients.values())
    folder = RunFolder(Path(recipe.output_dir))
    folder.begin(recipe, given.plan.digest, resume=False)
    weight = train_reward_head(given, folder, [], lambda _: None)
    assert len({len(m) for _, messages in seen for m in messages}) == 1
    assert [len(messages) for _, messages in seen] == [40] * ROUNDS
    assert np.abs(weight).max() == 0.0


def test_an_empty_sample_gives_pure_noise_and_the_run_goes_on(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, **SEEDED)
    given = training_input(recipe)
    nobody = replace(given.data, clients={name: part.select([]) for name, part in given.data.clients.items()})  # type: ignore[arg-type]
    folder = RunFolder(Path(recipe.output_dir))
    folder.begin(recipe, given.plan.digest, resume=False)
    weight = train_reward_head(replace(given, data=nobody), folder, [], lambda _: None)
    optimizer, rng = ServerOptimizer(recipe.reward, 8, ROUNDS), SeededNonPrivateRandom(recipe.seed)
    for number in range(1, ROUNDS + 1):
        optimizer.step(grid_noise(rng.stream("noise", round=number), 0.75, 0.5, 8) / 15.0)
    np.testing.assert_allclose(weight, optimizer.averaged, rtol=1e-12)


def test_people_with_nan_features_contribute_zero_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = capture(monkeypatch)
    recipe = make_recipe(tmp_path, **SEEDED)
    given = training_input(recipe)

    def broken(texts: Any) -> Any:
        return np.full_like(given.features(texts), np.nan)

    folder = RunFolder(Path(recipe.output_dir))
    folder.begin(recipe, given.plan.digest, resume=False)
    weight = train_reward_head(replace(given, features=broken), folder, [], lambda _: None)
    assert np.isfinite(weight).all()
    for number, (_, messages) in enumerate(seen, 1):
        for i, message in enumerate(messages):
            assert np.abs(sealed_from_bytes(message, Entrusted, i, number, 8).value).max() == 0.0
    assert verify(Path(recipe.output_dir)).ok


def test_one_broken_message_a_round_is_named_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contribute = Node.contribute

    def lying(self: Node, request: RoundRequest) -> list[bytes]:
        messages = contribute(self, request)
        return [messages[0], messages[1][:-3], messages[2]]

    monkeypatch.setattr(Node, "contribute", lying)
    recipe = make_recipe(tmp_path, **SEEDED)
    given, said = training_input(recipe), list[str]()
    folder = RunFolder(Path(recipe.output_dir))
    folder.begin(recipe, given.plan.digest, resume=False)
    weight = train_reward_head(given, folder, [], said.append)
    assert np.isfinite(weight).all()
    assert [f"round {n}: Client 1 sent" in line for n, line in enumerate(said, 1)] == [True] * ROUNDS
    assert verify(Path(recipe.output_dir)).ok


def test_more_people_do_not_change_scale_but_only_the_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pseudo-gradient is the noised sum over q N declared, whatever the real number of people is."""
    seen = capture(monkeypatch)
    recipe = make_recipe(tmp_path, privacy={"noise_multiplier": 0, "sample_rate": 1.0, "max_grad_norm": 0.5})
    metrics = JsonlTracker(tmp_path / "metrics.jsonl")
    train(recipe, trackers=[metrics])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for number, ((_, messages), line) in enumerate(zip(seen, lines, strict=True), 1):
        total = np.sum([sealed_from_bytes(m, Entrusted, i, number, 8).value for i, m in enumerate(messages)], axis=0)
        assert line["pseudo_gradient_norm"] == pytest.approx(np.linalg.norm(total) / 50, rel=1e-9)
        assert line["expected_cohort"] == 50
