"""Reward functions with TRL's signature, ``f(prompts, completions, **columns) -> list[float | None]``; their weighted sum."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import torch
from torch import Tensor

from policy.answers import same_answer
from policy.plugins import load_plugin, nearest
from reward.errors import RewardFunctionError

RewardFunc = Callable[..., Sequence[float | None]]
ENTRY_POINTS = "fedpref.reward_funcs"
BOXED = re.compile(r"\\boxed\{\s*-?[\d,]*\.?\d+\s*\}")


def text_of(completion: Any) -> str:
    """The text of a completion in TRL's standard or conversational form."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def accuracy(completions: Sequence[Any], answer: Sequence[str], **columns: Any) -> list[float | None]:
    """1 where the completion's final answer equals ``answer``, 0 where not; None where ``answer`` cannot be parsed.

    Parsed and compared by math-verify, as TRL's ``accuracy_reward`` does: a boxed answer first. That function reads LaTeX
    alone; small models also write plain numbers, so the last plain number counts where nothing is boxed. An answer that
    cannot be computed within seconds is wrong; see ``policy.answers``.
    """
    del columns
    return [same_answer(text_of(c), str(a)) for c, a in zip(completions, answer, strict=True)]


def format_reward(completions: Sequence[Any], **columns: Any) -> list[float | None]:
    r"""1 where the completion gives exactly one boxed number, ``\boxed{12}``, else 0."""
    del columns
    return [float(len(BOXED.findall(text_of(c))) == 1) for c in completions]


def length(completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float | None]:
    """Minus the number of tokens over 100: a gentle pull towards short answers; give it a weight below 0 for long ones."""
    del completions, columns
    return [-len(ids) / 100 for ids in completion_ids]


def repetition(
    completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], **columns: Any
) -> list[float | None]:
    """TRL's penalty for repeated token trigrams, from -1 to 0."""
    from trl.rewards.other_rewards import get_repetition_penalty_reward

    values: list[float | None] = get_repetition_penalty_reward()(
        completions=completions, completion_ids=[list(ids) for ids in completion_ids], **columns
    )
    return values


REWARD_FUNCS: dict[str, RewardFunc] = {
    "accuracy": accuracy,
    "format": format_reward,
    "length": length,
    "repetition": repetition,
}


def find_reward_func(name: str) -> RewardFunc:
    """A reward function by its name here, or by the name of an entry point of the group ``fedpref.reward_funcs``.

    Raises:
        RewardFunctionError: no such name, or its package cannot be imported.
    """
    if name in REWARD_FUNCS:
        return REWARD_FUNCS[name]
    found = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in found:
        offered = ("reward_model", *REWARD_FUNCS, *sorted(found))
        otherwise = f"Install the package that offers it under the entry point group `{ENTRY_POINTS}`."
        raise RewardFunctionError(
            f"No reward function {name!r}.", f"There are: {', '.join(offered)}.", nearest(name, offered, otherwise)
        )
    func: RewardFunc = load_plugin(found[name], "reward function", RewardFunctionError)
    return func


@dataclass(frozen=True)
class WeightedRewards:
    """Several reward functions and their weights; the reward is the weighted sum, as in TRL (``reward_weights``)."""

    funcs: dict[str, RewardFunc]
    weights: tuple[float, ...]

    @classmethod
    def find(
        cls, names: Sequence[str], weights: Sequence[float] | None, own: Mapping[str, RewardFunc]
    ) -> WeightedRewards:
        """Functions by name: those given as objects, then those that ``find_reward_func`` knows; weights of 1 if not given.

        Raises:
            RewardFunctionError: see ``find_reward_func``.
        """
        funcs = {name: own[name] if name in own else find_reward_func(name) for name in names}
        return cls(funcs, tuple(weights or (1.0,) * len(names)))

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Tensor:
        """Rewards by function, shape [n, functions], fp32; NaN where a function said None.

        | case | result |
        |---|---|
        | no completion | shape [0, functions] |
        | an empty completion | scored like any other |
        | a function raises, returns NaN, inf, not a number, or not one value per completion | RewardFunctionError |
        """
        values = [self.checked(name)(prompts, completions, **columns) for name in self.funcs]
        return torch.tensor(values, dtype=torch.float32).reshape(len(self.funcs), len(completions)).T

    def total(self, by_func: Tensor) -> Tensor:
        """Weighted sum over functions, shape [n]; None counts as zero.

        Raises:
            RewardFunctionError: every function said None for some completion, so it has no reward at all.
        """
        if bool(torch.isnan(by_func).all(1).any()):
            raise RewardFunctionError(
                "A completion has no reward.",
                "Every reward function returned None for it.",
                "Use a data set whose columns the reward functions can read.",
            )
        return torch.nansum(by_func * torch.tensor(self.weights), dim=1)

    def checked(self, name: str) -> Callable[..., list[float]]:
        """One of the functions, checked at every call; None becomes NaN, which TRL reads alike."""

        def call(prompts: Any, completions: Any, **columns: Any) -> list[float]:
            try:
                values = self.funcs[name](prompts=prompts, completions=completions, **columns)
            except Exception as error:  # a user's function may raise anything; it is named and passed on
                raise RewardFunctionError(
                    f"The reward function {name!r} raised {type(error).__name__}.",
                    f"{error}"[:300] + ".",
                    "Mend it, then go on with --resume: steps that are done are kept.",
                ) from error
            if not isinstance(values, list) or len(values) != len(completions):
                count = len(values) if isinstance(values, list) else type(values).__name__
                raise _wrong(name, f"returned {count} instead of a list of {len(completions)} numbers")
            return [float("nan") if v is None else _number(name, v) for v in values]

        call.__name__ = name
        return call


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise _wrong(name, f"returned a {type(value).__name__}") from None
    if not math.isfinite(number):
        raise _wrong(name, f"returned {number}")
    return number


def _wrong(name: str, why: str) -> RewardFunctionError:
    return RewardFunctionError(
        f"The reward function {name!r} {why}.",
        "A reward is one finite number per completion, or None for 'does not apply'.",
        "Mend it, then go on with --resume: steps that are done are kept.",
    )
