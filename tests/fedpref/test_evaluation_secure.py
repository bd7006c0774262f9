"""Federated evaluation under trust distributed: one more round of secure aggregation, booked by itself, made once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml

from fedpref.channel.base import Failure, RoundRequest
from fedpref.channel.secure import SecureChannel
from fedpref.cli.plan import plan_lines
from fedpref.client.secure import SecureNode
from fedpref.config import Recipe
from fedpref.plan import make_plan
from privacy.distributed import DistributedMechanism
from privacy.events import GaussianEvent
from privacy.ledger import read_ledger
from privacy.report import build_report, verify
from privacy.secagg.shares import SecureSum
from privacy.units import Adversary
from tests.fedpref.conftest import speak
from tests.fedpref.secure_messages import Watch, watch
from tests.fedpref.test_evaluation_stage import evaluate, many, released, truth
from tests.fedpref.test_resume import Killed, Killer
from tests.fedpref.test_secure_run import sums
from tests.tiny import write_recipe

FOUR: dict[str, Any] = {
    "privacy__trust": "distributed",
    "federation__partition__num_clients": 4,
    "federation__min_clients_per_round": 3,
}
BOOKS = ("evaluation.jsonl", "nodes/local/evaluation.jsonl")


def recipe(folder: Path, name: str = "a", **changes: Any) -> Recipe:
    (folder / name).mkdir()
    return many(folder / name, **{**FOUR, **changes})


def test_the_release_is_the_sum_over_people_and_shares_of_noise_booked_once_against_everybody(tmp_path: Path) -> None:
    r = recipe(tmp_path)
    table, plan = evaluate(r), make_plan(r)
    assert plan.evaluation is not None
    noise = table["seen topics"]["noise_std"]
    assert noise == pytest.approx(plan.evaluation.mechanism.noise_std * 2**0.5, rel=0.03)  # 4 shares where 2 are honest
    assert 0 < np.abs(released(r) - truth(r)).max() < 6 * noise  # false alarm below 1e-8
    for name in BOOKS:
        view = read_ledger(Path(r.output_dir) / name)
        (reservation,) = view.booked
        assert reservation.round == plan.evaluation.round_number
        (event,) = set(reservation.events.values())
        assert isinstance(event, GaussianEvent)
        assert (event.noise, event.sample_rate) == ("discrete", 1.0)
        for adversary in Adversary:
            assert 1.99 < view.epsilon(adversary) <= 2.0
            assert plan.evaluation.epsilon(adversary) == pytest.approx(view.epsilon(adversary))
        assert view.header.facts["secure_aggregation"] == "full"
    costs = plan.evaluation_costs
    assert costs is not None
    assert costs.trips == 4
    assert plan.bytes_per_client > costs.bytes_up + costs.bytes_down


def test_masked_and_open_sums_are_the_same_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, tables = sums(monkeypatch), []
    for mode in ("full", "simulated"):
        tables.append(evaluate(recipe(tmp_path, mode, privacy__rng="seeded", privacy__secure_aggregation=mode)))
    assert tables[0] == tables[1]
    assert seen[0].integers.tolist() == seen[1].integers.tolist()


def test_with_hardly_any_noise_it_is_the_exact_sum(tmp_path: Path) -> None:
    """A deviation of about half a person, where some fifty are counted."""
    r = recipe(tmp_path, evaluation__target_epsilon=50.0)
    noise = evaluate(r)["seen topics"]["noise_std"]
    assert noise < 0.6
    assert np.abs(released(r) - truth(r)).max() < 6 * noise  # false alarm below 1e-8
    assert truth(r)[:2].min() > 30


def test_more_people_in_one_client_than_elsewhere_are_not_clamped(tmp_path: Path) -> None:
    """A declaration of 50 people and about 200 real ones, many of them in one client; the bound leaves room for that."""
    plan = make_plan(recipe(tmp_path)).evaluation
    assert plan is not None
    assert isinstance(plan.mechanism, DistributedMechanism)
    codec = plan.mechanism.secagg.codec
    assert codec.rotated or codec.clamp >= 50 * codec.steps


def test_a_simulated_one_promises_nothing_against_the_server(tmp_path: Path) -> None:
    r = recipe(tmp_path, privacy__secure_aggregation="simulated")
    evaluate(r)
    plan = make_plan(r)
    assert plan.to_json()["evaluation"]["epsilon"]["server"] is None
    assert "server INFINITE: simulated" in "\n".join(plan_lines(plan))
    view = read_ledger(Path(r.output_dir) / "evaluation.jsonl")
    assert view.epsilon(Adversary.SERVER) == np.inf
    assert view.epsilon(Adversary.READER) <= 2.0


def test_too_few_answers_are_spent_told_and_never_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trip = SecureNode.trip

    def deaf(self: SecureNode, bundles: Mapping[int, bytes], request: RoundRequest | None) -> Any:
        gone = {1, 2} if request is not None else set[int]()  # when vectors are asked for
        heard = {client: bundle for client, bundle in bundles.items() if client not in gone}
        return {**trip(self, heard, request), **dict.fromkeys(gone, Failure("silent"))}

    r, said = recipe(tmp_path), list[str]()
    with monkeypatch.context() as patch:
        patch.setattr(SecureNode, "trip", deaf)
        refused = evaluate(r, said=said)
    assert "refused" in refused["seen topics"]
    assert any("is aborted" in line for line in said)
    assert "refused" in evaluate(r, resume=True)["seen topics"]
    for name in BOOKS:
        view = read_ledger(Path(r.output_dir) / name)
        assert len(view.booked) == 1
        assert view.open_reservation is None
    assert not read_ledger(Path(r.output_dir) / "evaluation.jsonl").committed
    assert not list((Path(r.output_dir) / "evaluation").glob("*.safetensors"))


def test_a_gross_lie_behind_the_masks_is_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = SecureChannel.exchange

    def lie(self: SecureChannel, request: RoundRequest) -> SecureSum:
        total = exchange(self, request)
        total.integers[:] = 1 << 30
        return total

    monkeypatch.setattr(SecureChannel, "exchange", lie)
    said = list[str]()
    assert "refused" in evaluate(recipe(tmp_path), said=said)["seen topics"]
    assert any("larger than any of honest clients" in line for line in said)


def test_who_refuses_by_its_terms_is_not_in_the_sum(tmp_path: Path) -> None:
    for client, cap in ((1, 0.5), (2, 30.0)):
        budget = {"delta": 1e-5, "epsilon": dict.fromkeys((a.value for a in Adversary), cap)}
        tree = {"budgets": {"user": budget}, "trust": ["distributed"], "server": "embedded", "min_clients": 3}
        (tmp_path / "terms").mkdir(exist_ok=True)
        (tmp_path / "terms" / f"client-{client}.yaml").write_text(yaml.safe_dump({"terms": tree}))
    said = list[str]()
    r = recipe(tmp_path, federation__terms=str(tmp_path / "terms"), evaluation__target_epsilon=10.0)
    table = evaluate(r, said=said)
    assert "noise_std" in table["seen topics"], said
    noise = table["seen topics"]["noise_std"]
    assert any("client 1" in line and "refused by the client" in line for line in said)
    off = np.abs(released(r) - truth(r, frozenset({1})))
    assert off.max() < 6 * noise < 0.5 * np.abs(truth(r) - truth(r, frozenset({1}))).max()


def check(r: Recipe, table: dict[str, Any], seen: Watch, before: npt.NDArray[np.uint8] | None) -> None:
    run = Path(r.output_dir)
    committed = len(read_ledger(run / "evaluation.jsonl").committed)
    assert committed == (0 if "refused" in table["seen topics"] else 1)
    for name in BOOKS:
        view = read_ledger(run / name)
        assert len(view.booked) == 1
        assert view.open_reservation is None
    assert all(len(contents) == 1 for contents in seen.vectors.values()), "two vectors of one client"
    files = list((run / "evaluation").glob("*.safetensors"))
    assert len(files) == committed
    assert before is None or files[0].read_bytes() == bytes(before)


def kill_at(folder: Path, at: int, when: str, mode: str) -> dict[str, Any]:
    r = recipe(folder, f"{at}-{when}", privacy__secure_aggregation=mode)
    run = Path(r.output_dir)
    with pytest.MonkeyPatch.context() as patch:
        seen = watch(patch)
        with pytest.raises(Killed), Killer(at, when).lurking():
            evaluate(r)
        drawn = [p for p in run.glob("evaluation/*.safetensors") if not p.name.endswith(".part")]
        drawn += list(run.glob("evaluation/.prepared-*.safetensors"))
        before = np.frombuffer(drawn[0].read_bytes(), dtype=np.uint8) if drawn else None
        table = evaluate(r, resume=(run / "run.json").exists())
        check(r, table, seen, before)
    return table


def points(folder: Path, mode: str) -> list[str]:
    with Killer().lurking() as counter:
        evaluate(recipe(folder, "counted", privacy__secure_aggregation=mode))
    return counter.names


def at_vectors(names: list[str]) -> int:
    """Where the clients' states are kept with their vectors."""
    return [i for i, name in enumerate(names) if name == "evaluation-members.bin"][2]


@pytest.mark.parametrize(("when", "lost"), [("before", False), ("after", True)])
def test_killed_before_vectors_are_kept_it_goes_on_and_afterwards_it_is_lost(
    tmp_path: Path, when: str, lost: bool
) -> None:
    names = points(tmp_path, "full")
    assert ("refused" in kill_at(tmp_path, at_vectors(names), when, "full")["seen topics"]) is lost


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["full", "simulated"])
@pytest.mark.parametrize("when", ["before", "torn", "after"])
def test_killed_at_every_write_it_is_booked_once_and_made_at_most_once(tmp_path: Path, when: str, mode: str) -> None:
    tables = [kill_at(tmp_path, at, when, mode) for at in range(len(points(tmp_path, mode)))]
    lost = sum("refused" in table["seen topics"] for table in tables)
    assert lost <= (6 if mode == "full" else 0)


def test_a_whole_run_through_the_command_line(tmp_path: Path, tiny_model: Path) -> None:
    changes = {"evaluation__federated": True, "evaluation__target_epsilon": 8.0, "evaluation__user_fraction": 0.5}
    spoken = speak("run", str(write_recipe(tmp_path, tiny_model, **FOUR, **changes, federation__num_rounds=2)))
    assert spoken.code == 0, spoken.err
    run = tmp_path / "run"
    assert "4 trips of secure aggregation more" in spoken.err
    section = build_report(run).fields["evaluation"]
    assert [row["trusted"] for row in section["claim"]] == [False] * 3
    assert 7.9 < section["claim"][2]["epsilon"] <= 8.0
    assert max(row["epsilon"] for row in section["claim"]) < section["together"][2]["epsilon"]
    verdict = verify(run)
    assert verdict.ok, verdict.failed
    assert set(json.loads((run / "evaluation.json").read_text())) == {"seen topics", "unseen topics"}
    assert speak("clean", str(run)).code == 0
    assert not list((run / "nodes/local").glob("*members.bin"))
