"""Local steps at a client: DP-FedAvg for privacy unit `client`, local DP-SGD for people and records under trust `local`.

**DP-FedAvg**: what one client sends is clipped once, as a whole.

McMahan, Ramage, Talwar and Zhang 2018, algorithm 1: every drawn client starts at the broadcast parameters, takes steps on
its own records alone, and contributes the difference. Nothing is kept between rounds, and no other client's records enter
(guarantees.md rule 17). The difference is taken as broadcast minus trained, a pseudo-gradient for the server's optimiser.

**Local DP-SGD** (``privacy.local_sgd``): every step is clipped per person, noised and booked inside the client.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpref.client.work import NodeData
from privacy.gradients import per_unit_gradients
from privacy.ledger import Reservation
from privacy.local_sgd import LocalDpSgd
from privacy.rng import RandomSource
from privacy.sampling import Mask, Units
from privacy.sealed import LocallyPrivate
from reward.head import RewardHead, set_weight
from reward.pairs import FeaturePairs

Objective = Callable[[RewardHead, FeaturePairs], Tensor]


@dataclass(frozen=True)
class LocalTraining:
    """``max_steps`` gradient steps on the mean loss of all of the client's records."""

    max_steps: int
    learning_rate: float

    def updates(
        self, head: RewardHead, objective: Objective, batch: FeaturePairs, num_clients: int
    ) -> npt.NDArray[np.float32]:
        """One row per drawn client, shape [num_clients, d]: the broadcast weight minus the trained one.

        Args:
            head: at the broadcast parameters; it is again when this returns.
            objective: loss per record, shape [n].
            batch: the records of the drawn clients; ``row_unit`` counts them from 0.
            num_clients: drawn ones.

        | client | row |
        |---|---|
        | without a record | zeros |
        | whose steps diverge | NaN or inf; clipping drops it |
        """
        weight = head.score.weight
        start = weight.detach().clone()
        rows = np.zeros((num_clients, start.numel()), dtype=np.float32)
        for client in range(num_clients):
            own = _records(batch, batch.row_unit == client)
            if len(own.weight):
                self._train(head, objective, own)
            rows[client] = (start - weight.detach()).reshape(-1).numpy()
            weight.data.copy_(start)
        return rows

    def _train(self, head: RewardHead, objective: Objective, own: FeaturePairs) -> None:
        for _ in range(self.max_steps):
            (gradient,) = torch.autograd.grad(objective(head, own).mean(), head.score.weight)
            head.score.weight.data.sub_(gradient, alpha=self.learning_rate)


def _records(batch: FeaturePairs, rows: Tensor) -> FeaturePairs:
    return FeaturePairs(batch.chosen[rows], batch.rejected[rows], batch.weight[rows], batch.row_unit[rows])


def private_steps(
    mechanism: LocalDpSgd,
    work: tuple[RewardHead, Objective, NodeData],
    start: npt.NDArray[np.float64],
    reservation: Reservation,
    *,
    client: int,
    rng: RandomSource,
) -> LocallyPrivate:
    """One client's local DP-SGD from ``start``, on its own units alone, sealed."""
    head, objective, data = work
    own = np.flatnonzero(data.client == client)

    def gradients(parameters: npt.NDArray[np.float64], drawn: Mask) -> npt.NDArray[np.floating]:
        selected = np.zeros(data.num_units, dtype=np.bool_)
        selected[own[drawn]] = True
        set_weight(head, parameters)
        trainable = dict(head.named_parameters())
        rows = per_unit_gradients(head, objective, data.batch(selected), int(drawn.sum()), trainable)
        return torch.Tensor.numpy(rows)

    units = Units(data.client[own], data.place[own])
    return mechanism.train(start, gradients, units, reservation, client=client, rng=rng)
