"""The block ``training`` of a recipe: an adapter of the model, trained on the clients. Names are TRL's and PEFT's. No torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fedpref.config_blocks import Block, NonNegative, Positive, ServerOptimizerConfig
from policy.registry import COUPLED, OBJECTIVES

ObjectiveName = Literal["bradley_terry", "binary_selector", "dpo", "kto", "grpo", "sft"]
LOSSES: dict[str, tuple[str, ...]] = {name: spec.loss_types or (name,) for name, spec in OBJECTIVES.items()}


class LocalConfig(Block):
    """What a client does by itself before it sends one clipped update; only for privacy.unit: client (rule 17)."""

    optim: Literal["sgd", "adamw"] = "adamw"
    """Starts anew in every round: a client keeps nothing between rounds."""
    learning_rate: Positive = 1e-4
    """Of the client's optimiser; the server's is training.learning_rate."""
    num_train_epochs: Annotated[int, Field(ge=1)] = 1
    """Passes over the client's records in a round."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """At most so many steps of a client in a round, as in TRL."""
    per_device_train_batch_size: Annotated[int, Field(ge=1)] = 8
    """Records of one local step; its loss is their mean, within the client."""
    proximal_mu: NonNegative = 0.0
    """FedProx: weight of (mu / 2) |theta - broadcast theta|^2 in the local loss (Li et al. 2020, arXiv 1812.06127, eq. 2)."""


class TrainingConfig(ServerOptimizerConfig):
    """The adapter, the objective of the clients, and how the server steps."""

    objective: ObjectiveName
    """`bradley_terry`: a reward model (adapter and score head); `binary_selector`: FedBis; `dpo`, `kto`, `sft`; `grpo`: the
    clients' own prompts."""
    loss_type: str = ""
    """`dpo`: `sigmoid` (if not given), `ipo`, `hinge`, `robust`, `apo_zero`, `apo_down`, `sppo_hard`, `exo_pair`, `nca_pair`,
    `sigmoid_norm`; `grpo`: `dr_grpo` (if not given), `grpo`. Losses that couple records are refused (rule 13)."""
    beta: NonNegative | None = None
    """`dpo`, `kto`: 0.1 if not given; `grpo`: weight of the KL to the reference, 0 if not given."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """`dpo` with `robust` or `exo_pair`, and `bradley_terry`: probability that a label is wrong."""
    ref_model: Literal["base", "global"] = "base"
    """What log-ratios are taken against: the base model, or the model that the round was broadcast with."""
    adapter: Literal["lora", "lora_frozen_a", "lora_core", "prompt_tuning"] = "lora_frozen_a"
    """`lora`: A and B; `lora_frozen_a`: B alone (FFA-LoRA); `lora_core`: an r x r matrix between A and B from the base
    weights' SVD (LoRA-XS, Fed-SB); `prompt_tuning`: a soft prompt."""
    lora_r: Annotated[int, Field(ge=1)] = 8
    """Rank of the adapter."""
    lora_alpha: Annotated[int, Field(ge=1)] = 16
    """Scale of the adapter: lora_alpha / lora_r."""
    lora_target_modules: Annotated[tuple[str, ...], Field(min_length=1)] = ("q_proj", "v_proj")
    """Linear layers that get an adapter."""
    num_virtual_tokens: Annotated[int, Field(ge=1)] = 8
    """Of `prompt_tuning`."""
    aggregation: Literal["mean", "stack"] = "mean"
    """`mean`: of what clients send, exact but for A and B after local steps; `stack`: the mean of the products B A, cut back
    to rank lora_r by an SVD, where the server sees every update and adds no noise."""
    tokens_per_batch: Annotated[int, Field(ge=1)] = 2048
    """Tokens, padding included, of one forward and backward pass."""
    gradient_checkpointing: bool = False
    """Less memory, one more forward pass."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU if there is one."""
    desirable_weight: Positive = 1.0
    """Of `kto`."""
    undesirable_weight: Positive = 1.0
    """Of `kto`."""
    num_generations: Annotated[int, Field(ge=2)] = 8
    """Of `grpo`: completions of a prompt; the group is the least unit."""
    max_completion_length: Annotated[int, Field(ge=1)] = 64
    """Of `grpo`: tokens."""
    temperature: Positive = 1.0
    """Of `grpo`: of sampling and of the log-probabilities in the loss."""
    scale_rewards: Literal["group", "none"] = "group"
    """Of `grpo`: divide advantages by the group's standard deviation, or not."""
    prompt_suffix: str = ""
    """Of `grpo`: appended to every prompt's last message."""
    reward_funcs: tuple[str, ...] = ("accuracy",)
    """Of `grpo`: `accuracy`, `format`, `length`, `repetition`, entry points, or `reward_model`."""
    reward_weights: tuple[float, ...] | None = None
    """Of `grpo`: one per reward function; default 1 each."""
    reward_model: str | None = None
    """Of `grpo` with `reward_model`: the folder `release/reward` of a finished run, shared by all clients."""
    max_eval_records: Annotated[int, Field(ge=1)] = 64
    """Records of evaluation users that the adapter is measured on before and after: the first in a fixed hash order."""
    local: LocalConfig | None = None
    """Local steps; for privacy.unit: client alone, and needed there."""

    @field_validator("loss_type")
    @classmethod
    def _uncoupled(cls, value: str) -> str:
        if value in COUPLED:
            raise ValueError(
                f"{value} couples the records of a batch: {COUPLED[value]}, so that clipping a person's gradient bounds "
                "nothing (guarantees.md rule 13)"
            )
        return value

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, given: Any) -> Any:
        """Loss and beta where none are given, so that a resolved recipe shows what is used."""
        objective = given.get("objective") if isinstance(given, dict) else None
        if not isinstance(objective, str) or objective not in LOSSES:
            return given
        filled = dict(given)
        filled["loss_type"] = given.get("loss_type") or LOSSES[objective][0]
        if given.get("beta") is None and objective in {"dpo", "kto", "grpo"}:
            filled["beta"] = 0.0 if objective == "grpo" else 0.1
        return filled

    @model_validator(mode="after")
    def _fits_the_objective(self) -> TrainingConfig:
        if self.loss_type not in LOSSES[self.objective]:
            raise ValueError(
                f"training.loss_type: {self.loss_type} is none of {self.objective}'s: {', '.join(LOSSES[self.objective])}"
            )
        if self.objective == "bradley_terry" and self.adapter == "prompt_tuning":
            raise ValueError(
                "training.adapter: prompt_tuning does not go with bradley_terry: PEFT feeds a soft prompt to classifiers "
                "in another way than the trained score sees it"
            )
        if self.objective in {"dpo", "kto"} and not self.beta:
            raise ValueError(f"training.objective: {self.objective} needs beta above 0 (TRL's default is 0.1)")
        if self.loss_type == "exo_pair" and not self.label_smoothing:
            raise ValueError("training.loss_type: exo_pair needs label_smoothing above 0")
        smoothed = self.loss_type in {"robust", "exo_pair", "bradley_terry"}
        if self.label_smoothing and not smoothed:
            raise ValueError(f"training.label_smoothing does nothing under loss_type: {self.loss_type}")
        if (self.reward_model is not None) != ("reward_model" in self.reward_funcs):
            raise ValueError(
                "training.reward_model is the folder of the function `reward_model` in reward_funcs: give both"
            )
        if self.reward_weights is not None and len(self.reward_weights) != len(self.reward_funcs):
            raise ValueError("training.reward_weights needs one number per reward function")
        return self

    @model_validator(mode="after")
    def _own_keys(self) -> TrainingConfig:
        readers: dict[str, set[str]] = {
            **{key: {"kto"} for key in ("desirable_weight", "undesirable_weight")},
            **{key: {"grpo"} for key in _GRPO_KEYS},
        }
        for key, allowed in readers.items():
            if self.objective not in allowed and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"training.{key} does nothing under objective: {self.objective}")
        if self.objective not in {"dpo", "kto", "grpo"} and (self.beta is not None or self.ref_model != "base"):
            raise ValueError(
                f"training.beta and ref_model do nothing under objective: {self.objective}: it has no reference"
            )
        return self


_GRPO_KEYS = (
    "num_generations",
    "max_completion_length",
    "temperature",
    "scale_rewards",
    "prompt_suffix",
    "reward_funcs",
    "reward_weights",
)
