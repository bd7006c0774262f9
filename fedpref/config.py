"""The schema of a recipe: frozen and closed. Importable without torch.

Key names are those of TRL, PEFT and Opacus wherever they exist. Defaults are the vetted setting; a recipe overrides what
it must. Everything that bears on privacy is in ``privacy`` and ``federation``; nothing outside changes a guarantee.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from privacy.units import PrivacyUnit, Trust

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Names = Annotated[
    tuple[str, ...], Field(min_length=1), BeforeValidator(lambda given: (given,) if isinstance(given, str) else given)
]


class Block(BaseModel):
    """Frozen; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


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
    clients_per_round: Annotated[int, Field(ge=2)] | None = None
    """Only under trust `distributed`: the most clients in a round; default: `partition.num_clients`, all of them. Under
    sampling `capped` it follows from the sample rate."""
    min_clients_per_round: Annotated[int, Field(ge=2)] | None = None
    """Only under trust `distributed`: a round with fewer is aborted before anything is unmasked; default: 90 %, rounded
    up. The noise is sized for so few."""
    num_units: Annotated[int, Field(ge=1)]
    """A public constant, about the number of privacy units that take part (people, or records if privacy.unit is example):
    sums are divided by sample_rate * num_units. Declared here, never counted from data (rule 4)."""
    terms: str | None = None
    """The clients' own terms: a `client.yaml` for all clients of this machine, or a folder with one `CLIENT.yaml` each;
    a relative path is meant from the folder of the recipe. See `docs/terms.md`."""


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
    secure_aggregation: Literal["full", "simulated"] = "full"
    """Only under trust `distributed`. `simulated` adds the clients' integers without masks, in this process: the same sums
    bit for bit, for large simulations, and no protection against the server in this run."""
    consistency: Literal["folded", "strict"] = "folded"
    """Only under trust `distributed`: two trips a round, with noise for split views; or three, in which clients first agree
    on the survivors."""
    colluders: Annotated[int, Field(ge=1)] = 1
    """Only under trust `distributed`: how many clients may work with the server or leave out their noise. 1 is any other
    client that looks for itself."""
    sampling: Literal["poisson", "truncated_poisson", "fixed_order", "capped"] = "poisson"
    """`poisson`: a secret coin per unit; `truncated_poisson`: at most `max_units_per_round` of them, at a price;
    `fixed_order`: every 1/sample_rate-th round, no coin, no amplification; `capped`: the server asks sample_rate of the
    clients, each of which takes part `max_participations` times at most: no amplification."""
    max_participations: Annotated[int, Field(ge=1)] | None = None
    """Only for `capped`: rounds of a run that a client ever takes part in."""
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
    """The project's books, a file: all runs that name it are about the same people and are added up, against one cap. A
    relative path is meant from the folder of the recipe, wherever the command is given."""
    project_cap: Positive | None = None
    """Epsilon that all runs of `ledger` on this unit together may spend, at `target_delta`; fixed by the first of them."""
    project_label_cap: Positive | None = None
    """The same for randomised labels, whose total stands apart: pure epsilon of one unit over all runs, against everybody."""

    @model_validator(mode="after")
    def _one_target(self) -> PrivacyConfig:
        if (self.target_epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give exactly one of privacy.target_epsilon and privacy.noise_multiplier")
        if self.project_cap is not None and self.ledger is None:
            raise ValueError("privacy.project_cap needs privacy.ledger, the books that it caps")
        if self.project_label_cap is not None and (self.ledger is None or self.labels != "randomized_response"):
            raise ValueError(
                "privacy.project_label_cap caps privacy.labels: randomized_response in the books of privacy.ledger"
            )
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
        if (self.sampling == "capped") != (self.max_participations is not None):
            raise ValueError("privacy.sampling: capped needs privacy.max_participations; no other has it")
        if self.sampling == "fixed_order" and abs(round(1 / self.sample_rate) * self.sample_rate - 1) > 1e-9:
            raise ValueError("privacy.sampling: fixed_order needs a sample_rate of 1/n, as 0.5, 0.2 or 0.1")
        if (self.labels == "randomized_response") != (self.label_epsilon is not None):
            raise ValueError("privacy.labels: randomized_response needs privacy.label_epsilon, and the reverse")
        if self.clipping == "adaptive" and self.noise_multiplier == 0:
            raise ValueError("privacy.clipping: adaptive follows a noised count; it needs noise")
        return self


_OF_OPTIM: dict[str, dict[str, float]] = {
    "sgd": {"momentum": 0.9},
    "adam": {"adam_beta1": 0.9, "adam_beta2": 0.99},
    "adagrad": {},
}


class LocalConfig(Block):
    """Local steps of a client. Unit `client`: on all its records, the whole update clipped once (DP-FedAvg). Units `user` and
    `example` under trust `local`: DP-SGD inside the client, every step noised and booked (guarantees.md rule 17)."""

    max_steps: Annotated[int, Field(ge=1)] = 10
    """Steps of a client in a round; nothing is kept between rounds. Unit `client`: each on the mean loss of all its records."""
    learning_rate: Positive = 0.5
    """Of these steps; the server's is reward.learning_rate."""


class RewardConfig(Block):
    """The Bradley-Terry head on frozen features, and how the server trains it."""

    trainable: Literal["head", "mlp_head"] = "head"
    """`head`: linear; `mlp_head`: one hidden layer of tanh under it, which starts from values that `seed` fixes."""
    mlp_hidden_dim: Annotated[int, Field(ge=1)] | None = None
    """Of `mlp_head` alone, the width of its hidden layer; 16 if not given."""
    layer: Annotated[int, Field(ge=1)] = 20
    """Hidden states after this many transformer blocks; with `layers`, the last of them."""
    layers: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=2)] | None = None
    """Instead of `layer`: features of these layers, from one pass, mixed by weights that are trained with the head."""
    pooling: Literal["mean"] = "mean"
    """Mean over all tokens of the rendered conversation."""
    projection_dim: Annotated[int, Field(ge=1)] = 64
    """Principal components of the public features; a linear head trains this many numbers. The model's hidden size: no
    projection."""
    public_data: str
    """Name or YAML of a public data set (prompt, completion): standardisation and projection come from it alone."""
    optim: Literal["sgd", "adam", "adagrad"] = "sgd"
    """The server's optimiser, on the noised mean gradient as pseudo-gradient."""
    learning_rate: Positive = 1.0
    """Of the server's optimiser."""
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Of `sgd` alone; 0.9 if not given."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Of `adam` alone; 0.9 if not given."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Of `adam` alone; 0.99 if not given (Reddi et al. 2021, arXiv 2003.00295; TRL's own is 0.999)."""
    average_from: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """The released head is the mean of the iterates after this fraction of the rounds (post-processing)."""
    local: LocalConfig | None = None
    """Local steps: needed for privacy.unit: client (DP-FedAvg); else for trust: local alone (local DP-SGD)."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        """The chosen optimiser's and head's settings where none are given, so that a resolved recipe shows what is used."""
        optim = given.get("optim", "sgd") if isinstance(given, dict) else None
        if not isinstance(optim, str):
            return given
        given = _with_head(given)
        own = _OF_OPTIM.get(optim, {})
        return {**given, **{key: value for key, value in own.items() if given.get(key) is None}}

    @model_validator(mode="after")
    def _head_fits(self) -> RewardConfig:
        if self.mlp_hidden_dim is not None and self.trainable == "head":
            raise ValueError("reward.mlp_hidden_dim does nothing under trainable: head; it is for mlp_head")
        if self.layers is not None and list(self.layers) != sorted(set(self.layers)):
            raise ValueError("reward.layers names each layer once, the lowest first, as [12, 16, 20]")
        if self.layers is not None and self.layer != self.layers[-1]:
            raise ValueError("give reward.layer or reward.layers, not both")
        return self

    @model_validator(mode="after")
    def _own_settings(self) -> RewardConfig:
        own = _OF_OPTIM[self.optim]
        foreign = [k for keys in _OF_OPTIM.values() for k in keys if k not in own and getattr(self, k) is not None]
        if foreign:
            raise ValueError(
                f"reward.{foreign[0]} does nothing under optim: {self.optim}; leave it out, or set it to null"
            )
        return self


def _with_head(given: dict[str, Any]) -> dict[str, Any]:
    """The head's settings where none are given; what is not well-formed is the schema's to refuse."""
    filled: dict[str, Any] = {}
    if given.get("trainable") == "mlp_head" and given.get("mlp_hidden_dim") is None:
        filled["mlp_hidden_dim"] = 16
    if isinstance(layers := given.get("layers"), (list, tuple)) and layers and given.get("layer") is None:
        filled["layer"] = layers[-1]
    return {**given, **filled}


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


_OF_DISTRIBUTED = {"clients_per_round", "min_clients_per_round", "secure_aggregation", "consistency", "colluders"}


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
    reward: RewardConfig
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
        if whole and self.reward.local is None:
            raise ValueError(
                "privacy.unit: client needs reward.local: a client's whole update is clipped once (DP-FedAvg)"
            )
        if self.reward.local is not None and not whole:
            self._local_dp_sgd()
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

    def _local_dp_sgd(self) -> None:
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
        if self.policy is not None and self.evaluation.judge_layer in (self.reward.layers or ()):
            raise ValueError(
                f"evaluation.judge_layer: {self.evaluation.judge_layer} is one of reward.layers, and no "
                "held-out judge; name another layer"
            )
