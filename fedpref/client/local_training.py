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

from fedpref.client.contribution import Rows, RowWork
from privacy.ledger import Reservation
from privacy.local_sgd import LocalDpSgd
from privacy.rng import RandomSource
from privacy.sampling import Mask, Units
from privacy.sealed import LocallyPrivate
from reward.head import RewardHead
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
        """One row per drawn client, shape [num_clients, d]: the broadcast parameters minus the trained ones.

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
        parameters = list(head.parameters())
        start = [parameter.detach().clone() for parameter in parameters]
        rows = np.zeros((num_clients, sum(part.numel() for part in start)), dtype=np.float32)
        for client in range(num_clients):
            own = _records(batch, batch.row_unit == client)
            if len(own.weight):
                self._train(head, objective, own)
            trained = zip(start, parameters, strict=True)
            rows[client] = torch.cat([(first - last.detach()).reshape(-1) for first, last in trained]).numpy()
            for first, parameter in zip(start, parameters, strict=True):
                parameter.data.copy_(first)
        return rows

    def _train(self, head: RewardHead, objective: Objective, own: FeaturePairs) -> None:
        parameters = list(head.parameters())
        for _ in range(self.max_steps):
            gradients = torch.autograd.grad(objective(head, own).mean(), parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.data.sub_(gradient, alpha=self.learning_rate)


def _records(batch: FeaturePairs, rows: Tensor) -> FeaturePairs:
    return FeaturePairs(batch.chosen[rows], batch.rejected[rows], batch.weight[rows], batch.row_unit[rows])


def private_steps(
    mechanism: LocalDpSgd,
    work: RowWork,
    start: npt.NDArray[np.float64],
    reservation: Reservation,
    *,
    client: int,
    rng: RandomSource,
) -> LocallyPrivate:
    """One client's local DP-SGD from ``start``, on its own units alone, sealed."""
    of_node = work.units
    own = np.flatnonzero(of_node.client == client)

    def gradients(parameters: npt.NDArray[np.float64], drawn: Mask) -> Rows:
        selected = np.zeros(len(of_node.client), dtype=np.bool_)
        selected[own[drawn]] = True
        return work.rows(parameters, selected)

    units = Units(of_node.client[own], of_node.place[own])
    return mechanism.train(start, gradients, units, reservation, client=client, rng=rng)
