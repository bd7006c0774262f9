"""The block ``reward`` of a recipe: a head on frozen features, and how the server trains it. No torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fedpref.config_blocks import Block, Positive, ServerOptimizerConfig


class LocalStepsConfig(Block):
    """Local steps of a client. Unit `client`: on all its records, the whole update clipped once (DP-FedAvg). Units `user` and
    `example` under trust `local`: DP-SGD inside the client, every step noised and booked (guarantees.md rule 17)."""

    max_steps: Annotated[int, Field(ge=1)] = 10
    """Steps of a client in a round; nothing is kept between rounds. Unit `client`: each on the mean loss of all its records."""
    learning_rate: Positive = 0.5
    """Of these steps; the server's is reward.learning_rate."""


class RewardConfig(ServerOptimizerConfig):
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
    local: LocalStepsConfig | None = None
    """Local steps: needed for privacy.unit: client (DP-FedAvg); else for trust: local alone (local DP-SGD)."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_head(cls, given: Any) -> Any:
        """The head's settings where none are given, so that a resolved recipe shows what is used."""
        return _with_head(given) if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _head_fits(self) -> RewardConfig:
        if self.mlp_hidden_dim is not None and self.trainable == "head":
            raise ValueError("reward.mlp_hidden_dim does nothing under trainable: head; it is for mlp_head")
        if self.layers is not None and list(self.layers) != sorted(set(self.layers)):
            raise ValueError("reward.layers names each layer once, the lowest first, as [12, 16, 20]")
        if self.layers is not None and self.layer != self.layers[-1]:
            raise ValueError("give reward.layer or reward.layers, not both")
        return self


def _with_head(given: dict[str, Any]) -> dict[str, Any]:
    """The head's settings where none are given; what is not well-formed is the schema's to refuse."""
    filled: dict[str, Any] = {}
    if given.get("trainable") == "mlp_head" and given.get("mlp_hidden_dim") is None:
        filled["mlp_hidden_dim"] = 16
    if isinstance(layers := given.get("layers"), (list, tuple)) and layers and given.get("layer") is None:
        filled["layer"] = layers[-1]
    return {**given, **filled}
