"""The blocks ``federation`` and ``privacy`` of a recipe: who takes part, and what is promised. No torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedpref.config_blocks import Block, Fraction, NonNegative, Positive
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
    clients_per_round: Annotated[int, Field(ge=2)] | None = None
    """Only under trust `distributed`: the most clients in a round; default: `partition.num_clients`, all of them. Under
    sampling `capped` it follows from the sample rate."""
    min_clients_per_round: Annotated[int, Field(ge=2)] | None = None
    """Only under trust `distributed`: a round with fewer is aborted before anything is unmasked; default: 90 %, rounded
    up. The noise is sized for so few. With buckets, each needs its part of them."""
    num_buckets: Annotated[int, Field(ge=1)] = 1
    """Only under trust `distributed`: above 1, a round's clients are cut into so many disjoint buckets by a public rule, each
    with a secure sum and noise of its own, and combined by a trimmed mean that outvotes up to `privacy.colluders` lying
    clients (fewer than half of the buckets). Costs at least the square root of it in noise; see `docs/secagg.md`."""
    num_units: Annotated[int, Field(ge=1)]
    """A public constant, about the number of privacy units that take part (people, or records if privacy.unit is example):
    sums are divided by sample_rate * num_units. Declared here, never counted from data (rule 4)."""
    terms: str | None = None
    """The clients' own terms: a `client.yaml` for all clients of this machine, or a folder with one `CLIENT.yaml` each;
    a relative path is meant from the folder of the recipe. See `docs/terms.md`."""


class PrivacyConfig(Block):
    """What is promised. Either `target_epsilon` (the noise is calibrated) or `noise_multiplier`."""

    unit: PrivacyUnit = PrivacyUnit.USER
    """What neighbouring data differ in: one `example` (record), all records of one `user`, or one whole `client`."""
    trust: Trust = Trust.CENTRAL
    """`central`: the server sees clients' clipped sums and adds the noise; `distributed`: clients add shares of it
    inside secure aggregation; `local`: each client's message is private by itself."""
    target_epsilon: Positive | None = None
    """What one unit may spend in the whole run, against readers and other clients; under `distributed` and `local`,
    against the server too."""
    target_delta: Fraction = 1e-5
    """Probability with which the bound may fail; well below one over the number of units."""
    noise_multiplier: NonNegative | None = None
    """Standard deviation of the noise over max_grad_norm; 0 switches privacy off and says so everywhere."""
    max_grad_norm: Positive = 1.0
    """Every unit's contribution is scaled down to this L2 norm; the noise is sized by it."""
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
