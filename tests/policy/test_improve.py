"""The policy loop on a tiny model: it learns what is rewarded, resumes exactly, and refuses what it cannot do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from policy.adapter import adapter_arrays, adapter_files, attach_lora
from policy.evaluate import kl_to_base, wins
from policy.improve import Callbacks, PolicyTask, improve, prompts_of_step
from policy.rewards import WeightedRewards
from policy.settings import LoraSettings, TrainingSettings
from policy.state import PolicyState
from policy.trainer import best_against_worst, dpo_with_trl, grpo_with_trl
from reward.backbone import load_backbone
from reward.errors import AdapterError, PolicyTrainingError, PromptError, RewardFunctionError
from reward.model import load_adapter

ROWS = [{"prompt": f"Say {word}.", "topic": word} for word in ("a", "b", "c", "d", "e")]
SETTINGS = TrainingSettings(
    max_steps=6, prompts_per_step=2, num_generations=6, max_completion_length=8, learning_rate=0.02, seed=3
)


def even(completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float | None]:
    """Tokens with an even number: half of them at the start."""
    return [float(sum(i % 2 == 0 for i in ids)) for ids in completion_ids]


def mean_even(task: PolicyTask) -> float:
    rollout = replace(task, settings=replace(task.settings, prompts_per_step=40)).sample(99)
    return float(np.mean(even(rollout.completions, rollout.completion_ids.tolist())))


def make_task(model: Path, func: Any = even, settings: TrainingSettings = SETTINGS, **changes: Any) -> PolicyTask:
    backbone = load_backbone(str(model), dtype="float32")
    with torch.no_grad():  # a random model's logits are too small for any adapter to matter
        backbone.model.lm_head.weight.mul_(30)
    lora = LoraSettings(lora_r=8, lora_alpha=16)
    task = PolicyTask(backbone, attach_lora(backbone, lora), ROWS, WeightedRewards({"f": func}, (1.0,)), settings)
    return replace(task, **changes)


def recorded(task: PolicyTask, resumed: PolicyState | None = None) -> tuple[list[PolicyState], list[dict[str, float]]]:
    states: list[PolicyState] = []
    figures: list[dict[str, float]] = []
    improve(task, Callbacks(lambda step, f: figures.append({"step": step, **f}), states.append), resumed)
    return states, figures


def test_the_reward_rises(tiny_model: Path) -> None:
    _, figures = recorded(make_task(tiny_model, settings=replace(SETTINGS, max_steps=25)))
    first, last = (np.mean([f["reward"] for f in part]) for part in (figures[:5], figures[-5:]))
    assert last > first + 1
    assert [f["step"] for f in figures] == list(range(1, 26))
    assert set(figures[0]) >= {"reward", "reward_std", "frac_reward_zero_std", "completion_length", "rewards/f"}


def test_a_killed_loop_goes_on_exactly(tiny_model: Path, tmp_path: Path) -> None:
    whole = make_task(tiny_model)
    states, figures = recorded(whole)
    path = tmp_path / "policy.safetensors"
    path.write_bytes(states[2].to_bytes())
    again = make_task(tiny_model)
    torch.rand(5)
    resumed = PolicyState.load(path, again.key)
    assert resumed is not None
    assert resumed.step == 3
    _, later = recorded(again, resumed)
    assert later == figures[3:]
    for name, value in adapter_arrays(whole.model).items():
        assert torch.equal(value, adapter_arrays(again.model)[name])


def test_a_state_of_other_settings_or_a_damaged_one_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    task = make_task(tiny_model, settings=replace(SETTINGS, max_steps=1))
    states, _ = recorded(task)
    path = tmp_path / "policy.safetensors"
    assert PolicyState.load(path, task.key) is None
    path.write_bytes(states[0].to_bytes())
    assert PolicyState.load(path, task.key) is not None
    for content, key in ((states[0].to_bytes(), "other"), (states[0].to_bytes()[:-9], task.key), (b"", task.key)):
        path.write_bytes(content)
        with pytest.raises(PolicyTrainingError, match="cannot go on"):
            PolicyState.load(path, key)


def test_equal_rewards_change_nothing(tiny_model: Path) -> None:
    task = make_task(tiny_model, lambda completions, **_: [1.0] * len(completions))
    before = adapter_arrays(task.model)
    _, figures = recorded(task)
    assert all(torch.equal(value, before[name]) for name, value in adapter_arrays(task.model).items())
    assert {f["frac_reward_zero_std"] for f in figures} == {1.0}


@pytest.mark.slow  # seconds
def test_the_kl_penalty_holds_the_policy_near_its_base(tiny_model: Path) -> None:
    drift = {}
    for beta in (0.0, 5.0):
        task = make_task(tiny_model, settings=replace(SETTINGS, beta=beta, max_steps=12))
        recorded(task)
        rollout = replace(task, settings=replace(SETTINGS, prompts_per_step=5)).sample(0)
        drift[beta] = kl_to_base(task.model, rollout, SETTINGS.num_generations).mean()
    assert 0 <= abs(drift[5.0]) < 0.5 * drift[0.0]


def test_kl_of_the_base_model_to_itself_is_zero(tiny_model: Path) -> None:
    task = make_task(tiny_model)
    np.testing.assert_allclose(kl_to_base(task.model, task.sample(0), SETTINGS.num_generations), 0, atol=1e-5)


def test_wins_count_every_pair_and_half_for_ties() -> None:
    policy, base = np.array([[1.0, 2.0], [0.0, np.nan]]), np.array([[1.0, 0.0], [5.0, 5.0]])
    assert wins(policy, base).tolist() == [[[0.5, 1.0], [1.0, 1.0]], [[0.0, 0.0], [0.5, 0.5]]]


def test_prompts_come_in_shuffled_passes() -> None:
    settings = replace(SETTINGS, prompts_per_step=5)
    passes = [prompts_of_step(5, step, settings) for step in range(4)]
    assert all(sorted(p) == list(range(5)) for p in passes)
    assert len({tuple(p) for p in passes}) > 1
    longer = prompts_of_step(3, 0, replace(SETTINGS, prompts_per_step=7))
    assert sorted(longer[:3]) == sorted(longer[3:6]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("prompt", "why"),
    [("", "empty"), ("  ", "empty"), ("long " * 60, "too long"), ([{"role": "user", "content": ""}], "empty")],
)
def test_prompts_that_cannot_be_answered_are_refused(tiny_model: Path, prompt: Any, why: str) -> None:
    with pytest.raises(PromptError, match=why):
        improve(make_task(tiny_model, rows=[{"prompt": prompt}]))


def test_nothing_to_train_is_refused(tiny_model: Path) -> None:
    with pytest.raises(PolicyTrainingError, match="nothing to train"):
        improve(make_task(tiny_model, rows=[]))


def test_a_reward_function_that_fails_keeps_the_steps_before(tiny_model: Path) -> None:
    calls = 0

    def tiring(completions: Sequence[Any], **columns: Any) -> list[float | None]:
        nonlocal calls
        calls += 1
        return even(completions, **columns) if calls < 3 else [None, *even(completions, **columns)]

    states: list[PolicyState] = []
    with pytest.raises(RewardFunctionError, match="instead of a list of 12"):
        improve(make_task(tiny_model, tiring), Callbacks(save=states.append))
    assert [state.step for state in states] == [1, 2]


def test_an_adapter_survives_saving_and_is_refused_by_another_model(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, LlamaForCausalLM

    task = make_task(tiny_model)
    recorded(task)
    (tmp_path / "policy").mkdir()
    for name, content in adapter_files(task.model, "tiny").items():
        (tmp_path / "policy" / name).write_bytes(content)
    loaded = load_adapter(load_backbone(str(tiny_model), dtype="float32"), tmp_path / "policy")
    ids = torch.tensor([[5, 6, 7]])
    trained = task.model.eval()(input_ids=ids).logits / 30  # the head of `make_task`
    torch.testing.assert_close(loaded(input_ids=ids).logits, trained, rtol=1e-4, atol=1e-5)
    config = AutoConfig.from_pretrained(tiny_model)
    config.hidden_size, config.num_attention_heads = 64, 8
    other = load_backbone(str(tiny_model), dtype="float32")
    with pytest.raises(AdapterError, match="does not belong"):
        load_adapter(replace(other, model=LlamaForCausalLM(config)), tmp_path / "policy")
    with pytest.raises(AdapterError, match="does not belong"):
        load_adapter(other, tmp_path / "nothing")


def test_modules_that_the_model_lacks_are_refused(tiny_model: Path) -> None:
    with pytest.raises(AdapterError, match="does not fit"):
        attach_lora(load_backbone(str(tiny_model)), LoraSettings(lora_target_modules=("no_such",)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_trl_trains_the_same_task(tiny_model: Path, tmp_path: Path, beta: float) -> None:
    task = make_task(tiny_model, settings=replace(SETTINGS, max_steps=25, beta=beta))
    figures: list[dict[str, float]] = []
    grpo_with_trl(task, str(tmp_path), lambda step, f: figures.append({"step": step, **f}))
    rewards = [f["reward"] for f in figures if "reward" in f]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 1
    assert {"reward_std", "completion_length", "rewards/f"} <= set(figures[0])
    assert list(task.model.peft_config) == ["default"]
    assert not list(tmp_path.rglob("*.arrow"))
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_dpo_on_the_best_and_worst_of_own_samples(tiny_model: Path, tmp_path: Path) -> None:
    task = make_task(tiny_model, settings=replace(SETTINGS, max_steps=25, beta=0.1, learning_rate=0.005))
    before = mean_even(task)
    pairs = best_against_worst(task)
    assert len(pairs) <= 25 * 2
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs)
    dpo_with_trl(task, pairs, str(tmp_path))
    assert mean_even(task) > before + 0.2


def test_equal_rewards_give_no_pair(tiny_model: Path) -> None:
    with pytest.raises(PolicyTrainingError, match="nothing to learn"):
        best_against_worst(make_task(tiny_model, lambda completions, **_: [0.0] * len(completions)))
