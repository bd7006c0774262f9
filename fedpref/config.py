"""The schema of a recipe: frozen and closed. Importable without torch.

Key names are those of TRL, PEFT and Opacus wherever they exist. Defaults are the vetted setting; a recipe overrides what
it must. Everything that bears on privacy is in ``privacy`` and ``federation``; nothing outside changes a guarantee.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedpref.config_blocks import Block, Fraction, NonNegative, Positive, ServerOptimizerConfig
from fedpref.config_training import TrainingConfig
from privacy.units import PrivacyUnit, Trust


class PartitionConfig(Block):
    """How users become clients (the simulated federation of one machine). A user is always whole in one client."""

    by: Literal["hash", "iid", "dirichlet", "shards", "natural", "column", "file"] = "hash"
    """`hash`: users into `num_clients` by their names; `iid`: the same in equal numbers; `dirichlet`: those who share a
    value of `partition_by` are dealt by shares drawn from Dirichlet(`alpha`); `shards`: sorted by `partition_by`, cut, dealt;
    `natural`: one user = one client; `column`: one client per value of the data set's `client` field; `file`: the data
    set's source is a folder, one file per client."""
    num_clients: Annotated[int, Field(ge=1)] | None = 10
    """For `hash`, `iid`, `dirichlet` and `shards`."""
    partition_by: Literal["topic", "client"] = "topic"
    """For `dirichlet` and `shards`: the field whose most frequent value among a user's rows decides. Declared public: who
    belongs where is no secret in a simulated federation."""
    alpha: Positive = 0.5
    """For `dirichlet`: small means that clients differ."""
    num_shards_per_partition: Annotated[int, Field(ge=1)] = 2
    """For `shards`: how many shards a client gets."""
    seed: int = 0
    """For `iid`, `dirichlet` and `shards`."""

    @model_validator(mode="after")
    def _complete(self) -> PartitionConfig:
        if self.by in {"hash", "iid", "dirichlet", "shards"} and not self.num_clients:
            raise ValueError(f"partition.by: {self.by} needs partition.num_clients")
        readers = {
            "alpha": {"dirichlet"},
            "num_shards_per_partition": {"shards"},
            "partition_by": {"dirichlet", "shards"},
        }
        readers["seed"] = {"iid", "dirichlet", "shards"}
        for key, allowed in readers.items():
            if getattr(self, key) != type(self).model_fields[key].default and self.by not in allowed:
                raise ValueError(
                    f"partition.{key} says nothing under by: {self.by}; it is for {' and '.join(sorted(allowed))}"
                )
        return self


class FederationConfig(Block):
    """Who takes part, and how long."""

    partition: PartitionConfig = PartitionConfig()
    num_rounds: Annotated[int, Field(ge=1)] = 100
    """How often the server asks all clients and takes a step."""
    num_units: Annotated[int, Field(ge=1)]
    """A public constant, about the number of privacy units that take part (people, or records if privacy.unit is example):
    sums are divided by sample_rate * num_units. Declared here, never counted from data (rule 4)."""
    terms: str | None = None
    """The clients' own terms: a `client.yaml` for all clients of this machine, or a folder with one `CLIENT.yaml` each;
    see `docs/terms.md`."""


class PrivacyConfig(Block):
    """What is promised. Either `target_epsilon` (the noise is calibrated) or `noise_multiplier`."""

    unit: PrivacyUnit = PrivacyUnit.USER
    trust: Trust = Trust.CENTRAL
    target_epsilon: Positive | None = None
    target_delta: Fraction = 1e-5
    noise_multiplier: NonNegative | None = None
    """Standard deviation of the noise over max_grad_norm; 0 switches privacy off and says so everywhere."""
    max_grad_norm: Positive = 1.0
    sample_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Probability with which a unit takes part in a round; its client tosses the coin in secret."""
    sampling: Literal["poisson", "truncated_poisson", "fixed_order"] = "poisson"
    """`poisson`: a secret coin per unit; `truncated_poisson`: at most `max_units_per_round` of them, at a price;
    `fixed_order`: every 1/sample_rate-th round, no coin, no amplification."""
    max_units_per_round: Annotated[int, Field(ge=1)] | None = None
    """Only for `truncated_poisson`: units of one client in one round."""
    max_units_per_client: Annotated[int, Field(ge=1)] | None = None
    """Only for `truncated_poisson`: a public bound; further units of a client never take part."""
    clipping: Literal["fixed", "adaptive"] = "fixed"
    """`adaptive`: max_grad_norm is where the norm starts; it follows a quantile of the units' norms by a noised count,
    booked in the same event (Andrew et al. 2021)."""
    target_quantile: Fraction = 0.5
    """Only for `adaptive`: the share of units whose gradients should stay unclipped."""
    clipping_learning_rate: Positive = 0.2
    """Only for `adaptive`."""
    labels: Literal["as_given", "randomized_response"] = "as_given"
    """`randomized_response`: each training label is flipped once with probability 1/(1 + exp(label_epsilon)) and kept; the
    loss is debiased. Covers labels, never texts; its total stands apart."""
    label_epsilon: Annotated[float, Field(gt=0, le=40)] | None = None
    """Only for `randomized_response`: of one label; a person with m labels is covered by m times it."""
    max_pairs_per_user: Annotated[int, Field(ge=1)] = 20
    """A user's first pairs in a fixed hash order; the rest is not used."""
    rng: Literal["os", "seeded"] = "os"
    """`seeded` repeats a run exactly and protects nobody; ledger and report then say NOT PRIVATE."""
    ledger: str | None = None
    """The project's books, a file: all runs that name it are about the same people and are added up, against one cap."""
    project_cap: Positive | None = None
    """Epsilon that all runs of `ledger` on this unit together may spend, at `target_delta`; fixed by the first of them."""

    @model_validator(mode="after")
    def _one_target(self) -> PrivacyConfig:
        if (self.target_epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give exactly one of privacy.target_epsilon and privacy.noise_multiplier")
        if self.project_cap is not None and self.ledger is None:
            raise ValueError("privacy.project_cap needs privacy.ledger, the books that it caps")
        if self.ledger is not None and self.rng == "seeded":
            raise ValueError("privacy.rng: seeded spends an infinite epsilon; take out privacy.ledger")
        return self

    @model_validator(mode="after")
    def _belongs_together(self) -> PrivacyConfig:
        cut = (self.max_units_per_round, self.max_units_per_client)
        if (self.sampling == "truncated_poisson") != all(x is not None for x in cut) or (cut[0] is None) != (
            cut[1] is None
        ):
            raise ValueError(
                "privacy.sampling: truncated_poisson needs max_units_per_round and max_units_per_client; no other has them"
            )
        if self.sampling == "fixed_order" and abs(round(1 / self.sample_rate) * self.sample_rate - 1) > 1e-9:
            raise ValueError("privacy.sampling: fixed_order needs a sample_rate of 1/n, as 0.5, 0.2 or 0.1")
        if (self.labels == "randomized_response") != (self.label_epsilon is not None):
            raise ValueError("privacy.labels: randomized_response needs privacy.label_epsilon, and the reverse")
        if self.clipping == "adaptive" and self.noise_multiplier == 0:
            raise ValueError("privacy.clipping: adaptive follows a noised count; it needs noise")
        return self


class RewardConfig(ServerOptimizerConfig):
    """The Bradley-Terry head on frozen features, and how the server trains it."""

    layer: Annotated[int, Field(ge=1)] = 20
    """Hidden states after this many transformer blocks."""
    pooling: Literal["mean"] = "mean"
    """Mean over all tokens of the rendered conversation."""
    projection_dim: Annotated[int, Field(ge=1)] = 64
    """Principal components of the public features; the head trains this many numbers."""
    public_data: str
    """Name or YAML of a public data set (prompt, completion): standardisation and projection come from it alone."""


class PolicyConfig(Block):
    """The policy loop after the reward model: TRL's and PEFT's names. Public prompts only, so it costs no epsilon."""

    method: Literal["grpo", "dpo"] = "grpo"
    """`grpo`: rewards within groups of own samples; `dpo`: the best against the worst of own samples."""
    prompts: str
    """Name or YAML of a public prompt-only data set; prompts of `evaluation.unseen_topics` are held out."""
    test_prompts: str | None = None
    """Another public prompt-only data set to evaluate on; else the prompts themselves and those of the unseen topics."""
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
        if self.reward_weights is not None and len(self.reward_weights) != len(self.reward_funcs):
            raise ValueError("policy.reward_weights needs one number per reward function")
        if len(set(self.reward_funcs)) != len(self.reward_funcs):
            raise ValueError("policy.reward_funcs names a function twice; raise its weight instead")
        if self.method == "dpo" and not self.beta:
            raise ValueError("policy.method: dpo needs policy.beta above 0 (TRL's default is 0.1)")
        if self.use_vllm and self.backend == "native":
            raise ValueError("policy.use_vllm needs policy.backend: trl")
        return self


class EvaluationConfig(Block):
    """Who and what is held out. Evaluation users are not protected, and the report says so."""

    user_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """About this fraction of the people is held out, whole, and not protected."""
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


class Recipe(Block):
    """One run, completely."""

    model_name_or_path: str
    """The frozen base model: a folder, a hub name, or `embedded/smollm2-135m-instruct`."""
    datasets: Annotated[tuple[str, ...], Field(min_length=1)]
    """The private votes: shipped names (`fedpref data ls`), YAML descriptions, or files with TRL's columns."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the base model; `auto` is bfloat16 where a probe says that it is faster, else float32."""
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
    def _unit_fits(self) -> Recipe:
        if self.privacy.unit is PrivacyUnit.CLIENT and self.reward is not None:
            raise ValueError(
                "privacy.unit: client is not available for the reward head: it needs whole updates (DP-FedAvg), and the head's "
                "round is one gradient per person; use user or example"
            )
        if self.federation.partition.by == "natural" and self.privacy.unit is PrivacyUnit.EXAMPLE:
            raise ValueError("partition.by: natural needs privacy.unit: user")
        return self

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
