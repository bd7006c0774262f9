"""The clients' work for a linear reward head on frozen features: one closed-form gradient per unit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpref.client.contribution import RoundClipping, Vector
from fedpref.client.work import NodeData
from privacy.clipping import ClippedSum
from privacy.gradients import per_unit_gradients
from privacy.sampling import Mask, Units
from reward.head import RewardHead, bradley_terry_objective, set_weight
from reward.pairs import FeaturePairs

Objective = Callable[[RewardHead, FeaturePairs], Tensor]


class HeadWork:
    """``ClientWork`` of the reward head."""

    def __init__(
        self, data: NodeData, num_clients: int, dimension: int, objective: Objective = bradley_terry_objective
    ) -> None:
        self._data, self._num_clients, self._objective = data, num_clients, objective
        self._head = RewardHead(dimension)
        self._trainable = dict(self._head.named_parameters())

    @property
    def units(self) -> Units:
        """Of the node."""
        return self._data.units

    def clipped_sums(self, parameters: Vector, selected: Mask, clipping: RoundClipping) -> list[ClippedSum]:
        """Per client: the clipped gradients of the selected units, summed."""
        return clipping(self._gradients(parameters, selected), self._data.client[selected], self._num_clients)

    def rows(self, parameters: Vector, selected: Mask) -> list[npt.NDArray[np.floating]]:
        """Per client: the gradients of its selected units."""
        gradients, owner = self._gradients(parameters, selected), self._data.client[selected]
        return [gradients[owner == client] for client in range(self._num_clients)]

    def _gradients(self, parameters: Vector, selected: Mask) -> npt.NDArray[np.floating]:
        set_weight(self._head, parameters)
        batch, number = self._data.batch(selected), int(selected.sum())
        return torch.Tensor.numpy(per_unit_gradients(self._head, self._objective, batch, number, self._trainable))
