"""The policy loop by TRL's own trainers: GRPOTrainer on a GPU, DPOTrainer everywhere.

Telemetry, completion logs, model cards, checkpoints and Arrow caches of TRL stay off.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from policy.adapter import ADAPTER
from policy.improve import Figures, PolicyTask, reward_rollout
from policy.rollout import as_messages
from reward.backbone import quiet_transformers
from reward.errors import PolicyTrainingError

Log = Callable[[int, Figures], None]
RENAMED = {"completions/mean_length": "completion_length", "completions/clipped_ratio": "clipped_ratio"}
KEPT = ("reward", "reward_std", "frac_reward_zero_std", "kl", "grad_norm", "learning_rate", "loss", "rewards/")


def grpo_with_trl(task: PolicyTask, output_dir: str, log: Log = lambda step, figures: None) -> None:
    """``policy.improve`` by TRL's GRPOTrainer, ``use_vllm`` and all; trains the task's adapter in place."""
    silence_hub()
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    settings, rewards = task.settings, task.rewards
    functions: list[Any] = [rewards.checked(name) for name in rewards.funcs]
    arguments = GRPOConfig(
        **_common(task, output_dir),
        per_device_train_batch_size=settings.num_generations,
        gradient_accumulation_steps=settings.prompts_per_step,
        num_generations=settings.num_generations,
        max_completion_length=settings.max_completion_length,
        temperature=settings.temperature,
        loss_type=settings.loss_type,
        scale_rewards=settings.scale_rewards,
        use_vllm=settings.use_vllm,
        reward_weights=list(rewards.weights),
    )
    dataset = Dataset.from_list([{**row, "prompt": as_messages(row["prompt"])} for row in task.rows])
    with quiet_transformers(), _quiet_datasets():
        trainer = GRPOTrainer(
            model=task.model,
            reward_funcs=functions,
            args=arguments,
            train_dataset=dataset,
            processing_class=task.backbone.tokenizer,
            callbacks=[_logger(log)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    _drop_reference(task.model)


def best_against_worst(
    task: PolicyTask, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[dict[str, Any]]:
    """Preference pairs from the policy's own samples: the best and the worst of each group (FedBis, phase two).

    A group whose rewards are all equal gives no pair.

    Raises:
        PolicyTrainingError: no group has two different rewards.
    """
    pairs: list[dict[str, Any]] = []
    settings = task.settings
    for step in range(settings.max_steps):
        rollout = task.sample(step)
        scores = task.rewards.total(reward_rollout(task.rewards, rollout)).view(-1, settings.num_generations)
        for group, values in enumerate(scores):
            first, best, worst = group * settings.num_generations, int(values.argmax()), int(values.argmin())
            if values[best] > values[worst]:
                pairs.append(
                    {
                        "prompt": as_messages(rollout.rows[first]["prompt"]),
                        "chosen": [{"role": "assistant", "content": rollout.completions[first + best]}],
                        "rejected": [{"role": "assistant", "content": rollout.completions[first + worst]}],
                    }
                )
        progress(step + 1, settings.max_steps)
    if not pairs:
        raise PolicyTrainingError(
            "There is nothing to learn from.",
            "All completions of every prompt got the same reward.",
            "Use another reward function, a higher temperature or more generations.",
        )
    return pairs


def dpo_with_trl(
    task: PolicyTask, pairs: Sequence[Mapping[str, Any]], output_dir: str, log: Log = lambda step, figures: None
) -> None:
    """DPO (Rafailov et al. 2023) on pairs, by TRL's DPOTrainer, against the base model; trains the adapter in place."""
    silence_hub()
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    arguments = DPOConfig(
        **_common(task, output_dir),
        per_device_train_batch_size=task.settings.prompts_per_step,
        max_length=None,
    )
    with quiet_transformers(), _quiet_datasets():
        trainer = DPOTrainer(
            model=task.model,
            args=arguments,
            train_dataset=Dataset.from_list([dict(pair) for pair in pairs]),
            processing_class=task.backbone.tokenizer,
            callbacks=[_logger(log)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    _drop_reference(task.model)


def _drop_reference(model: Any) -> None:
    """TRL keeps the frozen start of the adapter, which equals the base model, as a second adapter; nobody needs it now."""
    for name in [n for n in model.peft_config if n != ADAPTER]:
        model.delete_adapter(name)
    model.set_adapter(ADAPTER)


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()


def silence_hub() -> None:
    """TRL reports its use to a server from every trainer's constructor, unless this is set before."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


def _common(task: PolicyTask, output_dir: str) -> dict[str, Any]:
    settings, on_cpu = task.settings, task.backbone.device.type == "cpu"
    return {
        "output_dir": output_dir,
        "max_steps": settings.max_steps,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler_type,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "beta": settings.beta,
        "seed": settings.seed,
        "use_cpu": on_cpu,
        "bf16": not on_cpu,
        "gradient_checkpointing": not on_cpu,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }


def _logger(log: Log) -> Any:
    from transformers import TrainerCallback

    class Logger(TrainerCallback):
        """Passes TRL's figures on; prints nothing."""

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            """One step's figures, under the names of ``policy.improve``."""
            named = {
                RENAMED.get(k, k.removesuffix("/mean")): float(v) for k, v in (logs or {}).items() if _is_number(v)
            }
            known = {k: v for k, v in named.items() if k in RENAMED.values() or k.startswith(KEPT)}
            figures = {k: v for k, v in known.items() if not k.endswith("/std")}
            if "reward" in figures or "loss" in figures:
                log(int(state.global_step), figures)

    return Logger()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))
