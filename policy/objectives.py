"""Objectives of a language model's adapter: ``(model, batch) -> loss per record``, pure, none couples records."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from policy.batches import CompletionBatch, GroupBatch, UnpairedBatch
from policy.coupled import check_loss_type
from policy.dpo_losses import PairRatios, check_dpo, dpo_loss
from policy.logprobs import answer_logps, token_logps
from policy.losses import grpo_loss, kto_loss, sft_loss
from policy.registry import DpoLossType
from reward.batches import PairBatch
from reward.errors import TokenBatchError


@dataclass(frozen=True)
class DpoObjective:
    """A loss of the DPO family on pairs, with the reference's log-probabilities from the batch; TRL's names and defaults.

    | case | result |
    |---|---|
    | no records | shape [0] |
    | others | see ``policy.dpo_losses.dpo_loss`` |

    Raises:
        ObjectiveNameError, ValueError: when made, see ``policy.dpo_losses.check_dpo``.
        TokenBatchError: a batch without ``ref_logps``.
    """

    loss_type: DpoLossType = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_dpo(self.loss_type, self.beta, self.label_smoothing)

    def __call__(self, model: Any, batch: PairBatch) -> Tensor:
        """Loss of every pair, [n], fp32."""
        ratios = answer_logps(model, batch.rows) - _required(batch.ref_logps, "ref_logps")
        lengths = batch.rows.answer_lengths
        pairs = PairRatios(ratios[:, 0], ratios[:, 1], lengths[:, 0], lengths[:, 1])
        return batch.weighted(dpo_loss(self.loss_type, pairs, self.beta, self.label_smoothing))


@dataclass(frozen=True)
class KtoObjective:
    """KTO on single judged completions; the reference point comes with the batch and is nobody's data.

    | case | result |
    |---|---|
    | no records | shape [0] |
    | others | see ``policy.losses.kto_loss`` |

    Raises:
        ValueError: when made, with a ``beta`` that is not positive.
        TokenBatchError: a batch without ``ref_logps``.
    """

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def __post_init__(self) -> None:
        _check_above_zero(beta=self.beta)

    def __call__(self, model: Any, batch: UnpairedBatch) -> Tensor:
        """Loss of every record, [n], fp32."""
        ratios = answer_logps(model, batch.rows)[:, 0] - _required(batch.ref_logps, "ref_logps")
        losses = kto_loss(
            ratios,
            batch.label,
            batch.reference_point,
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )
        return batch.weighted(losses)


@dataclass(frozen=True)
class SftObjective:
    """Negative log-likelihood of completions given their prompts, each over its own tokens (``policy.losses.sft_loss``)."""

    reduction: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        check_loss_type("reduction", self.reduction, ("mean", "sum"))

    def __call__(self, model: Any, batch: CompletionBatch) -> Tensor:
        """Loss of every record, [n], fp32."""
        logps, lengths = answer_logps(model, batch.rows)[:, 0], batch.rows.answer_lengths[:, 0]
        return batch.weighted(sft_loss(logps, lengths, self.reduction))


@dataclass(frozen=True)
class GrpoObjective:
    """GRPO's loss of a prompt's whole group: the mean over its completions (guarantees.md rule 13).

    Attributes:
        max_completion_length: the constant that ``dr_grpo`` divides by.
        beta: weight of the KL to the reference.
        epsilon: of the ratio's clipping, where the batch has ``old_token_logps``.

    | case | result |
    |---|---|
    | no groups | shape [0] |
    | equal rewards, hence advantages of 0 | the KL alone |
    | a completion without tokens | contributes 0 |

    Raises:
        ObjectiveNameError, ValueError: when made, with a loss type that is not offered, or a number out of its range.
        TokenBatchError: beta > 0 and a batch without ``ref_token_logps``.
    """

    loss_type: Literal["dr_grpo", "grpo"]
    max_completion_length: int
    beta: float = 0.0
    temperature: float = 1.0
    epsilon: float = 0.2

    def __post_init__(self) -> None:
        check_loss_type("grpo", self.loss_type, ("dr_grpo", "grpo"))
        _check_above_zero(max_completion_length=self.max_completion_length, temperature=self.temperature)

    def __call__(self, model: Any, batch: GroupBatch) -> Tensor:
        """Loss of every group, [n], fp32."""
        logps, mask = token_logps(model, batch.rows, self.temperature)
        reference = _required(batch.ref_token_logps, "ref_token_logps") if self.beta else None
        groups, size, length = logps.shape
        per_completion = grpo_loss(
            logps.flatten(0, 1),
            mask.flatten(0, 1),
            batch.advantages.flatten().to(logps.dtype),
            loss_type=self.loss_type,
            max_completion_length=self.max_completion_length,
            ref_logprobs=_as_rows(reference, length),
            beta=self.beta,
            old_logprobs=_as_rows(batch.old_token_logps, length),
            epsilon=self.epsilon,
        )
        return batch.weighted(per_completion.view(groups, size).mean(1))


def _as_rows(values: Tensor | None, length: int) -> Tensor | None:
    """[n, G, >= L] -> [n G, L]: a batch that was cut may have lost its longest completion."""
    return None if values is None else values[..., :length].flatten(0, 1)


def _check_above_zero(**numbers: float) -> None:
    for name, number in numbers.items():
        if not 0.0 < number < math.inf:
            raise ValueError(f"{name}={number} is not a positive number")


def _required(values: Tensor | None, name: str) -> Tensor:
    if values is None:
        raise TokenBatchError(
            f"The batch has no {name}.",
            "This loss compares the policy with a reference, whose log-probabilities are computed before.",
            "Compute them once per record with policy.logprobs under the reference model, and put them into the batch.",
        )
    return values
