"""Whole runs that train an adapter: planned, booked, resumed, released; and what `plan` refuses, with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedpref.adapter_size import trainable_dimension
from fedpref.api import run
from fedpref.errors import RecipeError, UnsupportedPlanError
from fedpref.plan import make_plan
from privacy.errors import CodedError
from privacy.report import build_report
from tests.fedpref.adapters import adapter_recipe, work_of
from tests.fedpref.conftest import speak
from tests.tiny import preferences

LOCAL = {"learning_rate": 0.01}
BY_CLIENT = {"training__local": LOCAL, "privacy__unit": "client"}


@pytest.mark.parametrize("objective", ["dpo", "bradley_terry"])
def test_a_run_books_what_was_planned_and_releases_what_peft_loads(
    tmp_path: Path, tiny_model: Path, objective: str
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    recipe = adapter_recipe(tmp_path, tiny_model, training__objective=objective)
    plan, finished = make_plan(recipe), run(recipe)
    claim = build_report(finished.path).fields["claim"]
    assert [row.epsilon_total for row in plan.rows if not row.trusted] == [
        row["epsilon"] for row in claim if not row["trusted"]
    ]
    reward = objective == "bradley_terry"
    kind = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    options = {"num_labels": 1} if reward else {}
    folder = finished.path / "release" / ("reward" if reward else "policy")
    base = kind.from_pretrained(tiny_model, dtype=torch.float32, **options)
    loaded = PeftModel.from_pretrained(base, str(folder)).state_dict()
    trained = [value for name, value in loaded.items() if "lora_B" in name]
    assert trained
    assert all(bool(value.abs().sum() > 0) for value in trained)
    for block in finished.evaluation.values():
        assert set(block["measures"]["reward accuracy"]) >= {"before", "after", "difference", "interval"}
    manifest = json.loads((finished.path / "release" / "manifest.json").read_text())
    assert f"{folder.name}/adapter_model.safetensors" in manifest["files"]


def test_a_released_lora_reward_model_is_evaluated_on_other_pairs_as_the_run_did(
    tmp_path: Path, tiny_model: Path
) -> None:
    changes = {
        "training__objective": "bradley_terry",
        "training__adapter": "lora_core",
        "evaluation__unseen_topics": [],
    }
    recipe = adapter_recipe(tmp_path, tiny_model, training__max_eval_records=500, max_length=128, **changes)
    finished = run(recipe)
    spoken = speak("eval", str(finished.path), "--data", recipe.datasets[0], "--json")
    assert spoken.code == 0, spoken.err
    figures, told = json.loads(spoken.out), finished.evaluation["seen topics"]
    assert figures["pairs"] == told["records"]
    assert figures["reward_accuracy"] == pytest.approx(told["measures"]["reward accuracy"]["after"], abs=1e-9)
    card = (finished.path / "release" / "reward" / "README.md").read_text()
    assert 'reward.load("release/reward")' in card
    assert "load_score_backbone" in card


def test_a_run_without_a_reward_model_says_so(tmp_path: Path, tiny_model: Path) -> None:
    finished = run(adapter_recipe(tmp_path, tiny_model, federation__num_rounds=1))
    spoken = speak("eval", str(finished.path), "--data", finished.recipe.datasets[0])
    assert spoken.code == 1
    assert "has no reward model" in spoken.err
    assert "PeftModel.from_pretrained" in spoken.err


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_adapter(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = {}
    for name in ("whole", "broken"):
        folder = tmp_path / name
        folder.mkdir()
        recipe = adapter_recipe(folder, tiny_model, privacy__rng="seeded", output_dir=str(folder / "run"))
        if name == "broken":
            with monkeypatch.context() as patched:
                patched.setattr("fedpref.server.Server.step", _stops_at_the_second(recipe.federation.num_rounds))
                with pytest.raises(KeyboardInterrupt):
                    run(recipe)
            run(recipe, resume=True)
        else:
            run(recipe)
        released[name] = (folder / "run" / "release" / "policy" / "adapter_model.safetensors").read_bytes()
    assert released["whole"] == released["broken"]


def _stops_at_the_second(_: int) -> Any:
    from fedpref.server import Server

    step, calls = Server.step, []

    def stopping(self: Server, release: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return step(self, release)

    return stopping


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"training__aggregation": "stack"}, "nothing to repair"),
        ({"dtype": "bfloat16"}, "does not go with private training"),
        ({"training__objective": "grpo", **BY_CLIENT}, "another model's"),
        (
            {"training__aggregation": "stack", "training__adapter": "lora", **BY_CLIENT},
            "no function of a sum",
        ),
        (
            {"training__adapter": "lora", "privacy__trust": "distributed", **BY_CLIENT},
            "mean\\(B\\) mean\\(A\\) is not",
        ),
        ({"privacy__labels": "randomized_response", "privacy__label_epsilon": 1.0}, "debiased"),
    ],
)  # fmt: skip
def test_plan_refuses_what_cannot_hold_and_says_why(
    tmp_path: Path, tiny_model: Path, changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(UnsupportedPlanError) as caught:
        make_plan(adapter_recipe(tmp_path, tiny_model, **changes))
    assert caught.value.code == "FP103"
    with pytest.raises(CodedError, match=why):
        raise CodedError(caught.value.why + caught.value.what, "", "")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"training__loss_type": "aot"}, "sorts the log-ratios of all pairs"),
        ({"training__loss_type": "bco_pair"}, "running mean over batches"),
        ({"training__loss_type": "dapo", "training__objective": "grpo"}, "tokens of the whole batch"),
        ({"training__loss_type": "kto"}, "none of dpo's"),
        ({"training__beta": 0.0}, "beta above 0"),
        ({"training__objective": "sft", "training__beta": 0.1}, "no reference"),
        ({"training__temperature": 0.7}, "does nothing under objective: dpo"),
        ({"training__loss_type": "exo_pair"}, "label_smoothing above 0"),
        (
            {"training__objective": "bradley_terry", "training__adapter": "prompt_tuning"},
            "does not go with bradley_terry",
        ),
        ({"training__objective": "grpo", "training__adapter": "prompt_tuning"}, "cannot sample"),
        ({"training__num_virtual_tokens": 4}, "does nothing under adapter: lora_frozen_a"),
        ({"training__adapter": "prompt_tuning", "training__lora_r": 4}, "does nothing under adapter: prompt_tuning"),
        ({"training__adapter": "prompt_tuning", "training__lora_target_modules": ["o_proj"]}, "does nothing under"),
        ({"training__objective": "sft", "training__ref_model": "global"}, "no reference"),
        ({"training__objective": "grpo", "training__ref_model": "global"}, "beta: 0, which has no reference"),
        ({"training__label_smoothing": 0.1}, "does nothing under loss_type: sigmoid"),
        ({"training__objective": "kto", "training__label_smoothing": 0.1}, "does nothing under objective: kto"),
        ({"training__desirable_weight": 2.0}, "does nothing under objective: dpo"),
        ({"training__reward_funcs": ["format"]}, "does nothing under objective: dpo"),
        ({"training__objective": "grpo", "training__reward_funcs": ["format", "format"]}, "names a function twice"),
        ({"evaluation__judge_layer": 3}, "without the block `policy`"),
        ({"evaluation__policy_samples": 2}, "without the block `policy`"),
        ({"training__lora_rank": 3}, "unknown key"),
        ({"privacy__unit": "client"}, "needs training.local"),
        ({"training__local": LOCAL}, "bounds nobody"),
        ({"training__local": LOCAL, "privacy__unit": "example"}, "bounds nobody"),
        ({"reward": {"public_data": "x"}}, "exactly one of the blocks"),
    ],
)
def test_a_recipe_is_refused_where_it_contradicts_itself(
    tmp_path: Path, tiny_model: Path, changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(RecipeError, match=why):
        adapter_recipe(tmp_path, tiny_model, **changes)


@pytest.mark.parametrize("adapter", ["lora", "lora_frozen_a", "lora_core", "prompt_tuning"])
@pytest.mark.parametrize("objective", ["dpo", "bradley_terry"])
def test_the_planned_size_is_the_models(tmp_path: Path, tiny_model: Path, adapter: str, objective: str) -> None:
    if adapter == "prompt_tuning" and objective == "bradley_terry":
        pytest.skip("refused")
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    changes: dict[str, Any] = {"training__objective": objective}
    if adapter != "prompt_tuning":
        changes["training__lora_target_modules"] = modules
    recipe = adapter_recipe(tmp_path, tiny_model, training__adapter=adapter, **changes)
    runtime, _ = work_of(recipe, {"one": preferences([("ann", "a", "b")])})
    assert trainable_dimension(recipe) == len(runtime.part.start)
    assert np.isfinite(runtime.part.start.numpy()).all()
