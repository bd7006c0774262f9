"""Reward functions: what they reward, and what becomes of one that misbehaves."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch

from policy import rewards as module
from policy.rewards import REWARD_FUNCS, RewardFunc, WeightedRewards, accuracy, find_reward_func, format_reward, length
from reward.errors import RewardFunctionError

ANSWERS = [
    (r"So it is \boxed{12}.", "12", 1.0),
    (r"So it is \boxed{12}. No, 13.", "12", 1.0),
    ("The answer is 12.", "12", 1.0),
    ("First 5, then 7, so 12", "12", 1.0),
    (r"\boxed{12.0}", "12", 1.0),
    ("$1,200 in all: 1,200", "1200", 1.0),
    (r"\boxed{\frac{1}{2}}", "0.5", 1.0),
    ("The answer is 13.", "12", 0.0),
    ("no idea", "12", 0.0),
    ("", "12", 0.0),
    (r"\boxed{}", "12", 0.0),
    ("-3", "3", 0.0),
]


@pytest.mark.parametrize(("text", "gold", "expected"), ANSWERS)
def test_the_final_answer_is_compared_as_a_number(text: str, gold: str, expected: float) -> None:
    assert accuracy([text], [gold]) == [expected]
    assert accuracy([[{"role": "assistant", "content": text}]], [gold]) == [expected]


def test_an_answer_that_cannot_be_parsed_does_not_apply() -> None:
    assert accuracy(["12"], [""]) == [None]


def test_boxed_answers_agree_with_trl() -> None:
    from trl.rewards.accuracy_rewards import accuracy_reward

    texts = [r"\boxed{12}", r"hence \boxed{7}", r"\boxed{\frac{1}{3}}", r"\boxed{x}"]
    gold = ["12", "8", r"$\frac{1}{3}$", "12"]
    conversations = [[{"role": "assistant", "content": text}] for text in texts]
    assert accuracy(conversations, gold) == accuracy_reward(conversations, solution=gold) == [1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [(r"\boxed{3}", 1.0), (r"a \boxed{-3.5} b", 1.0), (r"\boxed{3} \boxed{4}", 0.0), ("3", 0.0), (r"\boxed{}", 0.0)],
)
def test_the_format_is_one_boxed_number(text: str, expected: float) -> None:
    assert format_reward([text]) == [expected]


def test_length_counts_tokens() -> None:
    assert length(["", "x"], completion_ids=[[], [1] * 50]) == [0.0, -0.5]


def weighted(**funcs: RewardFunc) -> WeightedRewards:
    return WeightedRewards(funcs, tuple(1.0 + i for i in range(len(funcs))))


def test_rewards_are_summed_by_weight_and_none_counts_nothing() -> None:
    both = weighted(a=lambda completions, **_: [1.0, 2.0], b=lambda completions, **_: [10.0, None])
    by_func = both(["p", "p"], ["x", ""])
    assert by_func[:, 0].tolist() == [1.0, 2.0]
    assert math.isnan(by_func[1, 1])
    assert both.total(by_func).tolist() == [21.0, 2.0]


def _raise(**_: Any) -> list[float | None]:
    raise ZeroDivisionError("a private detail of the function")


BAD: dict[str, Callable[..., Any]] = {
    "raises": _raise,
    "nan": lambda completions, **_: [float("nan")] * len(completions),
    "infinite": lambda completions, **_: [float("inf")] * len(completions),
    "short": lambda completions, **_: [0.0],
    "no list": lambda completions, **_: 1.0,
    "text": lambda completions, **_: ["good"] * len(completions),
}


@pytest.mark.parametrize("how", BAD)
def test_a_misbehaving_function_is_named(how: str) -> None:
    rewards = WeightedRewards({"mine": BAD[how]}, (1.0,))
    with pytest.raises(RewardFunctionError, match="'mine'") as caught:
        rewards(["p", "p"], ["x", "y"])
    assert "--resume" in caught.value.fix


def test_a_completion_without_any_reward_is_an_error() -> None:
    rewards = WeightedRewards({"a": lambda completions, **_: [None, 1.0]}, (1.0,))
    with pytest.raises(RewardFunctionError, match="no reward"):
        rewards.total(rewards(["p", "p"], ["x", "y"]))


def test_names_are_found_here_and_among_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_reward_func("format") is REWARD_FUNCS["format"]
    points = [
        EntryPoint("mine", "tests.policy.test_rewards:_raise", module.ENTRY_POINTS),
        EntryPoint("gone", "no_such_package:f", module.ENTRY_POINTS),
    ]
    monkeypatch.setattr(module, "entry_points", lambda group: [p for p in points if p.group == group])
    assert find_reward_func("mine") is _raise
    for name, why in (
        ("gone", "cannot be loaded"),
        ("os.system", "No reward function"),
        ("acuracy", "Did you mean 'accuracy'"),
    ):
        with pytest.raises(RewardFunctionError, match=why):
            find_reward_func(name)


def test_totals_have_one_number_per_completion() -> None:
    rewards = weighted(a=lambda completions, **_: [0.5] * len(completions))
    assert torch.equal(rewards.total(rewards(["p"] * 3, ["x"] * 3)), torch.full((3,), 0.5))
