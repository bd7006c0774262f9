"""Every objective as a whole run on the tiny model: its own data, its own measure, its own release."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from fedpref.adapter_stage import client_rewards, make_runtime
from fedpref.api import run
from fedpref.client.adapter import GradientWork
from fedpref.client.groups import GroupMaterial
from fedpref.client.records import prepare_records
from fedpref.data.loading import load_federated
from fedpref.errors import WrongFormatError
from privacy.units import PrivacyUnit
from reward.errors import RewardFunctionError
from reward.lora_scorer import LoraRewardModel
from tests.fedpref.adapters import adapter_recipe, sums, work_of
from tests.reward.test_lora_scorer import released
from tests.tiny import preferences, write_dataset, write_jsonl

MEASURES = {
    "kto": "reward accuracy",
    "sft": "loss per token",
    "binary_selector": "reward accuracy",
    "grpo": "mean reward",
}


def described(folder: Path, rows: list[dict[str, Any]], kind: str, **fields: str) -> str:
    """A data file of another format and its description; returns the YAML."""
    file = write_jsonl(folder / f"{kind}.jsonl", rows)
    description = {"name": kind, "source": file.name, "format": kind, "license": "CC0-1.0"}
    description["fields"] = {"user_id": "user_id", "topic": "topic", **fields}  # type: ignore[assignment]
    path = folder / f"{kind}.yaml"
    path.write_text(yaml.safe_dump(description))
    return str(path)


def prompts(folder: Path) -> str:
    rows = [
        {"prompt": f"{a} + {b} = ?", "answer": str(a + b), "user_id": f"u{a}", "topic": "birds" if b == 3 else "cats"}
        for a in range(14)
        for b in range(4)
    ]
    return described(folder, rows, "prompt_only", answer="answer")


def judged(folder: Path) -> str:
    rows = [
        {
            "prompt": "Say something.",
            "completion": f"{'!' * (i % 4)} number {i}",
            "label": i % 4 > 1,
            "user_id": f"u{i % 15}",
            "topic": "birds" if i % 5 == 0 else "cats",
        }
        for i in range(60)
    ]
    return described(folder, rows, "unpaired_preference")


GRPO = {
    "training__reward_funcs": ["length"],
    "training__num_generations": 3,
    "training__max_completion_length": 6,
    "federation__num_rounds": 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["kto", "sft", "binary_selector", "grpo"])
def test_a_run_is_measured_by_its_own_measure(tmp_path: Path, tiny_model: Path, objective: str) -> None:
    changes: dict[str, Any] = {"federation__num_rounds": 2, "training__max_eval_records": 4}
    if objective == "grpo":
        changes |= {**GRPO, "datasets": [prompts(tmp_path)]}
    finished = run(adapter_recipe(tmp_path, tiny_model, training__objective=objective, **changes))
    row = finished.evaluation["seen topics"]["measures"][MEASURES[objective]]
    assert np.isfinite([row["before"], row["after"]]).all()
    assert (finished.path / "release" / "policy" / "adapter_config.json").exists()


def test_judged_answers_of_their_own_format_train_kto(tmp_path: Path, tiny_model: Path) -> None:
    recipe = adapter_recipe(tmp_path, tiny_model, training__objective="kto", datasets=[judged(tmp_path)])
    data = load_federated(recipe, lambda _: None)
    records = prepare_records(data.clients, PrivacyUnit.USER, 20)
    better, worse = ([bool(records.texts[i].completion) for i in side] for side in (records.first, records.second))
    assert all(a != b for a, b in zip(better, worse, strict=True))  # each record is one answer, good or bad
    assert any(better)
    assert any(worse)
    runtime, work = work_of(recipe, data.clients)
    assert np.abs(sums(work, runtime.part.start.double().numpy())).max() > 0


def test_objectives_refuse_data_that_do_not_carry_what_they_learn_from(tmp_path: Path, tiny_model: Path) -> None:
    for objective, data in (("dpo", judged(tmp_path)), ("grpo", str(write_dataset(tmp_path, [])))):
        recipe = adapter_recipe(tmp_path, tiny_model, training__objective=objective, datasets=[data])
        with pytest.raises(WrongFormatError):
            load_federated(recipe, lambda _: None)


def test_a_group_is_sampled_by_itself_so_that_nobody_else_decides_what_it_says(
    tmp_path: Path, tiny_model: Path
) -> None:
    """The same seed, another neighbour: the same completions. With one generator for all they would differ."""
    recipe = adapter_recipe(tmp_path, tiny_model, training__objective="grpo", **GRPO)
    runtime = make_runtime(recipe)
    said = []
    for others in (["first", "second"], ["another one", "second"]):
        clients = {"one": preferences([(f"u{i}", text, "") for i, text in enumerate(others)], prompt="Say it.")}
        records = prepare_records(clients, PrivacyUnit.USER, 5)
        seeds = iter([int.from_bytes(hashlib.sha256(records.texts[i].completion.encode()).digest()[:4], "big")
                      for i in records.first])  # fmt: skip
        rewards = client_rewards(recipe.adapter, {})
        material = GroupMaterial(runtime, records, rewards, recipe.adapter, lambda s=seeds: next(s))  # type: ignore[misc]
        every = np.arange(2)
        material.prepare(every)
        at = [records.texts[i].completion for i in records.first].index("second")
        batch = material.batch(np.array([at]), torch.zeros(1, dtype=torch.int64), torch.ones(1))
        said.append(batch.rows.input_ids.tolist())
    assert said[0] == said[1]


BAD = {"too long": "word " * 9000, "blank": "  ", "no reward": "fine"}


@pytest.mark.parametrize("bad", BAD)
def test_a_prompt_that_cannot_be_scored_stops_nobody_and_weighs_nothing(
    tmp_path: Path, tiny_model: Path, bad: str
) -> None:
    """An error would tell whose coin fell, and something of the text; the neighbour's group stays as it is."""

    def scored(prompts: Any, completions: Any, **_: Any) -> list[float]:
        if "fine" in prompts[0][-1]["content"]:
            raise ValueError("a person's words")
        return [float(i) for i in range(len(completions))]

    recipe = adapter_recipe(
        tmp_path, tiny_model, training__objective="grpo", **GRPO | {"training__reward_funcs": ["mine"]}
    )
    runtime, found = make_runtime(recipe), []
    for prompt in (BAD[bad], "Say it."):
        clients = {
            name: preferences([(name, "1", "")], prompt=text) for name, text in (("a", prompt), ("b", "Say it."))
        }
        material = GroupMaterial(
            runtime,
            prepare_records(clients, PrivacyUnit.USER, 5),
            client_rewards(recipe.adapter, {"mine": scored}),
            recipe.adapter,
            lambda: 7,
        )
        objective = recipe.adapter.spec(recipe.adapter.settings)
        work = GradientWork(runtime, material, objective, material.records, 2)
        found.append(sums(work, runtime.part.start.double().numpy()))
    assert not found[0][0].any()
    assert found[1][0].any()
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-6)
    assert material.rewards_of(0).shape == (GRPO["training__num_generations"],)


def test_reward_functions_that_never_work_are_found_before_anything_is_read(tmp_path: Path, tiny_model: Path) -> None:
    recipe = adapter_recipe(
        tmp_path, tiny_model, training__objective="grpo", **GRPO | {"training__reward_funcs": ["mine"]}
    )

    def broken(**_: Any) -> list[float]:
        raise KeyError("column")

    with pytest.raises(RewardFunctionError, match="raised KeyError"):
        client_rewards(recipe.adapter, {"mine": broken})


def test_a_released_lora_reward_model_scores_for_clients(tmp_path: Path, tiny_model: Path) -> None:
    release = tmp_path / "reward"
    release.mkdir()
    released(release, tiny_model)
    reward_model = {"training__reward_funcs": ["reward_model"], "training__reward_model": str(release)}
    recipe = adapter_recipe(tmp_path, tiny_model, training__objective="grpo", **GRPO | reward_model)
    rewards = client_rewards(recipe.adapter, {})
    assert rewards is not None
    assert isinstance(rewards.funcs["reward_model"], LoraRewardModel)
    by_func = rewards(["Why?", "Why?"], ["Because.", "So."], completion_ids=[[1], [2]])
    assert by_func.shape == (2, 1)
    assert by_func[0, 0] != by_func[1, 0]


def test_one_prompts_whole_group_is_bounded(tmp_path: Path, tiny_model: Path) -> None:
    data = {"datasets": [prompts(tmp_path)], "privacy__unit": "example", "privacy__rng": "seeded"}
    recipe = adapter_recipe(tmp_path, tiny_model, training__objective="grpo", **GRPO, **data)
    clients = load_federated(recipe, lambda _: None).clients
    runtime, work = work_of(recipe, clients)
    assert (np.diff(work._records.start) == 1).all()
    only = np.zeros(len(work.units), dtype=np.bool_)
    only[0] = True
    sent = sums(work, runtime.part.start.double().numpy(), 1e-4, only)
    assert np.linalg.norm(sent, axis=1).max() <= 1e-4


def test_a_soft_prompt_trains_unit_by_unit(tmp_path: Path, tiny_model: Path) -> None:
    changes = {"training__adapter": "prompt_tuning", "training__num_virtual_tokens": 3, "federation__num_rounds": 2}
    recipe = adapter_recipe(tmp_path, tiny_model, training__objective="sft", **changes)
    before = make_runtime(recipe).part.start
    finished = run(recipe)
    from safetensors.torch import load_file

    released = load_file(finished.path / "release" / "policy" / "adapter_model.safetensors")
    assert float((next(iter(released.values())).flatten() - before).abs().max()) > 1e-4
