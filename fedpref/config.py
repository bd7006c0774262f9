"""The schema of a recipe: frozen and closed. Importable without torch.

Key names are those of TRL, PEFT and Opacus wherever they exist. Defaults are the vetted setting; a recipe overrides what
it must. Everything that bears on privacy is in ``privacy`` and ``federation``; nothing outside changes a guarantee.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedpref.config_blocks import Block, Names, NonNegative, Positive, ServerOptimizerConfig, check_reward_funcs
from fedpref.config_federation import FederationConfig, PartitionConfig, PrivacyConfig
from fedpref.config_reward import LocalStepsConfig, RewardConfig
from fedpref.config_training import TrainingConfig
from policy.registry import ObjectiveSpec
from privacy.units import PrivacyUnit, Trust

__all__ = [
    "Block",
    "EvaluationConfig",
    "FederationConfig",
    "LocalStepsConfig",
    "PartitionConfig",
    "PolicyConfig",
    "PrivacyConfig",
    "Recipe",
    "RewardConfig",
    "TrainingConfig",
]


class PolicyConfig(Block):
    """The policy loop after the reward model: TRL's and PEFT's names. Public prompts only, so it costs no epsilon."""

    method: Literal["grpo", "dpo"] = "grpo"
    """`grpo`: rewards within groups of own samples; `dpo`: the best against the worst of own samples."""
    prompts: Names
    """Name or YAML of a public prompt-only data set, or a list of them; prompts of `evaluation.unseen_topics` are held out."""
    test_prompts: Names | None = None
    """Other public prompt-only data sets to evaluate on; else the prompts themselves and those of the unseen topics."""
    prompt_suffix: str = ""
    """Appended to every prompt's last message, for example to ask for a format."""
    reward_funcs: Annotated[tuple[str, ...], Field(min_length=1)] = ("reward_model",)
    """`reward_model` (this run's), `accuracy`, `format`, `length`, `repetition`, or names of the entry point group
    `fedpref.reward_funcs`."""
    reward_weights: tuple[float, ...] | None = None
    """One per reward function; default 1 each."""
    backend: Literal["auto", "native", "trl"] = "auto"
    """Of `grpo`: TRL's GRPOTrainer, or the loop of policy/improve.py; `auto` is TRL on a GPU and native on a CPU."""
    max_steps: Annotated[int, Field(ge=1)] = 25
    """Optimiser steps."""
    prompts_per_step: Annotated[int, Field(ge=1)] = 6
    """Prompts of one step; each gets num_generations completions."""
    num_generations: Annotated[int, Field(ge=2)] = 6
    """Completions of a prompt; rewards are compared among them."""
    max_completion_length: Annotated[int, Field(ge=1)] = 64
    """Tokens."""
    temperature: Positive = 1.0
    """Of sampling; the whole vocabulary is sampled from."""
    loss_type: Literal["dr_grpo", "grpo"] = "dr_grpo"
    """The losses of GRPO that do not couple prompts (guarantees.md rule 13)."""
    scale_rewards: Literal["group", "none"] = "group"
    """Divide advantages by the group's standard deviation, or not."""
    beta: NonNegative = 0.0
    """Weight of the KL to the base model (grpo), or DPO's beta (then above 0)."""
    learning_rate: Positive = 2e-4
    """Of AdamW."""
    lr_scheduler_type: Literal["constant", "linear"] = "constant"
    """`linear` falls to 0."""
    weight_decay: NonNegative = 0.0
    """Of AdamW."""
    max_grad_norm: Positive = 1.0
    """Of the adapter's gradient, for stability alone; privacy's is privacy.max_grad_norm."""
    lora_r: Annotated[int, Field(ge=1)] = 16
    """Rank of the adapter."""
    lora_alpha: Annotated[int, Field(ge=1)] = 32
    """Scale of the adapter: lora_alpha / lora_r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapter's input."""
    lora_target_modules: Annotated[tuple[str, ...], Field(min_length=1)] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Linear layers that get an adapter."""
    use_vllm: bool = False
    """Passed to TRL on a GPU; refused elsewhere."""

    @model_validator(mode="after")
    def _consistent(self) -> PolicyConfig:
        check_reward_funcs("policy", self.reward_funcs, self.reward_weights)
        if self.method == "dpo" and not self.beta:
            raise ValueError("policy.method: dpo needs policy.beta above 0 (TRL's default is 0.1)")
        if self.use_vllm and self.backend == "native":
            raise ValueError("policy.use_vllm needs policy.backend: trl")
        return self


class EvaluationConfig(Block):
    """Who and what is held out. Evaluation users are protected under `federated` alone; the report says so."""

    user_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """About this fraction of the people is held out, whole; not protected unless `federated`."""
    federated: bool = False
    """Clients score their own evaluation users; noised, booked counts leave them, and nothing is computed on raw votes."""
    target_epsilon: Positive | None = None
    """Of `federated`: what an evaluation user spends, at `privacy.target_delta`, in books of its own."""
    salt: str = "evaluation-users-v1"
    """A user is an evaluation user if the hash of salt and user_id says so: fixed here, before the run."""
    unseen_topics: tuple[str, ...] = ()
    """Topics that no training pair comes from."""
    bootstrap_samples: Annotated[int, Field(ge=100)] = 1000
    """Draws behind every 95 % interval: whole users, or whole prompts."""
    judge_layer: Annotated[int, Field(ge=1)] = 14
    """Of the held-out judge of policies: a head on another layer than reward.layer, fitted on evaluation users' votes."""
    policy_samples: Annotated[int, Field(ge=1)] = 4
    """Completions of every prompt that a policy and its base model are compared on."""


_OF_DISTRIBUTED = {
    "clients_per_round",
    "min_clients_per_round",
    "num_buckets",
    "secure_aggregation",
    "consistency",
    "colluders",
}


class Recipe(Block):
    """One run, completely."""

    model_name_or_path: str
    """The frozen base model: a folder, a hub name, or `embedded/smollm2-135m-instruct`."""
    datasets: Annotated[tuple[str, ...], Field(min_length=1)]
    """The private votes: shipped names (`fedpref data ls`), YAML descriptions, or files with TRL's columns."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the base model; `auto` is bfloat16 where a probe says that it is faster; else, and with `training`, float32."""
    max_length: Annotated[int, Field(ge=8)] = 384
    """Tokens of a rendered conversation; longer ones lose the end of the completion."""
    federation: FederationConfig
    privacy: PrivacyConfig
    reward: RewardConfig | None = None
    """A reward head on frozen features is trained; a recipe has either this block or `training`."""
    training: TrainingConfig | None = None
    """An adapter of the model is trained on the clients."""
    policy: PolicyConfig | None = None
    """The second half of a run; without it the run ends with the reward model."""
    evaluation: EvaluationConfig = EvaluationConfig()
    output_dir: str
    """The run's folder: books, checkpoints, release, report. One run, one folder."""
    report_to: tuple[Literal["none", "wandb"], ...] = ("none",)
    """Where released figures go beside `metrics.jsonl`; `wandb` stays offline unless WANDB_MODE says otherwise."""
    seed: int = 0
    """Ties order and initial values, and the bootstrap; never noise or coins unless privacy.rng is `seeded`."""

    @model_validator(mode="after")
    def _one_thing(self) -> Recipe:
        if (self.reward is None) == (self.training is None):
            raise ValueError(
                "give exactly one of the blocks `reward` (a head on frozen features) and `training` (an adapter)"
            )
        if self.training is not None and self.policy is not None:
            raise ValueError(
                "`policy` follows the block `reward`; start it from a released adapter in a run of its own, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _trust_fits(self) -> Recipe:
        """Settings of secure aggregation belong to trust `distributed`, which needs a bound on the cohort."""
        f, p = self.federation, self.privacy
        if p.trust is not Trust.DISTRIBUTED:
            blocks: tuple[tuple[str, Block], ...] = (("federation", f), ("privacy", p))
            for name, block in blocks:
                for key in _OF_DISTRIBUTED & type(block).model_fields.keys():
                    if getattr(block, key) != type(block).model_fields[key].default:
                        raise ValueError(
                            f"{name}.{key} says nothing under trust {p.trust.value}; it is for distributed"
                        )
            if p.sampling == "capped":
                raise ValueError("privacy.sampling: capped is for trust distributed")
        elif p.sampling == "capped":
            self._capped_fits()
        elif f.clients_per_round is None and f.partition.by in {"natural", "column", "file"}:
            raise ValueError(
                f"partition.by: {f.partition.by} under trust distributed needs federation.clients_per_round"
            )
        elif f.clients_per_round is None and (f.partition.num_clients or 0) < 2:
            raise ValueError("trust distributed needs two clients or more: one alone hides in no sum")
        return self

    def _capped_fits(self) -> None:
        f, p = self.federation, self.privacy
        if f.partition.by != "natural" or p.unit is not PrivacyUnit.USER:
            raise ValueError(
                "privacy.sampling: capped is for one user per client: partition.by: natural and unit: user"
            )
        if f.clients_per_round is not None:
            raise ValueError("federation.clients_per_round follows from sample_rate * num_units under sampling: capped")
        if round(p.sample_rate * f.num_units) < 2:
            raise ValueError("privacy.sampling: capped needs sample_rate * num_units of 2 or more")
        if f.num_rounds * round(p.sample_rate * f.num_units) > (p.max_participations or 0) * f.num_units:
            raise ValueError(
                "federation.num_rounds * privacy.sample_rate is more than privacy.max_participations: nobody would be left"
            )

    @model_validator(mode="after")
    def _unit_fits(self) -> Recipe:
        whole = self.privacy.unit is PrivacyUnit.CLIENT
        block, local = ("training", self.adapter.local) if self.reward is None else ("reward", self.reward.local)
        if whole and local is None:
            raise ValueError(
                f"privacy.unit: client needs {block}.local: a client's whole update is clipped once (DP-FedAvg)"
            )
        if local is not None and not whole:
            self._local_dp_sgd(block)
        if whole and self.privacy.labels == "randomized_response":
            raise ValueError(
                "privacy.labels: randomized_response does not go with unit client: nothing bounds a client's number of labels"
            )
        if whole and self.privacy.sampling == "truncated_poisson":
            raise ValueError(
                "privacy.sampling: truncated_poisson cuts the units of one client; a client is one unit here"
            )
        if self.federation.partition.by == "natural" and self.privacy.unit is PrivacyUnit.EXAMPLE:
            raise ValueError("partition.by: natural needs privacy.unit: user")
        self._judge()
        return self

    def _local_dp_sgd(self, block: str) -> None:
        """Local steps of people or records: every one noised and booked, which the reward head alone offers."""
        if block == "training":
            raise ValueError(
                "training.local needs privacy.unit: client: after the first local step every gradient depends on the client's "
                "other people, so that clipping each of them bounds nobody (guarantees.md rule 17)"
            )
        if self.privacy.trust is not Trust.LOCAL:
            raise ValueError(
                "reward.local needs privacy.unit: client, or trust: local, where every step of a client is noised; people and "
                "records take one gradient a round otherwise (guarantees.md rule 17)"
            )
        if self.privacy.sampling != "poisson" or self.privacy.clipping != "fixed":
            raise ValueError(
                "reward.local under trust: local needs privacy.sampling: poisson and privacy.clipping: fixed"
            )
        if self.federation.partition.by not in {"hash", "iid", "dirichlet", "shards"}:
            raise ValueError("reward.local under trust: local needs a partition with a declared num_clients")

    def _judge(self) -> None:
        if self.policy is not None and self.evaluation.judge_layer in (self.head.layers or ()):
            raise ValueError(
                f"evaluation.judge_layer: {self.evaluation.judge_layer} is one of reward.layers, and no "
                "held-out judge; name another layer"
            )

    @model_validator(mode="after")
    def _nothing_idle(self) -> Recipe:
        """Refuse settings of the policy's evaluation where there is no policy."""
        for key in () if self.policy is not None else ("judge_layer", "policy_samples"):
            if getattr(self.evaluation, key) != EvaluationConfig.model_fields[key].default:
                raise ValueError(f"evaluation.{key} does nothing without the block `policy`; leave it out")
        return self

    @property
    def divisor(self) -> float:
        """The public constant that sums are divided by: sample_rate x num_units (a whole cohort under `capped`; rule 4)."""
        expected = self.privacy.sample_rate * self.federation.num_units
        return float(round(expected)) if self.privacy.sampling == "capped" else expected

    @property
    def objectives(self) -> dict[str, ObjectiveSpec]:
        """The clients' objective by name: what reading this recipe again needs, if it was given as an object."""
        return {} if self.training is None else {self.training.objective: self.training.spec}

    @property
    def public_text(self) -> tuple[str, ...]:
        """Public data that the features of a reward head are fitted on; an adapter needs none."""
        return () if self.reward is None else (self.reward.public_data,)

    @property
    def head(self) -> RewardConfig:
        """The block `reward`, where it is known to be there: a run of the reward head."""
        if self.reward is None:
            raise ValueError("this recipe trains an adapter, not a reward head")
        return self.reward

    @property
    def adapter(self) -> TrainingConfig:
        """The block `training`, where it is known to be there: a run of an adapter."""
        if self.training is None:
            raise ValueError("this recipe trains a reward head, not an adapter")
        return self.training

    @property
    def server(self) -> ServerOptimizerConfig:
        """The server's optimiser."""
        return self.adapter if self.reward is None else self.reward
