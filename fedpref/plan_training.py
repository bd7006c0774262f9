"""What a recipe with the block ``training`` may not ask for, and why (guarantees.md rules 12, 13 and 17)."""

from __future__ import annotations

from fedpref.config import Recipe
from fedpref.errors import UnsupportedPlanError
from privacy.units import Trust


def check_training(recipe: Recipe) -> None:
    """Refuse combinations whose promise would not hold, before anything is calibrated.

    Raises:
        UnsupportedPlanError: with the reason and a way out.
    """
    if recipe.training is None:
        return
    _check_unit(recipe)
    _check_aggregation(recipe)
    _check_labels(recipe)
    _check_dtype(recipe)


def _check_unit(recipe: Recipe) -> None:
    training = recipe.adapter
    if training.samples and training.local is not None:
        raise UnsupportedPlanError(
            f"training.objective: {training.objective} takes no local steps.",
            "Completions are sampled from the broadcast model; after a step they are another model's, and the loss no "
            "longer that of the policy.",
            "Remove training.local and set privacy.unit: user or example.",
        )


def _check_aggregation(recipe: Recipe) -> None:
    training, p = recipe.adapter, recipe.privacy
    inexact = training.adapter == "lora" and training.local is not None
    if training.aggregation == "stack" and not inexact:
        raise UnsupportedPlanError(
            "training.aggregation: stack has nothing to repair here.",
            "The mean is exact for frozen A, cores, heads, soft prompts, and for gradients at the broadcast parameters.",
            "Set training.aggregation: mean.",
        )
    if training.aggregation == "stack" and (p.trust is not Trust.CENTRAL or p.noise_multiplier != 0):
        raise UnsupportedPlanError(
            "training.aggregation: stack needs to see every client's update, without noise.",
            "Products B A of single clients are no function of a sum, so neither a secure sum nor noise on a sum covers them.",
            "Set training.adapter: lora_frozen_a or lora_core, whose means are exact; or trust: central, noise_multiplier: 0.",
        )
    if inexact and training.aggregation == "mean" and p.trust is Trust.DISTRIBUTED:
        raise UnsupportedPlanError(
            "The mean of A and B after local steps is refused under secure sums.",
            "mean(B) mean(A) is not mean(B A): the aggregate is wrong by an error that nobody could see.",
            "Set training.adapter: lora_frozen_a or lora_core, whose sums are exact.",
        )


def _check_labels(recipe: Recipe) -> None:
    if recipe.privacy.label_epsilon is None:
        return
    raise UnsupportedPlanError(
        "privacy.labels: randomized_response is not available for adapters.",
        "Their losses would have to be debiased for the flips.",
        "Use it with the block `reward`.",
    )


def _check_dtype(recipe: Recipe) -> None:
    """Records of a batch share its padding, so one moves the rounding of the others: 1e-5 of C in fp32, up to 0.03 in bf16."""
    if recipe.dtype != "bfloat16" or recipe.privacy.noise_multiplier == 0:
        return
    raise UnsupportedPlanError(
        "dtype: bfloat16 does not go with private training on the clients.",
        "In a batch one person's record changes how the others' gradients are rounded, by more than a clipping norm is exact.",
        "Set dtype: float32, or auto, which is float32 here.",
    )
