"""A plan composes the very events that the run writes, and its figures are upper bounds all the way."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest

from fedpref.plan import make_plan
from privacy.accounting import epsilon
from privacy.ledger import read_ledger
from privacy.report import build_report
from privacy.sealed import size_of
from privacy.units import Adversary
from tests.fedpref.conftest import FinishedRun
from tests.tiny import make_recipe, train


@pytest.mark.parametrize("trust", ["central", "local"])
def test_the_plan_promises_what_the_ledgers_then_say(tmp_path: Path, trust: str) -> None:
    recipe = make_recipe(tmp_path, privacy__trust=trust)
    plan = make_plan(recipe)
    train(recipe)
    report = build_report(Path(recipe.output_dir))
    for promised, booked in zip(plan.rows, report.fields["claim"], strict=True):
        assert promised.adversary.value == booked["adversary"]
        assert promised.trusted is booked["trusted"]
        assert (promised.epsilon_total if math.isfinite(promised.epsilon_total) else None) == booked["epsilon"]
    node = report.fields["nodes"][0]["rows"]
    for promised, booked in zip(plan.node_rows or plan.rows, node, strict=True):
        assert (promised.epsilon_total if math.isfinite(promised.epsilon_total) else None) == booked["epsilon"]


def test_what_a_tracker_shows_is_never_below_what_is_spent(tmp_path: Path) -> None:
    plan = make_plan(make_recipe(tmp_path))
    reader = plan.mechanism().events()[Adversary.READER]
    for number in range(1, plan.num_rounds + 1):
        shown = plan.public_figures(number, number)["epsilon_reader"]
        assert shown >= epsilon(Counter({reader: number}), 1e-5)
    assert shown == plan.rows[0].epsilon_total


def test_the_last_mark_of_a_long_run_is_its_total(tmp_path: Path) -> None:
    """Marks stand at tenths, rounded up: also where ten does not divide the rounds."""
    privacy = {"noise_multiplier": 30.0, "sample_rate": 1.0}
    plan = make_plan(make_recipe(tmp_path, privacy=privacy, federation__num_rounds=23))
    assert [mark for mark, _ in plan.epsilon_marks] == [3, 5, 7, 10, 12, 14, 17, 19, 21, 23]
    values = [value for _, value in plan.epsilon_marks]
    assert values == sorted(values)
    assert values[-1] == plan.rows[0].epsilon_total


def test_bytes_per_client_count_what_goes_over_the_wire(finished: FinishedRun) -> None:
    rounds, dimension = finished.recipe.federation.num_rounds, finished.recipe.reward.projection_dim
    sent = sum(len(messages[0]) for messages in finished.messages)
    assert sent == rounds * size_of(dimension)
    assert make_plan(finished.recipe).bytes_per_client == sent + rounds * 8 * dimension


def test_the_digest_names_recipe_and_noise(tmp_path: Path) -> None:
    plan = make_plan(make_recipe(tmp_path))
    assert make_plan(make_recipe(tmp_path)).digest == plan.digest
    assert make_plan(make_recipe(tmp_path, seed=1)).digest != plan.digest
    assert make_plan(make_recipe(tmp_path, reward__momentum=0.5)).digest != plan.digest


def test_a_run_without_noise_plans_no_finite_epsilon(tmp_path: Path) -> None:
    plan = make_plan(make_recipe(tmp_path, privacy__noise_multiplier=0))
    assert all(math.isinf(row.epsilon_total) for row in (*plan.rows, *plan.node_rows))
    assert "epsilon_reader" not in plan.public_figures(1, 1)
    assert json.loads(plan.to_json_text())["claim"][0]["epsilon_total"] is None


def test_the_ledger_header_states_the_public_constants(finished: FinishedRun) -> None:
    header = read_ledger(finished.path / "ledger.jsonl").header
    facts = dict(header.facts)
    assert facts["num_units_declared"] == 50
    assert facts["num_clients"] == 3
    assert facts["max_pairs_per_user"] == 20
    assert header.run == make_plan(finished.recipe).digest[:16]
