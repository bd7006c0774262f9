"""Objectives of a language model's adapter: ``(model, batch) -> loss per record``, pure, none couples records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from policy.dpo_losses import DpoLossType, PairRatios, dpo_loss
from policy.logprobs import answer_logps
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
        TokenBatchError: a batch without ``ref_logps``.
    """

    loss_type: DpoLossType = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0

    def __call__(self, model: Any, batch: PairBatch) -> Tensor:
        """Loss of every pair, [n], fp32."""
        ratios = answer_logps(model, batch.rows) - _required(batch.ref_logps, "ref_logps")
        lengths = batch.rows.answer_lengths
        pairs = PairRatios(ratios[:, 0], ratios[:, 1], lengths[:, 0], lengths[:, 1])
        return batch.weighted(dpo_loss(self.loss_type, pairs, self.beta, self.label_smoothing))


def _required(values: Tensor | None, name: str) -> Tensor:
    if values is None:
        raise TokenBatchError(
            f"The batch has no {name}.",
            "This loss compares the policy with a reference, whose log-probabilities are computed before.",
            "Compute them once per record with policy.logprobs under the reference model, and put them into the batch.",
        )
    return values
