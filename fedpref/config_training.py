"""The block ``training`` of a recipe: an adapter of the model, trained on the clients. Names are TRL's and PEFT's. No torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from fedpref.config_blocks import Block, NonNegative, Positive, ServerOptimizerConfig, check_reward_funcs
from policy.registry import COUPLED, ObjectiveSpec, find_objective
from reward.errors import ObjectiveNameError


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

    objective: str
    """`bradley_terry`: a reward model (adapter and score head); `binary_selector`: FedBis; `dpo`, `kto`, `sft`; `grpo`: the
    clients' own prompts; or a name of the entry point group `fedpref.objectives`."""
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

    _spec: ObjectiveSpec = PrivateAttr()

    @property
    def spec(self) -> ObjectiveSpec:
        """The objective, which knows all about itself."""
        return self._spec

    @property
    def samples(self) -> bool:
        """Do clients sample completions of their prompts?"""
        return self.spec.batch == "groups"

    @property
    def settings(self) -> dict[str, Any]:
        """What the objective is built with."""
        keys = (*self.spec.settings, *(("beta",) if self.spec.beta is not None else ()))
        return {"loss_type": self.loss_type, **{key: getattr(self, key) for key in keys}}

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, given: Any, info: ValidationInfo) -> Any:
        """Loss and beta where none are given, so that a resolved recipe shows what is used."""
        name = given.get("objective") if isinstance(given, dict) else None
        if not isinstance(name, str):
            return given
        spec, filled = _find(name, info), dict(given)
        filled["loss_type"] = given.get("loss_type") or (*spec.loss_types, spec.name)[0]
        if given.get("beta") is None:
            filled["beta"] = spec.beta
        return filled

    @model_validator(mode="after")
    def _fits_the_objective(self, info: ValidationInfo) -> TrainingConfig:
        self._spec = spec = _find(self.objective, info)
        offered = spec.loss_types or (spec.name,)
        if self.loss_type not in offered:
            raise ValueError(f"training.loss_type: {self.loss_type} is none of {spec.name}'s: {', '.join(offered)}")
        if foreign := set(spec.settings) - type(self).model_fields.keys():
            raise ValueError(f"training.objective: {spec.name} reads {foreign.pop()}, which is no key of this block")
        if spec.score and self.adapter == "prompt_tuning":
            raise ValueError(
                f"training.adapter: prompt_tuning does not go with {spec.name}: PEFT feeds a soft prompt to classifiers "
                "in another way than the trained score sees it"
            )
        if self.samples and self.adapter == "prompt_tuning":
            raise ValueError(
                f"training.adapter: prompt_tuning does not go with {spec.name}: PEFT cannot sample completions behind a "
                "soft prompt with this version of transformers"
            )
        if spec.beta and not self.beta:
            raise ValueError(f"training.objective: {spec.name} needs beta above 0 ({spec.beta:g} if it is not given)")
        if self.loss_type == "exo_pair" and not self.label_smoothing:
            raise ValueError("training.loss_type: exo_pair needs label_smoothing above 0")
        check_reward_funcs("training", self.reward_funcs, self.reward_weights)
        if (self.reward_model is not None) != ("reward_model" in self.reward_funcs):
            raise ValueError(
                "training.reward_model is the folder of the function `reward_model` in reward_funcs: give both"
            )
        return self

    @model_validator(mode="after")
    def _nothing_idle(self) -> TrainingConfig:
        """Refuse settings that nothing reads, rather than let somebody believe in them."""
        for key, reason in self._idle().items():
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"training.{key} does nothing under {reason}; leave it out")
        return self

    def _idle(self) -> dict[str, str]:
        """Key -> under what it is read by nobody."""
        objective, soft = f"objective: {self.objective}", self.adapter == "prompt_tuning"
        idle = dict.fromkeys(_OF_OBJECTIVES, objective)
        idle |= dict.fromkeys(() if self.samples else _OF_SAMPLING, objective)
        idle |= {} if self.spec.beta is not None else {"beta": f"{objective}, which has no reference"}
        if not self.spec.reference and not (self.samples and self.beta):
            idle["ref_model"] = f"{objective}{', beta: 0' if self.samples else ''}, which has no reference"
        for key in self.spec.settings:
            idle.pop(key, None)
        if self.objective == "dpo" and self.loss_type not in {"robust", "exo_pair"}:
            idle["label_smoothing"] = f"loss_type: {self.loss_type}"
        return idle | dict.fromkeys(_OF_LORA if soft else ("num_virtual_tokens",), f"adapter: {self.adapter}")


def _find(name: str, info: ValidationInfo) -> ObjectiveSpec:
    try:
        return find_objective(name, (info.context or {}).get("objectives"))
    except ObjectiveNameError as error:
        raise ValueError(f"training.objective: {error.what} {error.why} {error.fix}") from None


_OF_OBJECTIVES = ("label_smoothing", "desirable_weight", "undesirable_weight")
_OF_SAMPLING = (
    "num_generations",
    "max_completion_length",
    "temperature",
    "scale_rewards",
    "prompt_suffix",
    "reward_funcs",
    "reward_weights",
    "reward_model",
)
_OF_LORA = ("lora_r", "lora_alpha", "lora_target_modules")
