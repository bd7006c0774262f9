"""The policy loop: sample, score, step. GRPO (Shao et al. 2024) on public prompts, on one machine.

    for step in 1 .. max_steps:
        draw prompts; sample a group of completions of each from the policy
        reward them; advantage = reward against its own group
        one AdamW step on the adapter

TRL's GRPOTrainer does the same on a GPU (``policy.trainer``). On a CPU this loop takes 0.7 of its time and of its memory at
the size of the quickstart, because a group's prompt is computed once and the head only sees completions, and a killed
loop goes on exactly (docs/adr/0006).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policy.adapter import trainable_parameters
from policy.logprobs import group_logprobs
from policy.losses import group_advantages, grpo_loss
from policy.rewards import WeightedRewards
from policy.rollout import Rollout, as_messages, sample_rollout
from policy.settings import TrainingSettings
from policy.state import PolicyState
from reward.backbone import Backbone
from reward.errors import PolicyTrainingError

Figures = dict[str, float]


@dataclass(frozen=True)
class Callbacks:
    """Where a loop's figures and states go."""

    log: Callable[[int, Figures], None] = lambda step, figures: None
    save: Callable[[PolicyState], None] = lambda state: None


@dataclass(frozen=True)
class PolicyTask:
    """What is improved, on what, by what.

    Attributes:
        backbone: tokenizer, device, and the base model inside ``model``.
        model: a PEFT model from ``attach_lora``; its adapter is trained in place.
        rows: a public prompt-only data set: ``prompt`` and the columns that the reward functions read.
    """

    backbone: Backbone
    model: Any
    rows: Sequence[Mapping[str, Any]]
    rewards: WeightedRewards
    settings: TrainingSettings

    def sample(self, step: int) -> Rollout:
        """The completions of a step: a pure function of policy, seed and step."""
        settings = self.settings
        return sample_rollout(
            self.backbone,
            self.model,
            [self.rows[i] for i in prompts_of_step(len(self.rows), step, settings)],
            num_generations=settings.num_generations,
            max_completion_length=settings.max_completion_length,
            temperature=settings.temperature,
            seed=settings.seed * 1_000_003 + step,
        )

    @property
    def key(self) -> str:
        """Digest of all that a resumed loop must share with the interrupted one."""
        rows = [dict(row) for row in self.rows]
        content = [asdict(self.settings), list(self.rewards.funcs), self.rewards.weights, rows]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def improve(task: PolicyTask, callbacks: Callbacks = Callbacks(), resumed: PolicyState | None = None) -> None:
    """Improve the task's adapter in place.

    Args:
        resumed: where an interrupted loop stood; the steps after it are those of an unbroken one.

    Raises:
        PolicyTrainingError: no prompts, or nothing that can be trained.
        PromptError, RewardFunctionError: see there. States saved before stay good.
    """
    settings, parameters = task.settings, [p for _, p in trainable_parameters(task.model)]
    if not task.rows or not parameters:
        raise PolicyTrainingError(
            "There is nothing to train.",
            "The model has no adapter." if task.rows else "The data set has no prompts.",
            "Check policy.prompts and policy.lora_target_modules.",
        )
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    if resumed is not None:
        resumed.restore(task.model, optimizer)
    for step in range(resumed.step if resumed else 0, settings.max_steps):
        rollout = task.sample(step)
        by_func = reward_rollout(task.rewards, rollout)
        scores = task.rewards.total(by_func).view(-1, settings.num_generations)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate_at(step)
        trained = _train_step(task, rollout, scores, optimizer)
        callbacks.save(PolicyState.take(step + 1, task.key, task.model, optimizer))
        callbacks.log(step + 1, {**_figures(task, rollout, by_func, scores), **trained})


def prompts_of_step(num_prompts: int, step: int, settings: TrainingSettings) -> list[int]:
    """Which prompts a step takes: endless shuffled passes over all of them, a pure function of seed and step."""
    first = step * settings.prompts_per_step
    places = range(first, first + settings.prompts_per_step)
    passes = {place // num_prompts for place in places}
    order = {p: np.random.default_rng((settings.seed, p)).permutation(num_prompts) for p in passes}
    return [int(order[place // num_prompts][place % num_prompts]) for place in places]


def reward_rollout(rewards: WeightedRewards, rollout: Rollout) -> Tensor:
    """Rewards by function, shape [n, functions]; functions get the conversational form and the data set's columns."""
    columns = {name: [row[name] for row in rollout.rows] for name in rollout.rows[0] if name != "prompt"}
    lengths = rollout.lengths.tolist()
    return rewards(
        [as_messages(row["prompt"]) for row in rollout.rows],
        [[{"role": "assistant", "content": text}] for text in rollout.completions],
        completion_ids=[ids[:n].tolist() for ids, n in zip(rollout.completion_ids, lengths, strict=True)],
        **columns,
    )


def _train_step(task: PolicyTask, rollout: Rollout, scores: Tensor, optimizer: torch.optim.Optimizer) -> Figures:
    """One optimiser step; a group at a time, so memory does not grow with the number of prompts."""
    settings, penalties = task.settings, []
    task.model.train()
    optimizer.zero_grad(set_to_none=True)
    for i, group_scores in enumerate(scores):
        advantages = group_advantages(group_scores, settings.scale_rewards)
        if settings.beta == 0 and not advantages.any():
            continue  # all rewards equal: the gradient is exactly zero
        members = slice(i * len(group_scores), (i + 1) * len(group_scores))
        loss, kl = _group_loss(task, rollout, members, advantages)
        (loss.sum() / scores.numel()).backward()
        penalties.append(kl)
    parameters = [p for _, p in trainable_parameters(task.model)]
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm))
    if np.isfinite(norm):
        optimizer.step()
    figures = {"grad_norm": norm, "learning_rate": optimizer.param_groups[0]["lr"]}
    return {**figures, "kl": float(np.mean(penalties))} if settings.beta and penalties else figures


def _group_loss(task: PolicyTask, rollout: Rollout, members: slice, advantages: Tensor) -> tuple[Tensor, float]:
    """Loss of every completion of a group, shape [G], and its mean KL to the base model per token."""
    settings, length = task.settings, int(rollout.lengths[members].max())
    ids, mask = rollout.completion_ids[members, :length], rollout.completion_mask[members, :length]
    prompt = rollout.prompt_ids[members.start].to(ids.device)
    reference = None
    if settings.beta:
        with torch.no_grad(), task.model.disable_adapter():
            reference = group_logprobs(task.model, prompt, ids, mask, settings.temperature)
    logprobs = group_logprobs(task.model, prompt, ids, mask, settings.temperature)
    loss = grpo_loss(
        logprobs,
        mask,
        advantages.to(ids.device),
        loss_type=settings.loss_type,
        max_completion_length=settings.max_completion_length,
        ref_logprobs=reference,
        beta=settings.beta,
    )
    if reference is None:
        return loss, 0.0
    gap = torch.where(mask.bool(), reference - logprobs.detach(), 0.0)
    return loss, float((torch.exp(gap) - gap - 1).sum() / mask.sum().clamp(min=1))


def _figures(task: PolicyTask, rollout: Rollout, by_func: Tensor, scores: Tensor) -> Figures:
    """What TRL logs, under its names."""
    lengths = rollout.lengths.float()
    spread = scores.std(1) if scores.shape[1] > 1 else torch.zeros(len(scores))
    figures = {
        "reward": float(scores.mean()),
        "reward_std": float(spread.mean()),
        "frac_reward_zero_std": float((spread == 0).float().mean()),
        "completion_length": float(lengths.mean()),
        "clipped_ratio": float((lengths == task.settings.max_completion_length).float().mean()),
    }
    for name, column in zip(task.rewards.funcs, by_func.T, strict=True):
        figures[f"rewards/{name}"] = float(torch.nanmean(column))
    return figures
