"""Trust distributed end to end: books, masks against open sums, drop-outs, aborted rounds, terms, what clients send."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fedpref.channel.base import Failure, RoundRequest
from fedpref.channel.secure import SecureChannel, ServerMemory
from fedpref.client.secure import SecureNode
from fedpref.cohort import check_cohort, invited
from fedpref.config import Recipe
from fedpref.errors import RecipeError, RunFolderError, TooFewClientsError, UnsupportedPlanError
from fedpref.folder import RunFolder
from fedpref.journal import Checkpoints
from fedpref.plan import make_plan
from fedpref.training import train_reward_head
from privacy.accounting import epsilon
from privacy.distributed import DistributedMechanism
from privacy.events import CappedEvent, GaussianEvent
from privacy.ledger import read_ledger
from privacy.project import read_project
from privacy.report import build_report, render_text, verify
from privacy.secagg.shares import SecureSum
from privacy.units import Adversary, PrivacyUnit
from tests.fedpref.conftest import speak
from tests.tiny import make_recipe, train, training_input, write_recipe

FOUR: dict[str, Any] = {
    "privacy__trust": "distributed",
    "federation__partition__num_clients": 4,
    "federation__min_clients_per_round": 3,
    "federation__num_rounds": 4,
}
PEOPLE: dict[str, Any] = {
    "privacy__trust": "distributed",
    "privacy__sampling": "capped",
    "privacy__max_participations": 2,
    "privacy__secure_aggregation": "simulated",
    "privacy__sample_rate": 0.2,
    "federation__partition": {"by": "natural"},
    "federation__num_units": 40,
    "federation__num_rounds": 8,
}
Trip = Callable[[SecureNode, Mapping[int, bytes], RoundRequest | None], Mapping[int, bytes | Failure]]


def recipe(folder: Path, name: str = "a", **changes: Any) -> Recipe:
    (folder / name).mkdir()
    return make_recipe(folder / name, **{**FOUR, **changes})


def sums(monkeypatch: pytest.MonkeyPatch) -> list[SecureSum]:
    """Every unmasked or openly added sum."""
    seen: list[SecureSum] = []
    release = DistributedMechanism.release

    def spy(self: DistributedMechanism, total: SecureSum, *rest: Any) -> Any:
        seen.append(total)
        return release(self, total, *rest)

    monkeypatch.setattr(DistributedMechanism, "release", spy)
    return seen


def run(r: Recipe) -> tuple[np.ndarray, list[str]]:
    """Train, and what was said."""
    given, folder, said = training_input(r), RunFolder(Path(r.output_dir)), list[str]()
    folder.begin(r, given.plan.digest, resume=False)
    return train_reward_head(given, folder, [], said.append), said


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"privacy__consistency": "strict"}, marks=pytest.mark.slow),
        pytest.param({"privacy__clipping": "adaptive"}, marks=pytest.mark.slow),
        pytest.param({"privacy__labels": "randomized_response", "privacy__label_epsilon": 2.0}, marks=pytest.mark.slow),
        pytest.param({"privacy__sampling": "fixed_order", "privacy__sample_rate": 0.5}, marks=pytest.mark.slow),
        pytest.param({"privacy__unit": "example"}, marks=pytest.mark.slow),
    ],
    ids=["folded", "strict", "adaptive", "labels", "fixed order", "example"],
)
def test_masked_and_open_sums_give_the_same_head_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    seen, heads, took = sums(monkeypatch), {}, {}
    for mode in ("full", "simulated"):
        r = recipe(tmp_path, mode, privacy__rng="seeded", privacy__secure_aggregation=mode, **changes)
        heads[mode] = train(r)
        took[mode] = [total.integers.tolist() for total in seen]
        seen.clear()
        assert verify(Path(r.output_dir)).ok
    assert heads["full"].tobytes() == heads["simulated"].tobytes()
    assert took["full"] == took["simulated"]
    assert len(took["full"]) == 4
    assert np.abs(heads["full"]).max() > 0


def test_both_books_hold_what_the_plan_promised_the_same_against_everybody(tmp_path: Path) -> None:
    r = recipe(tmp_path)
    plan = make_plan(r)
    train(r)
    run_folder = Path(r.output_dir)
    for name in ("ledger.jsonl", "nodes/local/ledger.jsonl"):
        view = read_ledger(run_folder / name)
        (events,) = {tuple(x.events.values()) for x in view.reservations}
        assert len(set(events)) == 1
        assert isinstance(events[0], GaussianEvent)
        assert (events[0].noise, events[0].sample_rate) == ("discrete", 0.3)
        assert events[0].noise_multiplier >= 1.5
        assert events[0].total_variation > 0
        assert len(view.committed) == 4
        facts = view.header.facts
        assert (facts["secure_aggregation"], facts["colluders"], facts["honest_shares"]) == ("full", 1, 2)
    report = build_report(run_folder)
    for promised, booked in zip(plan.rows, report.fields["claim"], strict=True):
        assert promised.epsilon_total == booked["epsilon"]
    assert "the same holds against it" in report.summary
    text = render_text(report)
    assert "server with 1 colluding client " in text
    assert "identity keys were exchanged out of band" in " ".join(text.split())


@pytest.mark.slow  # calibrates
def test_a_target_holds_against_the_server_slack_included(tmp_path: Path) -> None:
    r = recipe(tmp_path, privacy={"trust": "distributed", "target_epsilon": 3.0, "sample_rate": 0.3})
    rows = make_plan(r).rows
    assert [2.9 < row.epsilon_total <= 3.0 for row in rows] == [True] * 3


def test_a_simulated_run_says_that_nothing_holds_against_the_server(tmp_path: Path) -> None:
    r = recipe(tmp_path, privacy__secure_aggregation="simulated")
    train(r)
    run_folder = Path(r.output_dir)
    report = build_report(run_folder)
    claim = {row["adversary"]: row for row in report.fields["claim"]}
    assert claim["server"]["epsilon"] is None
    assert (
        claim["server"]["epsilon_if_sums_were_masked"]
        == claim["reader"]["epsilon"]
        == claim["other_clients"]["epsilon"]
    )
    assert "SIMULATED" in report.summary
    assert "INFINITE: simulated" in render_text(report)
    assert verify(run_folder).epsilons["server"] is None
    planned = make_plan(r).to_json()["claim"][2]
    assert planned["epsilon_total"] is None
    assert planned["epsilon_total_if_masked"] == claim["reader"]["epsilon"]
    assert not (run_folder / "nodes/local/identities").exists()


def silence(monkeypatch: pytest.MonkeyPatch, who: Callable[[int], set[int]]) -> None:
    """Clients that do not answer a trip; ``who`` is asked with the number of the trip from 0."""
    trip, count = SecureNode.trip, [0]

    def deaf(self: SecureNode, bundles: Mapping[int, bytes], request: RoundRequest | None) -> Any:
        gone = who(count[0])
        count[0] += 1
        heard = {client: bundle for client, bundle in bundles.items() if client not in gone}
        return {**trip(self, heard, request), **dict.fromkeys(gone & bundles.keys(), Failure("silent"))}

    monkeypatch.setattr(SecureNode, "trip", deaf)


@pytest.mark.parametrize("number", [pytest.param(n, marks=[] if n in {2, 3} else [pytest.mark.slow]) for n in range(8)])
def test_one_client_that_falls_silent_at_any_trip_costs_nobody_the_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    seen = sums(monkeypatch)
    silence(monkeypatch, lambda trip: {2} if trip == number else set())
    r = recipe(tmp_path)
    run(r)
    sizes = [len(total.survivors) for total in seen]
    assert len(sizes) == 4
    assert set(sizes) <= {3, 4}
    assert sizes.count(3) <= 2  # a trip carries vectors of one round and keys of the next
    view = read_ledger(Path(r.output_dir) / "ledger.jsonl")
    assert (len(view.reservations), len(view.committed)) == (4, 4)
    assert verify(Path(r.output_dir)).ok


@pytest.mark.parametrize("number", [3, 4, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 5))])
def test_below_the_threshold_a_round_is_lost_booked_and_without_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Trips 2 and 3 are vectors and survivors of round 1, with the set-up of round 2 on them."""
    seen = sums(monkeypatch)
    silence(monkeypatch, lambda trip: {1, 2} if trip == number else set())
    r = recipe(tmp_path)
    _, said = run(r)
    run_folder = Path(r.output_dir)
    view, node = (read_ledger(run_folder / name) for name in ("ledger.jsonl", "nodes/local/ledger.jsonl"))
    lost = 1 if number < 4 else 2
    assert [x.round for x in view.reservations] == [x.round for x in node.reservations] == [1, 2, 3, 4]
    assert (len(view.committed), len(view.aborted), len(view.given_back)) == (3, 1, 0)
    assert view.reservations[lost - 1].seq in view.aborted
    assert len(seen) == 3
    assert any(f"Round {lost} is aborted" in line for line in said)
    done, state = Checkpoints(run_folder / "checkpoints").last()
    assert state is not None
    assert (done, state["counters"][1]) == (4, 3)
    assert verify(run_folder).ok
    event = view.reservations[0].events[Adversary.SERVER]
    assert view.epsilon(Adversary.SERVER) == epsilon({event: 4}, 1e-5)


def test_rounds_that_are_lost_in_a_row_stop_the_run_which_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        silence(patch, lambda trip: {1, 2} if trip % 4 == 3 or trip >= 4 else set())
        r = recipe(tmp_path)
        with pytest.raises(TooFewClientsError) as stopped:
            run(r)
        assert stopped.value.code == "FP505"
    head = train(r, resume=True)
    view = read_ledger(Path(r.output_dir) / "ledger.jsonl")
    assert [x.round for x in view.booked] == [1, 2, 3, 4]
    assert np.isfinite(head).all()
    assert verify(Path(r.output_dir)).ok


def test_a_gross_lie_behind_the_masks_is_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = SecureChannel.exchange

    def lie(self: SecureChannel, request: RoundRequest) -> SecureSum:
        total = exchange(self, request)
        if request.round == 2:
            total.integers[:] = 1 << 20
        return total

    monkeypatch.setattr(SecureChannel, "exchange", lie)
    r = recipe(tmp_path)
    _, said = run(r)
    assert any("larger than any of honest clients" in line for line in said)
    view = read_ledger(Path(r.output_dir) / "ledger.jsonl")
    assert (len(view.committed), len(view.aborted)) == (3, 1)
    assert verify(Path(r.output_dir)).ok


def write_terms(path: Path, **changes: Any) -> Path:
    budget = {"delta": 1e-5, "epsilon": dict.fromkeys(("reader", "other_clients", "server"), 40.0)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"terms": {"budgets": {"user": budget}, "trust": ["distributed"], **changes}}))
    return path


@pytest.mark.slow
def test_terms_may_demand_distributed_and_refuse_other_trusts_and_small_cohorts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = sums(monkeypatch)
    terms = tmp_path / "terms"
    write_terms(terms / "client-0.yaml", min_clients=3)
    write_terms(terms / "client-2.yaml", min_clients=4)
    r = recipe(tmp_path, federation__terms=str(terms))
    _, said = run(r)
    assert [total.survivors for total in seen] == [(0, 1, 3)] * 4
    assert (
        sum("refused by the client's terms: min_clients" in line for line in said) == 3
    )  # asked along with rounds 1 to 3
    central = make_recipe(
        tmp_path / "a",
        federation__terms=str(terms),
        federation__num_rounds=1,
        output_dir=str(tmp_path / "c"),
        federation__partition__num_clients=4,
    )
    assert any("refused by the client's terms: trust" in line for line in run(central)[1])


def test_terms_and_simulation_do_not_go_together(tmp_path: Path) -> None:
    from fedpref.books import refuse_early

    path = write_terms(tmp_path / "client.yaml")
    plan = make_plan(recipe(tmp_path, federation__terms=str(path), privacy__secure_aggregation="simulated"))
    mechanism = plan.mechanism()
    with pytest.raises(UnsupportedPlanError, match="simulated"):
        refuse_early(plan, mechanism.events(), mechanism.composition(1, 4))


def test_the_projects_books_hold_distributed_rounds_too(tmp_path: Path) -> None:
    ledger = tmp_path / "project.jsonl"
    train(recipe(tmp_path, privacy__ledger=str(ledger), privacy__project_cap=20.0))
    spent = read_project(ledger).spent(PrivacyUnit.USER, Adversary.SERVER)
    assert sum(spent.values()) == 4


def test_one_person_per_client_capped_and_never_amplified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = sums(monkeypatch)
    r = make_recipe(tmp_path, **PEOPLE)
    train(r)
    view = read_ledger(Path(r.output_dir) / "ledger.jsonl")
    events = {event for x in view.reservations for event in x.events.values()}
    (event,) = events
    assert isinstance(event, CappedEvent)
    assert event.cap == 2
    assert event.scope != "run plan"  # another name for every run: two runs of one recipe add up
    whole = GaussianEvent(event.noise_multiplier, 1.0, "discrete", event.log_ratio, event.total_variation)
    assert view.nominal(Adversary.SERVER) == {event: 8}
    assert view.epsilon(Adversary.READER) == epsilon({whole: 2}, 1e-5) == make_plan(r).rows[0].epsilon_total
    took = [client for total in seen for client in total.survivors]
    assert max(map(took.count, took)) == 2
    assert [len(total.survivors) for total in seen] == [8] * 8


def test_the_public_order_asks_each_client_once_in_a_pass(tmp_path: Path) -> None:
    r = make_recipe(tmp_path, **PEOPLE)
    names = [f"person {i}" for i in range(43)]
    rounds = [invited(r, names, number) for number in range(1, 11)]
    for start in (0, 5):
        asked = [i for cohort in rounds[start : start + 5] for i in cohort]
        assert len(asked) == len(set(asked)) == 40
    assert rounds[0] != rounds[5]
    with pytest.raises(UnsupportedPlanError, match="do not fill"):
        check_cohort(r, names[:31])  # three rounds a pass: eight rounds take three passes


@pytest.mark.parametrize(
    "changes",
    [
        {"privacy__trust": "central", "privacy__colluders": 2},
        {"privacy__trust": "central", "federation__clients_per_round": 3},
        {"federation__partition": {"by": "natural"}},
        {"federation__partition__num_clients": 1},
        {"privacy__sampling": "capped", "privacy__max_participations": 3},
        {"privacy__max_participations": 3},
    ],
)
def test_settings_that_say_nothing_or_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        recipe(tmp_path, **changes)


def test_a_capped_recipe_that_needs_more_participations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="max_participations"):
        make_recipe(tmp_path, **{**PEOPLE, "federation__num_rounds": 11})


@pytest.mark.slow
def test_more_clients_than_the_noise_is_sized_for_are_refused(tmp_path: Path) -> None:
    r = recipe(tmp_path, federation__clients_per_round=3)
    with pytest.raises(UnsupportedPlanError, match="4 clients, but a round takes 3 to 3"):
        train(r)


def test_the_plan_counts_trips_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = {"trips": 0, "up": 0, "down": 0}
    trip = SecureNode.trip

    def weigh(self: SecureNode, bundles: Mapping[int, bytes], request: RoundRequest | None) -> Any:
        replies = trip(self, bundles, request)
        reply = replies.get(1, b"")
        moved["trips"] += 1
        moved["down"] += len(bundles.get(1, b"")) + (8 * len(request.parameters) if request else 0)
        moved["up"] += len(reply) if isinstance(reply, bytes) else 0
        return replies

    monkeypatch.setattr(SecureNode, "trip", weigh)
    r = recipe(tmp_path)
    train(r)
    costs = make_plan(r).secure_costs
    assert costs is not None
    assert costs.trips == moved["trips"] == 10
    assert costs.bytes_up == pytest.approx(moved["up"], rel=0.1)
    assert costs.bytes_down == pytest.approx(moved["down"], rel=0.1)


def test_a_server_never_uses_a_number_twice(tmp_path: Path) -> None:
    path = tmp_path / "aggregation.json"
    first = ServerMemory(path)
    first.close_round(b"signed")
    second = ServerMemory(path)
    assert second.first_number > first.first_number + 1_000_000
    assert second.closure == b"signed"
    path.write_text("{}")
    with pytest.raises(RunFolderError):
        ServerMemory(path)


def test_a_whole_masked_run_through_the_command_line(tmp_path: Path, tiny_model: Path) -> None:
    """Recipe to report: release, manifest, verify, and what `clean` leaves."""
    path = write_recipe(tmp_path, tiny_model, **FOUR)
    spoken = speak("run", str(path))
    assert spoken.code == 0, spoken.err
    folder = tmp_path / "run"
    assert "the same holds against it" in spoken.out
    assert speak("verify", str(folder)).out.endswith("verified\n")
    assert (folder / "nodes/local/identities/client-0.json").stat().st_mode & 0o077 == 0
    assert speak("clean", str(folder)).code == 0
    assert not (folder / "nodes/local/members.bin").exists()
