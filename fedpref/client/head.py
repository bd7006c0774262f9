"""The clients' work for a reward head on frozen features: one gradient per unit, or a client's update of local steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fedpref.client.contribution import RoundClipping, Rows, RowsOf, Vector
from fedpref.client.local_training import LocalTraining
from fedpref.client.work import NodeData
from privacy.clipping import ClippedSum
from privacy.gradients import per_unit_gradients
from privacy.sampling import Mask, Units
from reward.head import RewardHead, bradley_terry_objective, set_weight
from reward.pairs import FeaturePairs

Objective = Callable[[RewardHead, FeaturePairs], Tensor]


class HeadWork:
    """``RowWork`` and ``SecureWork`` of the reward head; see ``RewardHead`` for which there are.

    | unit | row |
    |---|---|
    | `user`, `example` | the gradient of its summed loss at the given parameters |
    | `client`, with ``local`` | given minus trained parameters (DP-FedAvg) |
    """

    def __init__(
        self,
        data: NodeData,
        num_clients: int,
        tensors: Sequence[tuple[str, Sequence[int]]],
        objective: Objective = bradley_terry_objective,
        local: LocalTraining | None = None,
    ) -> None:
        """``tensors``: names and shapes of the manifest.

        ``local``: steps of a client whose update is clipped as a whole (unit `client`); None: one gradient per unit.
        """
        self._data, self._num_clients = data, num_clients
        self._objective, self._local = objective, local
        self._head = RewardHead.of(tensors)
        self._trainable = dict(self._head.named_parameters())

    @property
    def units(self) -> Units:
        """Of the node."""
        return self._data.units

    def clipped_sums(self, parameters: Vector, selected: Mask, clipping: RoundClipping) -> list[ClippedSum]:
        """Per client: the rows of the selected units, clipped and summed."""
        return clipping(self.rows(parameters, selected), self._data.client[selected], self._num_clients)

    def rows_by_client(self, parameters: Vector, selected: Mask) -> RowsOf:
        """All rows at once, then each client's own: they are small."""
        rows, owner = self.rows(parameters, selected), self._data.client[selected]
        order = np.argsort(owner, kind="stable")
        edges = np.searchsorted(owner[order], np.arange(self._num_clients + 1))
        return lambda client: [rows[order[edges[client] : edges[client + 1]]]]

    def rows(self, parameters: Vector, selected: Mask) -> Rows:
        """One row per selected unit, not yet clipped."""
        set_weight(self._head, parameters)
        batch, number = self._data.batch(selected), int(selected.sum())
        if self._local is not None:
            return self._local.updates(self._head, self._objective, batch, number)
        return torch.Tensor.numpy(per_unit_gradients(self._head, self._objective, batch, number, self._trainable))
