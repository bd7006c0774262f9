"""Objectives by name: built from settings, refused with a reason, extended by object and entry point."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from typing import Any, get_args

import pytest

from policy.dpo_losses import LOSSES
from policy.objectives import DpoObjective, GrpoObjective, KtoObjective, SftObjective
from policy.registry import COUPLED, OBJECTIVES, DpoLossType, ObjectiveSpec, find_objective
from reward.errors import ObjectiveNameError
from reward.objectives import BradleyTerryObjective, SelectorObjective


def mine(**settings: Any) -> Any:
    return lambda model, batch: settings


SPEC = ObjectiveSpec("mine", "completions", mine)


def test_every_objective_is_built_with_its_defaults_and_settings() -> None:
    assert find_objective("dpo")() == DpoObjective("sigmoid", 0.1)
    assert find_objective("dpo")({"loss_type": "ipo", "beta": 0.3}) == DpoObjective("ipo", 0.3)
    assert find_objective("kto")() == KtoObjective(0.1)
    assert find_objective("sft")({"reduction": "sum"}) == SftObjective("sum")
    assert find_objective("grpo")({"max_completion_length": 8}) == GrpoObjective("dr_grpo", 8)
    assert find_objective("bradley_terry")({"label_smoothing": 0.1}) == BradleyTerryObjective(0.1)
    assert find_objective("binary_selector")() == SelectorObjective()


def test_the_lists_of_dpo_losses_agree() -> None:
    assert set(OBJECTIVES["dpo"].loss_types) == set(LOSSES) == set(get_args(DpoLossType))
    assert not set(COUPLED) & {loss for spec in OBJECTIVES.values() for loss in spec.loss_types}


@pytest.mark.parametrize("name", COUPLED)
def test_a_loss_that_couples_records_is_refused_by_name_with_the_reason(name: str) -> None:
    for ask in (lambda: find_objective(name), lambda: find_objective("dpo")({"loss_type": name})):
        with pytest.raises(ObjectiveNameError) as caught:
            ask()
        assert caught.value.code == "FP313"
        assert COUPLED[name] in caught.value.why


def test_unknown_names_and_settings_are_refused_with_the_nearest() -> None:
    with pytest.raises(ObjectiveNameError, match="Did you mean 'bradley_terry'"):
        find_objective("bradley_tery")
    with pytest.raises(ObjectiveNameError, match="Did you mean 'sigmoid'"):
        find_objective("dpo")({"loss_type": "sigmoit"})
    with pytest.raises(ObjectiveNameError, match="no setting gamma"):
        find_objective("dpo")({"gamma": 1})
    with pytest.raises(ObjectiveNameError, match="max_completion_length"):
        find_objective("grpo")()


def test_objects_and_plug_ins_extend_but_never_replace(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_objective("mine", {"mine": SPEC})({"a": 1})(None, None) == {"a": 1}
    assert find_objective("dpo", {"dpo": SPEC}) is OBJECTIVES["dpo"]
    points = [
        EntryPoint("mine", "tests.policy.test_registry:SPEC", "fedpref.objectives"),
        EntryPoint("function", "tests.policy.test_registry:mine", "fedpref.objectives"),
        EntryPoint("broken", "tests.nothing_there:SPEC", "fedpref.objectives"),
    ]
    monkeypatch.setattr("policy.registry.entry_points", lambda group: points)
    assert find_objective("mine") is SPEC
    with pytest.raises(ObjectiveNameError, match="ObjectiveSpec"):
        find_objective("function")
    with pytest.raises(ObjectiveNameError, match="cannot be loaded"):
        find_objective("broken")
    with pytest.raises(ObjectiveNameError, match="function, mine"):
        find_objective("tests.policy.test_registry:SPEC")


def test_reading_names_needs_no_torch() -> None:
    code = "import sys, policy.registry; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
