"""The DPO family on log-ratios: pure, one loss per pair, under TRL's names."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from policy.coupled import check_loss_type
from policy.registry import DpoLossType
from reward.losses import debiased_logistic


@dataclass(frozen=True)
class PairRatios:
    """Log-ratios to the reference of both answers of every pair, and the numbers of their tokens; each [n]."""

    chosen: Tensor
    rejected: Tensor
    chosen_length: Tensor
    rejected_length: Tensor

    @property
    def margin(self) -> Tensor:
        """log-ratio of the chosen minus that of the rejected answer."""
        return self.chosen - self.rejected

    @property
    def margin_per_token(self) -> Tensor:
        """The same of log-ratios divided by their answer's tokens."""
        return self.chosen / self.chosen_length.clamp(min=1) - self.rejected / self.rejected_length.clamp(min=1)


Loss = Callable[[PairRatios, float, float], Tensor]


def dpo_loss(loss_type: DpoLossType, ratios: PairRatios, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """One loss per pair, [n]; TRL's ``DPOTrainer`` takes the mean of the same.

    | loss_type | loss, with d = chosen - rejected log-ratio, s = logistic function | source |
    |---|---|---|
    | sigmoid | -log s(beta d) | Rafailov et al. 2023, eq. 7 |
    | ipo | (d per token - 1 / (2 beta))^2 | Azar et al. 2023, eq. 17 |
    | hinge | max(0, 1 - beta d) | Zhao et al. 2023 (SLiC) |
    | robust | sigmoid's, debiased for labels flipped with probability p | Chowdhury et al. 2024, eq. 13 |
    | apo_zero | 1 - s(beta chosen) + s(beta rejected) | D'Oosterlinck et al. 2024, eq. 7 |
    | apo_down | s(beta chosen) + 1 - s(beta d) | the same, eq. 8 |
    | sppo_hard | (chosen - 1 / (2 beta))^2 + (rejected + 1 / (2 beta))^2 | Wu et al. 2024, eq. 4.7 |
    | exo_pair | KL(s(beta d) : 1 - p) of the two choices | Ji et al. 2024, eq. 16 |
    | nca_pair | -log s(beta chosen) - (log s(-beta chosen) + log s(-beta rejected)) / 2 | Chen et al. 2024 |
    | sigmoid_norm | -log s(beta d per token) | Rafailov et al., by length |

    ``label_smoothing`` p is used by ``robust`` (in [0, 1/2)) and ``exo_pair`` (in (0, 1/2)) and, as in TRL, by no other.

    | case | result |
    |---|---|
    | chosen and rejected are the same text | d = 0: a constant; those losses that look at d only have no gradient |
    | an answer without tokens | log-ratio 0, length taken as 1 |
    | NaN in a pair | NaN in its loss only |

    Raises:
        ObjectiveNameError: a loss type that couples records (``aot``, ``bco_pair``, ...), or an unknown one.
        ValueError: ``beta`` or ``label_smoothing`` outside of its range.
    """
    check_dpo(loss_type, beta, label_smoothing)
    return LOSSES[loss_type](ratios, beta, label_smoothing)


def check_dpo(loss_type: str, beta: float, label_smoothing: float) -> None:
    """Refuse what ``dpo_loss`` would refuse, before there is a batch.

    Raises:
        ObjectiveNameError, ValueError: see ``dpo_loss``.
    """
    check_loss_type("dpo", loss_type, LOSSES)
    if not (0.0 < beta < math.inf):
        raise ValueError(f"beta={beta} is not a positive number")
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing={label_smoothing} is not in [0, 1/2)")
    if loss_type == "exo_pair" and not label_smoothing:
        raise ValueError(
            "exo_pair needs label_smoothing above 0: its divergence from a choice without doubt is infinite"
        )


def _sigmoid(r: PairRatios, beta: float, _: float) -> Tensor:
    return -logsigmoid(beta * r.margin)


def _ipo(r: PairRatios, beta: float, _: float) -> Tensor:
    return (r.margin_per_token - 1 / (2 * beta)) ** 2


def _hinge(r: PairRatios, beta: float, _: float) -> Tensor:
    return torch.relu(1 - beta * r.margin)


def _robust(r: PairRatios, beta: float, label_smoothing: float) -> Tensor:
    return debiased_logistic(beta * r.margin, label_smoothing)


def _apo_zero(r: PairRatios, beta: float, _: float) -> Tensor:
    return 1 - torch.sigmoid(beta * r.chosen) + torch.sigmoid(beta * r.rejected)


def _apo_down(r: PairRatios, beta: float, _: float) -> Tensor:
    return torch.sigmoid(beta * r.chosen) + 1 - torch.sigmoid(beta * r.margin)


def _sppo_hard(r: PairRatios, beta: float, _: float) -> Tensor:
    return (r.chosen - 0.5 / beta) ** 2 + (r.rejected + 0.5 / beta) ** 2


def _exo_pair(r: PairRatios, beta: float, label_smoothing: float) -> Tensor:
    p = torch.as_tensor(label_smoothing, dtype=r.chosen.dtype)
    margin = beta * r.margin
    kept = torch.sigmoid(margin) * (logsigmoid(margin) - torch.log1p(-p))
    return kept + torch.sigmoid(-margin) * (logsigmoid(-margin) - torch.log(p))


def _nca_pair(r: PairRatios, beta: float, _: float) -> Tensor:
    chosen, rejected = beta * r.chosen, beta * r.rejected
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def _sigmoid_norm(r: PairRatios, beta: float, _: float) -> Tensor:
    return -logsigmoid(beta * r.margin_per_token)


LOSSES: dict[DpoLossType, Loss] = {
    "sigmoid": _sigmoid,
    "ipo": _ipo,
    "hinge": _hinge,
    "robust": _robust,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "sppo_hard": _sppo_hard,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "sigmoid_norm": _sigmoid_norm,
}
