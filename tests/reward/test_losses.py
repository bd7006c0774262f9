"""The debiased loss undoes randomised labels in expectation, and is TRL's `robust`."""

from __future__ import annotations

import importlib.util
import math
import textwrap
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from reward.head import RewardHead, bradley_terry_objective, debiased_objective
from reward.losses import bradley_terry, debiased_bradley_terry, debiased_logistic
from reward.pairs import FeaturePairs

MARGINS = torch.linspace(-6, 6, 25, dtype=torch.float64)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.2689414, 0.49])
def test_over_the_flips_it_is_the_loss_of_the_true_label(p: float) -> None:
    expected = (1 - p) * debiased_logistic(MARGINS, p) + p * debiased_logistic(-MARGINS, p)
    torch.testing.assert_close(expected, -functional.logsigmoid(MARGINS), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("p", [0.1, 0.3])
def test_the_uncorrected_loss_is_not(p: float) -> None:
    expected = (1 - p) * -functional.logsigmoid(MARGINS) + p * -functional.logsigmoid(-MARGINS)
    assert (expected + functional.logsigmoid(MARGINS)).abs().max() > 0.1


def robust_of_trl(delta_score: torch.Tensor, beta: float, smoothing: float) -> torch.Tensor:
    """The lines of ``trl.DPOTrainer`` for ``loss_type == "robust"``, run as they stand in the installed file."""
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "trainer" / "dpo_trainer.py").read_text(encoding="utf-8")
    start = source.index('elif loss_type == "robust":')
    lines = source[start:].split("\n\n")[0].split("\n")[1:]
    trainer = types.SimpleNamespace(beta=beta, label_smoothing=smoothing)
    names: dict[str, Any] = {"self": trainer, "F": functional, "delta_score": delta_score}
    exec(textwrap.dedent("\n".join(lines)), names)  # noqa: S102 - three lines of an installed library
    loss: torch.Tensor = names["per_sequence_loss"]
    return loss


@pytest.mark.parametrize("eps", [0.5, 1.0, 4.0])
def test_it_is_trls_robust_with_the_flip_probability_of_epsilon(eps: float) -> None:
    p = 1 / (1 + math.exp(eps))
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randn(2, 50, generator=generator, dtype=torch.float64) * 3
    for beta in (0.1, 1.0):
        ours = debiased_logistic(beta * (chosen - rejected), p)
        torch.testing.assert_close(ours, robust_of_trl(chosen - rejected, beta, p), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(debiased_bradley_terry(chosen, rejected, p), debiased_logistic(chosen - rejected, p))


def test_without_flips_it_is_bradley_terry() -> None:
    chosen, rejected = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    torch.testing.assert_close(debiased_bradley_terry(chosen, rejected, 0.0), bradley_terry(chosen, rejected))


@pytest.mark.parametrize("p", [-0.1, 0.5, 1.0, math.nan])
def test_a_label_that_says_nothing_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match="flip_probability"):
        debiased_logistic(MARGINS, p)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=6), st.floats(0.0, 0.45))
def test_records_do_not_bear_on_one_another(margins: list[float], p: float) -> None:
    whole = debiased_logistic(torch.tensor(margins, dtype=torch.float64), p)
    for i, margin in enumerate(margins):
        alone = debiased_logistic(torch.tensor([margin], dtype=torch.float64), p)[0]
        assert whole[i].item() == pytest.approx(alone.item(), rel=1e-12, abs=1e-12)


def test_the_objective_weights_the_debiased_loss() -> None:
    generator = torch.Generator().manual_seed(1)
    chosen, rejected = torch.randn(2, 6, 4, generator=generator)
    weight = torch.rand(6, generator=generator)
    batch = FeaturePairs(chosen, rejected, weight, torch.arange(6))
    head = RewardHead(4)
    torch.nn.init.normal_(head.score.weight, generator=generator)
    p = 0.2
    swapped = FeaturePairs(rejected, chosen, weight, torch.arange(6))
    expected = ((1 - p) * bradley_terry_objective(head, batch) - p * bradley_terry_objective(head, swapped)) / (
        1 - 2 * p
    )
    torch.testing.assert_close(debiased_objective(p)(head, batch), expected)
