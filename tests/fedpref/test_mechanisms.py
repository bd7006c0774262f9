"""Recipes with other samplings, adaptive clipping and randomised labels: the run books what the plan composed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedpref.channel.base import Failure, RoundRequest
from fedpref.channel.local import LocalChannel
from fedpref.client.labels import record_names
from fedpref.config import Recipe
from fedpref.data.loading import load_federated
from fedpref.errors import RecipeError
from fedpref.journal import Checkpoints
from fedpref.plan import make_plan, sweep
from privacy.errors import LabelsError
from privacy.events import FixedOrderEvent, GaussianEvent, RandomizedResponseEvent, TruncatedPoissonEvent
from privacy.labels import KeptLabels
from privacy.ledger import read_ledger
from privacy.report import build_report, render_text, verify
from privacy.sealed import size_of
from privacy.units import Adversary
from tests.fedpref.conftest import speak
from tests.tiny import make_recipe, train, write_recipe

READER = Adversary.READER
TRUNCATED = {"sampling": "truncated_poisson", "max_units_per_client": 30, "max_units_per_round": 12}
CASES: dict[str, tuple[dict[str, Any], type]] = {
    "truncated": ({**TRUNCATED, "sample_rate": 0.3}, TruncatedPoissonEvent),
    "fixed order": ({"sampling": "fixed_order", "sample_rate": 0.5}, FixedOrderEvent),
    "adaptive": ({"clipping": "adaptive"}, GaussianEvent),
    "labels": ({"labels": "randomized_response", "label_epsilon": 2.0}, GaussianEvent),
}


def recipe_of(folder: Path, privacy: dict[str, Any], **changes: Any) -> Recipe:
    whole = {"noise_multiplier": 8.0, "sample_rate": 0.3, "max_grad_norm": 0.5, **privacy}
    return make_recipe(folder, privacy=whole, **changes)


@pytest.mark.parametrize("trust", ["central", "local"])
@pytest.mark.parametrize("case", CASES)
def test_the_ledgers_hold_the_events_that_the_plan_composed(tmp_path: Path, case: str, trust: str) -> None:
    privacy, kind = CASES[case]
    recipe = recipe_of(tmp_path, {**privacy, "trust": trust})
    plan = make_plan(recipe)
    train(recipe)
    run = Path(recipe.output_dir)
    for file, node in (("ledger.jsonl", False), ("nodes/local/ledger.jsonl", True)):
        view, planned = read_ledger(run / file), plan.mechanism().composition(1, plan.num_rounds, node=node)
        assert {a: view.composition(a) for a in Adversary} == planned
    booked = read_ledger(run / "ledger.jsonl")
    assert all(isinstance(event, kind) for event in booked.composition(READER))
    assert booked.epsilon(READER) == plan.rows[0].epsilon_total
    assert math.isfinite(plan.rows[0].epsilon_total)
    assert build_report(run).fields["claim"][0]["epsilon"] == plan.rows[0].epsilon_total


def test_a_fixed_order_costs_its_participations_and_a_cut_sample_more_than_a_whole_one(tmp_path: Path) -> None:
    def total(**privacy: Any) -> float:
        return make_plan(recipe_of(tmp_path, privacy)).rows[0].epsilon_total

    half = total(sampling="fixed_order", sample_rate=0.5)  # three of six rounds
    assert half > total(sample_rate=0.5)
    assert half < total(sampling="fixed_order", sample_rate=1.0)
    assert total(**TRUNCATED) > total()


@pytest.mark.slow  # calibrations and sweeps: seconds
def test_noise_is_calibrated_to_what_counts_for_one_unit(tmp_path: Path) -> None:
    for privacy in ({"sampling": "fixed_order", "sample_rate": 0.5}, {"clipping": "adaptive"}):
        target = {"noise_multiplier": None, "target_epsilon": 2.0, **privacy}
        plan = make_plan(recipe_of(tmp_path, target))
        assert 1.98 < plan.rows[0].epsilon_total <= 2.0


@pytest.mark.parametrize(
    "privacy",
    [
        {"sampling": "truncated_poisson"},
        {"sampling": "truncated_poisson", "max_units_per_round": 5},
        {"max_units_per_round": 5, "max_units_per_client": 10},
        {"sampling": "fixed_order", "sample_rate": 0.3},
        {"labels": "randomized_response"},
        {"label_epsilon": 1.0},
        {"clipping": "adaptive", "noise_multiplier": 0.0},
        {"sampling": "shuffled"},
        {"unit": "client"},
    ],
    ids=str,
)
def test_keys_that_do_not_belong_together_are_refused(tmp_path: Path, privacy: dict[str, Any]) -> None:
    with pytest.raises(RecipeError) as refusal:
        recipe_of(tmp_path, privacy)
    assert refusal.value.code == "FP101"


def record_norms(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    norms: list[float | None] = []
    exchange = LocalChannel.exchange

    def spy(self: LocalChannel, request: RoundRequest) -> list[bytes | Failure]:
        norms.append(request.clipping_norm)
        replies = exchange(self, request)
        assert {len(reply) for reply in replies if isinstance(reply, bytes)} == {size_of(9)}
        return replies

    monkeypatch.setattr(LocalChannel, "exchange", spy)
    return norms


@pytest.mark.slow  # calibrations and sweeps: seconds
def test_an_adaptive_norm_moves_and_survives_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = record_norms(monkeypatch)
    small = {"clipping": "adaptive", "rng": "seeded", "noise_multiplier": 1.0, "max_grad_norm": 0.01}
    recipe = recipe_of(tmp_path, small)
    whole = train(recipe)
    assert norms[0] == pytest.approx(0.01, rel=0.01)
    assert norms[-1] > norms[0]  # type: ignore[operator]
    states = [Checkpoints(Path(recipe.output_dir) / "checkpoints").last()[1]]
    assert states[0] is not None
    assert states[0]["clipping.norm"].shape == (1,)
    seen = list(norms)
    norms.clear()
    other = recipe.model_copy(update={"output_dir": str(tmp_path / "again")})
    stop_after(monkeypatch, 3, lambda: train(other))
    resumed = train(other, resume=True)
    assert norms == seen
    np.testing.assert_array_equal(whole, resumed)


class Killed(BaseException):
    pass


def stop_after(monkeypatch: pytest.MonkeyPatch, rounds: int, run: Any) -> None:
    publish, calls = Checkpoints.publish, []

    def stopping(self: Checkpoints, number: int) -> bool:
        calls.append(number)
        done = publish(self, number)
        if number == rounds and done:
            raise Killed
        return done

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "publish", stopping)
        with pytest.raises(Killed):
            run()


LABELS = {"labels": "randomized_response", "label_epsilon": 1.0}


def test_labels_are_booked_apart_drawn_once_and_swapped(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, LABELS)
    train(recipe)
    run = Path(recipe.output_dir)
    book = read_ledger(run / "nodes/local/labels.jsonl")
    event = RandomizedResponseEvent(1.0, recipe.privacy.max_pairs_per_user)
    assert [dict(r.events) for r in book.reservations] == [dict.fromkeys(Adversary, event)]
    assert book.epsilon(READER) == 1.0 * recipe.privacy.max_pairs_per_user
    assert book.header.scope == "labels:local"
    assert verify(run / "nodes/local/labels.jsonl").ok
    report = build_report(run)
    (row,) = report.fields["labels"]
    assert (row["scope"], row["label_epsilon_per_unit"]) == ("labels:local", book.epsilon(READER))
    assert f"epsilon {book.epsilon(READER):.4f} at delta 0, unit user" in render_text(report)
    assert verify(run).ok
    assert not any(
        isinstance(e, RandomizedResponseEvent) for e in read_ledger(run / "ledger.jsonl").composition(READER)
    )
    clients = load_federated(recipe, lambda _: None).clients
    names = [name for client, data in clients.items() for name in record_names(client, data)]
    flips = KeptLabels(run / "nodes/local/labels.bin").flips(names)
    assert 0.1 < flips.mean() < 0.45  # 0.27 of about 90


def test_a_name_does_not_depend_on_the_label(tmp_path: Path) -> None:
    from dataclasses import replace

    data = next(iter(load_federated(recipe_of(tmp_path, LABELS), lambda _: None).clients.values()))
    flipped = replace(data, chosen=data.rejected, rejected=data.chosen)
    assert record_names("c", data) == record_names("c", flipped)
    assert len(set(record_names("c", data))) == len(data)


def test_lost_labels_are_not_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(tmp_path, LABELS)
    stop_after(monkeypatch, 2, lambda: train(recipe))
    kept = Path(recipe.output_dir) / "nodes/local/labels.bin"
    before = kept.read_bytes()
    kept.unlink()
    with pytest.raises(LabelsError):
        train(recipe, resume=True)
    kept.write_bytes(before)
    train(recipe, resume=True)
    assert kept.read_bytes() == before
    book = kept.with_name("labels.jsonl")
    assert len(read_ledger(book).reservations) == 1


def test_labels_that_no_book_knows_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(tmp_path, LABELS)
    stop_after(monkeypatch, 1, lambda: train(recipe))
    (Path(recipe.output_dir) / "nodes/local/labels.jsonl").unlink()
    with pytest.raises(LabelsError):
        train(recipe, resume=True)


@pytest.mark.slow  # calibrations and sweeps: seconds
def test_a_sweep_is_one_plan_per_value(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, {})
    plans = sweep(recipe, "target_epsilon", [1, 4.0])
    assert [plan.recipe.privacy.target_epsilon for plan in plans] == [1.0, 4.0]
    assert [plan.recipe.privacy.noise_multiplier for plan in plans] == [None, None]
    assert plans[0].noise_multiplier > plans[1].noise_multiplier
    for plan in plans:
        assert plan.rows[0].epsilon_total == make_plan(plan.recipe).rows[0].epsilon_total
    with pytest.raises(RecipeError):
        sweep(recipe, "no_such_key", [1])


def test_a_sweep_on_the_command_line_shows_epsilon_per_adversary(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, Path("not-loaded"))
    spoken = speak("plan", str(path), "--sweep", "noise_multiplier=4,8")
    assert spoken.code == 0, spoken.err
    head, first, second = spoken.out.splitlines()[1:4]
    columns = ["noise_multiplier", "noise multiplier", "reader", "other clients", "server", "reader (alone)"]
    assert [head.index(name) for name in columns] == sorted(head.index(name) for name in columns)
    assert (first.split()[0], second.split()[0]) == ("4", "8")
    assert float(first.split()[2]) > float(second.split()[2]) > 0
    assert "none: trusted" in first
    rows = json.loads(speak("plan", str(path), "--sweep", "privacy.noise_multiplier=4,8", "--json").out)["plans"]
    assert [row["noise_multiplier"] for row in rows] == [4.0, 8.0]
    assert {row["adversary"] for row in rows[0]["claim"]} == {a.value for a in Adversary}
    refused = speak("plan", str(path), "--sweep", "noise_multiplier=many")
    assert (refused.code != 0, "FP101" in refused.err) == (True, True)


def test_no_noise_is_used_twice_across_rounds_clients_and_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise of 8 x 2^16 steps: two equal numbers among 144 messages' coordinates have a chance of about 1e-4 each pair."""
    sent: list[np.ndarray] = []
    exchange = LocalChannel.exchange

    def spy(self: LocalChannel, request: RoundRequest) -> list[bytes | Failure]:
        replies = exchange(self, request)
        sent.extend(np.frombuffer(reply, "<f8", offset=25) for reply in replies if isinstance(reply, bytes))
        return replies

    monkeypatch.setattr(LocalChannel, "exchange", spy)
    recipe = recipe_of(tmp_path, {"trust": "local"})
    stop_after(monkeypatch, 3, lambda: train(recipe))
    train(recipe, resume=True)
    assert len(sent) == 6 * 3
    for i, message in enumerate(sent):
        for other in sent[:i]:
            assert np.sum(message == other) <= 1
            assert abs(np.corrcoef(message, other)[0, 1]) < 1 - 1e-6
