"""What all blocks of a recipe share: closed and frozen; and the settings of the server's optimiser. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Names = Annotated[
    tuple[str, ...], Field(min_length=1), BeforeValidator(lambda given: (given,) if isinstance(given, str) else given)
]


class Block(BaseModel):
    """Frozen; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def check_reward_funcs(block: str, funcs: Sequence[str], weights: Sequence[float] | None) -> None:
    """Refuse weights that are not those of the functions, and a function that is named twice."""
    if weights is not None and len(weights) != len(funcs):
        raise ValueError(f"{block}.reward_weights needs one number per reward function")
    if len(set(funcs)) != len(funcs):
        raise ValueError(f"{block}.reward_funcs names a function twice; raise its weight instead")


_OF_OPTIM: dict[str, dict[str, float]] = {
    "sgd": {"momentum": 0.9},
    "adam": {"adam_beta1": 0.9, "adam_beta2": 0.99},
    "yogi": {"adam_beta1": 0.9, "adam_beta2": 0.99},
    "adagrad": {},
}


class ServerOptimizerConfig(Block):
    """How the server steps: FedAvg (`sgd`, momentum 0), FedAvgM, FedAdagrad, FedAdam, FedYogi (Reddi et al. 2021)."""

    optim: Literal["sgd", "adam", "adagrad", "yogi"] = "sgd"
    """The server's optimiser, on the noised mean gradient (or the noised mean update) as pseudo-gradient."""
    learning_rate: Positive = 1.0
    """Of the server's optimiser."""
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Of `sgd` alone; 0.9 if not given."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Of `adam` and `yogi`; 0.9 if not given."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Of `adam` and `yogi`; 0.99 if not given (Reddi et al. 2021, arXiv 2003.00295; TRL's own is 0.999)."""
    average_from: Annotated[float, Field(ge=0, le=1)] = 0.5
    """What is released is the mean of the iterates after this fraction of the rounds (post-processing); 1: the last."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        """The chosen optimiser's settings where none are given, so that a resolved recipe shows what is used."""
        optim = given.get("optim", "sgd") if isinstance(given, dict) else None
        if not isinstance(optim, str):
            return given
        own = _OF_OPTIM.get(optim, {})
        return {**given, **{key: value for key, value in own.items() if given.get(key) is None}}

    @model_validator(mode="after")
    def _own_settings(self) -> ServerOptimizerConfig:
        own, block = _OF_OPTIM[self.optim], type(self).__name__.removesuffix("Config").lower()
        foreign = [k for keys in _OF_OPTIM.values() for k in keys if k not in own and getattr(self, k) is not None]
        if foreign:
            raise ValueError(
                f"{block}.{foreign[0]} does nothing under optim: {self.optim}; leave it out, or set it to null"
            )
        return self
