"""The policy stage of a run: the released reward model improves the language model on public prompts.

It spends nothing: prompts, settings, schedule and the choice of the last step are public, so this is post-processing of a
released model (guarantees.md rule 13). Its inputs are recorded with their digests beside the adapter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedpref.config import PolicyConfig, Recipe
from fedpref.data.prompts import load_prompts
from fedpref.data.spec import find_dataset
from fedpref.display import Display
from fedpref.errors import UnsupportedPlanError
from fedpref.folder import RunFolder
from fedpref.journal import write_durably
from fedpref.tracking import Trackers
from policy.adapter import attach_lora
from policy.improve import Callbacks, Figures, PolicyTask, improve
from policy.rewards import WeightedRewards
from policy.settings import LoraSettings, TrainingSettings
from policy.state import PolicyState
from policy.trainer import best_against_worst, dpo_with_trl, grpo_with_trl
from reward.backbone import load_backbone

REWARD_MODEL = "reward_model"
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Groups:
    """Public prompts: to train on, and to evaluate on by the name of their group."""

    train: Rows
    evaluation: dict[str, Rows]


def load_groups(recipe: Recipe, config: PolicyConfig) -> Groups:
    """The recipe's prompts; those of unseen topics are never trained on.

    Raises:
        DatasetError: a data set that is not public, or not prompts.
    """
    unseen = recipe.evaluation.unseen_topics
    train = _rows(config, config.prompts, unseen)
    if config.test_prompts is not None:
        names = {find_dataset(name).name: name for name in config.test_prompts}
        return Groups(train, {group: _rows(config, (name,), (), training=False) for group, name in names.items()})
    held_out = [row for row in _rows(config, config.prompts, ()) if row["topic"] in unseen]
    return Groups(train, {"seen topics": train, "unseen topics": held_out})


def _rows(config: PolicyConfig, names: tuple[str, ...], leave_out: tuple[str, ...], *, training: bool = True) -> Rows:
    sets = [load_prompts(name, leave_out, training=training) for name in names]
    columns = set.intersection(*(set(rows.column_names) for rows in sets))  # a reward function sees what all rows have
    rows: Rows = [{key: value for key, value in row.items() if key in columns} for rows in sets for row in rows]
    for row in rows:
        *earlier, last = row["prompt"]
        row["prompt"] = [*earlier, {**last, "content": last["content"] + config.prompt_suffix}]
    return rows


def make_task(
    recipe: Recipe, config: PolicyConfig, rows: Sequence[Mapping[str, Any]], rewards: WeightedRewards, show: Display
) -> PolicyTask:
    """The base model with a fresh adapter, and what it is to learn."""
    backbone = load_backbone(recipe.model_name_or_path, dtype=recipe.dtype, say=show.say)
    if config.use_vllm and backbone.device.type == "cpu":
        raise UnsupportedPlanError(
            "policy.use_vllm needs a GPU.", "There is none here.", "Remove it; sampling then uses transformers."
        )
    lora = LoraSettings(config.lora_r, config.lora_alpha, config.lora_dropout, config.lora_target_modules)
    return PolicyTask(backbone, attach_lora(backbone, lora, recipe.seed), rows, rewards, settings_of(config, recipe))


def settings_of(config: PolicyConfig, recipe: Recipe) -> TrainingSettings:
    """The recipe's policy block as the policy room's settings."""
    shared = {f: getattr(config, f) for f in TrainingSettings.__dataclass_fields__ if f in type(config).model_fields}
    return TrainingSettings(**shared, seed=recipe.seed)


def train_policy(task: PolicyTask, config: PolicyConfig, folder: RunFolder, trackers: Trackers, show: Display) -> None:
    """Run the policy loop in ``folder``; the native loop goes on where a killed one stopped, TRL's trainers start anew.

    Raises:
        RewardError: coded; the state of the last whole step is kept.
    """
    total = task.settings.max_steps

    def log(step: int, figures: Figures) -> None:
        show.say(policy_line(step, total, figures))
        trackers.log({"step": step, "max_steps": total, **figures})

    scratch = folder.policy / "trl"
    if config.method == "dpo":
        pairs = best_against_worst(task, lambda done, n: show.progress("own samples", done, n))
        dpo_with_trl(task, pairs, str(scratch), log)
    elif config.backend == "trl" or (config.backend == "auto" and task.backbone.device.type != "cpu"):
        grpo_with_trl(task, str(scratch), log)
    else:
        folder.policy.mkdir(exist_ok=True)
        path = folder.policy / "state.safetensors"
        resumed = PolicyState.load(path, task.key)
        if resumed:
            show.say(f"policy loop: going on after step {resumed.step} of {total}")
        improve(task, Callbacks(log, lambda state: write_durably(path, state.to_bytes())), resumed)


def policy_line(step: int, total: int, figures: Figures) -> str:
    """One step for a person: the reward first, which says whether anything is learnt; the loss does not."""
    parts = [f"policy step {step}/{total}"]
    for name, text in (("reward", "reward"), ("reward_std", "+-"), ("loss", "loss"), ("rewards/margins", "margin")):
        if name in figures:
            parts.append(f"{text} {figures[name]:.3f}")
    if "completion_length" in figures:
        parts.append(f"{figures['completion_length']:.0f} tokens")
    if figures.get("frac_reward_zero_std", 0) > 0:
        parts.append(f"{100 * figures['frac_reward_zero_std']:.0f} % of groups without difference")
    return "  ".join(parts)


def inputs_record(recipe: Recipe, config: PolicyConfig, folder: RunFolder, task: PolicyTask) -> dict[str, Any]:
    """What the policy was made from, with digests: everything in it is public or released."""
    reward = folder.release / "reward"
    names = (*config.prompts, *(config.test_prompts or ()))
    return {
        "schema": "fedpref-policy-1",
        "base_model": recipe.model_name_or_path,
        "base_model_digest": task.backbone.digest,
        "reward_model": {p.name: _sha256(p.read_bytes()) for p in sorted(reward.iterdir()) if p.suffix != ".md"},
        "prompts": {name: find_dataset(name).sha256 for name in names},
        "prompts_digest": _sha256(json.dumps([dict(row) for row in task.rows], sort_keys=True).encode()),
        "policy": config.model_dump(mode="json"),
        "epsilon": "none spent: post-processing of the released reward model on public prompts",
    }


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
