"""The schema of a recipe: frozen and closed. Importable without torch.

Key names are those of TRL, PEFT and Opacus wherever they exist. Defaults are the vetted setting; a recipe overrides what
it must. Everything that bears on privacy is in ``privacy`` and ``federation``; nothing outside changes a guarantee.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from privacy.units import PrivacyUnit, Trust

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class Block(BaseModel):
    """Frozen; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class PartitionConfig(Block):
    """How users become clients (the simulated federation of one machine)."""

    by: Literal["hash", "column", "natural", "file"] = "hash"
    """`hash`: users into `num_clients`; `column`: one client per value of the data set's `client` field; `natural`: one
    user = one client;
    `file`: the data set's source is a folder, one file per client."""
    num_clients: Annotated[int, Field(ge=1)] | None = 10
    """Only for `hash`."""

    @model_validator(mode="after")
    def _complete(self) -> PartitionConfig:
        if self.by == "hash" and not self.num_clients:
            raise ValueError("partition.by: hash needs partition.num_clients")
        return self


class FederationConfig(Block):
    """Who takes part, and how long."""

    partition: PartitionConfig = PartitionConfig()
    num_rounds: Annotated[int, Field(ge=1)] = 100
    num_users: Annotated[int, Field(ge=1)] = 1000
    """A public constant, about the number of people who take part: sums are divided by sample_rate * num_users. Declared
    here, never counted from data (rule 4)."""


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

    @model_validator(mode="after")
    def _one_target(self) -> PrivacyConfig:
        if (self.target_epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give exactly one of privacy.target_epsilon and privacy.noise_multiplier")
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


class RewardConfig(Block):
    """The Bradley-Terry head on frozen features, and how the server trains it."""

    layer: Annotated[int, Field(ge=1)] = 20
    """Hidden states after this many transformer blocks."""
    pooling: Literal["mean"] = "mean"
    """Mean over all tokens of the rendered conversation."""
    projection_dim: Annotated[int, Field(ge=1)] = 64
    """Principal components of the public features; the head trains this many numbers."""
    public_data: str
    """Name or YAML of a public data set (prompt, completion): standardisation and projection come from it alone."""
    optim: Literal["sgd", "adam", "adagrad"] = "sgd"
    learning_rate: Positive = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    average_from: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """The released head is the mean of the iterates after this fraction of the rounds (post-processing)."""


class EvaluationConfig(Block):
    """Who and what is held out. Evaluation users are not protected, and the report says so."""

    user_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.15
    salt: str = "evaluation-users-v1"
    """A user is an evaluation user if the hash of salt and user_id says so: fixed here, before the run."""
    unseen_topics: tuple[str, ...] = ()
    """Topics that no training pair comes from."""
    bootstrap_samples: Annotated[int, Field(ge=100)] = 1000


class Recipe(Block):
    """One run, completely."""

    model_name_or_path: str
    datasets: Annotated[tuple[str, ...], Field(min_length=1)]
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the base model; `auto` is bfloat16 where a probe says that it is faster, else float32."""
    max_length: Annotated[int, Field(ge=8)] = 384
    """Tokens of a rendered conversation; longer ones lose the end of the completion."""
    federation: FederationConfig = FederationConfig()
    privacy: PrivacyConfig
    reward: RewardConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    output_dir: str
    report_to: tuple[Literal["none", "wandb"], ...] = ("none",)
    seed: int = 0
    """Ties order and initial values, and the bootstrap; never noise or coins unless privacy.rng is `seeded`."""

    @model_validator(mode="after")
    def _unit_fits(self) -> Recipe:
        if self.privacy.unit is PrivacyUnit.CLIENT:
            raise ValueError(
                "privacy.unit: client is not available for the reward head: it needs whole updates (DP-FedAvg), and the head's "
                "round is one gradient per person; use user or example"
            )
        if self.federation.partition.by == "natural" and self.privacy.unit is PrivacyUnit.EXAMPLE:
            raise ValueError("partition.by: natural needs privacy.unit: user")
        return self
