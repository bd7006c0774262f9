"""Settings of the policy loop, under the names of TRL's GRPOConfig and DPOConfig and PEFT's LoraConfig."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LoraSettings:
    """The adapter that is trained; the base model stays as it is."""

    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    lora_target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class TrainingSettings:
    """One run of the policy loop.

    Attributes:
        prompts_per_step: prompts of one optimiser step; each gets ``num_generations`` completions.
        max_completion_length: tokens.
        temperature: of sampling, and of the log-probabilities in the loss (as in TRL).
        loss_type: ``dr_grpo`` or ``grpo`` (GRPO); the other losses of TRL normalise over the batch (guarantees.md rule 13).
        scale_rewards: ``group`` divides a group's advantages by their standard deviation; ``none`` does not.
        beta: weight of the KL to the base model (GRPO), or DPO's beta.
    """

    max_steps: int = 25
    prompts_per_step: int = 6
    num_generations: int = 6
    max_completion_length: int = 64
    temperature: float = 1.0
    loss_type: Literal["dr_grpo", "grpo"] = "dr_grpo"
    scale_rewards: Literal["group", "none"] = "group"
    beta: float = 0.0
    learning_rate: float = 2e-4
    lr_scheduler_type: Literal["constant", "linear"] = "constant"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    use_vllm: bool = False
    seed: int = 0

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of a step (from 0), without warm-up; ``linear`` falls to 0 after the last one."""
        if self.lr_scheduler_type == "constant":
            return self.learning_rate
        return self.learning_rate * (self.max_steps - step) / self.max_steps
