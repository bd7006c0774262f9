"""A flat TRL YAML's keys: those that mean the same here move to their place; the others are named with the reason.

`trl grpo --config x.yaml` and `trl dpo --config x.yaml` read flat keys. A recipe with a `policy` block may
use them at its top level; the same thing twice is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedpref.errors import RecipeError

SAME: dict[str, str] = {
    key: f"policy.{key}"
    for key in (
        "beta",
        "learning_rate",
        "lora_alpha",
        "lora_dropout",
        "lora_r",
        "lora_target_modules",
        "loss_type",
        "lr_scheduler_type",
        "max_completion_length",
        "max_grad_norm",
        "max_steps",
        "num_generations",
        "reward_funcs",
        "reward_weights",
        "scale_rewards",
        "temperature",
        "use_vllm",
        "weight_decay",
    )
}
OTHERWISE: dict[str, str] = {
    "attn_implementation": "transformers chooses",
    "bf16": "`dtype` says it",
    "dataset_name": "private feedback is `datasets`, public prompts are `policy.prompts`",
    "eval_strategy": "held-out figures come once, at the end",
    "fp16": "`dtype` says it",
    "gradient_accumulation_steps": "a step takes `policy.prompts_per_step` prompts, a group at a time",
    "gradient_checkpointing": "it is on where there is a GPU",
    "hub_model_id": "nothing is pushed; upload `release/` yourself",
    "log_completions": "completions are never logged; `samples.json` holds those of the evaluation",
    "logging_steps": "every step is logged",
    "num_train_epochs": "`policy.max_steps` counts steps",
    "per_device_train_batch_size": "a step takes `policy.prompts_per_step` prompts, a group at a time",
    "push_to_hub": "nothing is pushed; upload `release/` yourself",
    "save_steps": "every step is saved",
    "save_strategy": "every step is saved",
    "use_peft": "the policy is always an adapter",
}


def from_trl(tree: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """Move TRL's flat keys of the policy to ``policy.KEY``.

    Args:
        tree: a recipe as read.
        known: keys of a recipe's own top level, which stay.

    Raises:
        RecipeError: a key of TRL that means nothing here, or one that is given in both places.
    """
    if not isinstance(tree.get("policy"), Mapping):
        return dict(tree)  # without a policy block, what a key is meant for is the schema's to say
    moved = {key: value for key, value in tree.items() if key in known or key not in SAME}
    foreign = sorted(key for key in moved if key in OTHERWISE and key not in known)
    if foreign:
        raise RecipeError(
            f"TRL's key {foreign[0]!r} has no counterpart here.",
            f"{OTHERWISE[foreign[0]]}." + (f" Also: {', '.join(foreign[1:])}." if foreign[1:] else ""),
            "Remove it; docs/config.md lists all keys.",
        )
    flat = {key: value for key, value in tree.items() if key in SAME and key not in known}
    if not flat:
        return moved
    block = tree["policy"]
    twice = sorted(flat.keys() & block.keys())
    if twice:
        raise RecipeError(
            f"{twice[0]!r} is given twice.", f"As {twice[0]!r} and as 'policy.{twice[0]}'.", "Remove one of them."
        )
    return {**moved, "policy": {**block, **flat}}
