"""What couples records is refused wherever it is asked for, and settings out of range when the objective is made."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from policy.coupled import COUPLED
from policy.dpo_losses import PairRatios, dpo_loss
from policy.losses import group_advantages, grpo_loss
from policy.objectives import DpoObjective, GrpoObjective
from policy.registry import OBJECTIVES, ObjectiveSpec, find_objective
from reward.errors import ObjectiveNameError, TokenBatchError


@pytest.mark.parametrize(
    ("name", "loss_type"),
    [
        *(("dpo", loss) for loss in ("aot", "aot_pair", "aot_unpaired", "bco_pair", "sft")),
        *(("grpo", loss) for loss in ("dapo", "bnpo", "cispo", "vespo")),
        ("kto", "kto_batch_kl"),
        ("sft", "nll"),
        ("sft", "dft"),
    ],
)
def test_as_a_loss_type_it_is_refused_with_the_reason(name: str, loss_type: str) -> None:
    with pytest.raises(ObjectiveNameError, match="couples the records"):
        find_objective(name)({"loss_type": loss_type, "max_completion_length": 8})


def test_the_losses_themselves_refuse_it() -> None:
    ones = torch.ones(2, 3)
    pairs = PairRatios(*torch.ones(4, 2))
    refused: list[Any] = [
        lambda: dpo_loss("aot", pairs),  # type: ignore[arg-type]
        lambda: DpoObjective("bco_pair"),  # type: ignore[arg-type]
        lambda: GrpoObjective("dapo", 8),  # type: ignore[arg-type]
        lambda: grpo_loss(ones, ones, ones[:, 0], loss_type="bnpo", max_completion_length=3),  # type: ignore[arg-type]
        lambda: group_advantages(ones[0], "batch"),  # type: ignore[arg-type]
    ]
    for call in refused:
        with pytest.raises(ObjectiveNameError, match="couples the records"):
            call()


def test_a_kl_without_a_reference_is_no_quiet_zero() -> None:
    ones = torch.ones(2, 3)
    with pytest.raises(TokenBatchError, match="reference"):
        grpo_loss(ones, ones, ones[:, 0], loss_type="grpo", max_completion_length=3, beta=0.1)


@pytest.mark.parametrize(
    ("name", "settings", "match"),
    [
        ("dpo", {"loss_type": "sigmoyd"}, "Did you mean 'sigmoid'"),
        ("dpo", {"betta": 0.1}, "no setting betta; there is loss_type"),
        ("dpo", {"beta": 0.0}, "beta=0.0"),
        ("dpo", {"loss_type": "robust", "label_smoothing": 0.5}, "label_smoothing=0.5"),
        ("dpo", {"loss_type": "exo_pair"}, "above 0"),
        ("kto", {"beta": float("nan")}, "beta=nan"),
        ("grpo", {}, "max_completion_length"),
        ("grpo", {"max_completion_length": 8, "temperature": 0.0}, "temperature=0.0"),
        ("sft", {"reduction": "max"}, "'max'"),
        ("bradley_terry", {"label_smoothing": 0.1, "flip_probability": 0.1}, "label_smoothing"),
        ("binary_selector", {"beta": 0.1}, "there is none"),
    ],
)
def test_settings_that_do_not_fit_are_refused_when_the_objective_is_made(
    name: str, settings: dict[str, Any], match: str
) -> None:
    with pytest.raises(ObjectiveNameError, match=match):
        find_objective(name)(settings)


def test_the_only_loss_of_an_objective_may_be_asked_for_by_its_name() -> None:
    for name in ("bradley_terry", "binary_selector", "kto", "sft"):
        spec = find_objective(name)
        assert spec({"loss_type": name}) == spec()


def test_nothing_takes_the_place_of_a_refusal() -> None:
    mine = ObjectiveSpec("aot", "pairs", lambda **_: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(ObjectiveNameError, match="couples the records"):
        find_objective("aot", {"aot": mine})
    assert not set(COUPLED) & set(OBJECTIVES)


@pytest.mark.parametrize("path", ["policy.objectives:DpoObjective", "policy.objectives.DpoObjective", "os.system"])
def test_a_path_to_code_is_no_name(path: str) -> None:
    with pytest.raises(ObjectiveNameError, match="There is no objective"):
        find_objective(path)
