"""Bradley-Terry with margins, ties and smoothed labels; the selector's cross-entropy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from reward.losses import bradley_terry, debiased_bradley_terry, preference_loss, selector_loss

CHOSEN, REJECTED = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([1.0, 0.5, 0.5])


def l(d: float) -> float:  # noqa: E743 -- the docstring's name
    return math.log1p(math.exp(-d))


def test_it_is_bradley_terry_of_the_difference_beyond_the_margin() -> None:
    assert torch.equal(preference_loss(CHOSEN, REJECTED), bradley_terry(CHOSEN, REJECTED))
    margin = torch.tensor([0.5, 0.0, 2.0])
    torch.testing.assert_close(
        preference_loss(CHOSEN, REJECTED, margin=margin), torch.tensor([l(0.5), l(-1.5), l(-2.0)])
    )


def test_smoothed_and_flipped_labels() -> None:
    smoothed = preference_loss(CHOSEN, REJECTED, label_smoothing=0.2)
    torch.testing.assert_close(smoothed, torch.tensor([0.8 * l(d) + 0.2 * l(-d) for d in (1.0, -1.5, 0.0)]))
    flipped = preference_loss(CHOSEN, REJECTED, flip_probability=0.2)
    torch.testing.assert_close(flipped, debiased_bradley_terry(CHOSEN, REJECTED, 0.2))


def test_a_tie_is_half_a_vote_for_either_and_least_at_equal_scores() -> None:
    tie = torch.tensor([True, False, True])
    losses = preference_loss(CHOSEN, REJECTED, tie=tie, margin=torch.ones(3))
    torch.testing.assert_close(losses, torch.tensor([(l(1.0) + l(-1.0)) / 2, l(-2.5), math.log(2)]))
    d = torch.linspace(-3, 3, 61)
    split = preference_loss(d, torch.zeros(61), tie=torch.ones(61, dtype=torch.bool))
    assert int(split.argmin()) == 30


@pytest.mark.parametrize("settings", [{"label_smoothing": 0.5}, {"label_smoothing": -0.1}, {"flip_probability": 0.5}])
def test_a_label_that_says_nothing_is_refused(settings: Any) -> None:
    with pytest.raises(ValueError, match="1/2"):
        preference_loss(CHOSEN, REJECTED, **settings)
    with pytest.raises(ValueError, match="debiased"):
        preference_loss(CHOSEN, REJECTED, label_smoothing=0.1, flip_probability=0.1)


def test_the_selector_pays_for_the_choice_it_did_not_name() -> None:
    losses = selector_loss(torch.tensor([[3.0, 1.0], [3.0, 1.0]]), torch.tensor([0, 1]))
    torch.testing.assert_close(losses, torch.tensor([l(2.0), l(-2.0)]))
