"""The clients' work for an adapter: one gradient per user or example at the broadcast parameters, or local steps per client.

guarantees.md rules 1 and 2 (all rows of a unit are summed, then clipped once) and 17 (no local steps but for unit client).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from fedpref.client.contribution import RoundClipping, Rows, RowsOf, Vector
from fedpref.client.material import Material, Runtime
from fedpref.client.records import Index, NodeRecords
from fedpref.config_training import LocalConfig
from privacy.clipping import ClippedSum
from privacy.gradients import UnitGradientEngine, UnitGradients
from privacy.sampling import Mask, Units

Objective = Callable[..., Tensor]
NUMBERS_AT_ONCE = 2**26  # of unit gradients in memory: 256 MiB in fp32


class GradientWork:
    """``SecureWork`` of units ``user`` and ``example``: the gradient of a unit's summed loss, clipped once.

    | case | result |
    |---|---|
    | a client without a selected unit, or a unit without records | zeros |
    | a record whose loss is NaN or inf | its unit contributes zero, no other notices |
    | more units than gradients fit into memory | groups of units, one after the other; the sums are exact |
    """

    def __init__(
        self, runtime: Runtime, material: Material, objective: Objective, records: NodeRecords, num_clients: int
    ) -> None:
        self._runtime, self._material, self._records = runtime, material, records
        self._num_clients, self._part = num_clients, runtime.part
        self._part.thaw()
        self._engine = UnitGradientEngine(self._part.model, objective, self._part.parameters)
        self._checked = False

    @property
    def units(self) -> Units:
        """Of the node."""
        return self._records.units

    def clipped_sums(self, parameters: Vector, selected: Mask, clipping: RoundClipping) -> Iterator[ClippedSum]:
        """Client by client; no more than one group of units' gradients, and two clients' sums, are in memory."""
        units = self._begin(parameters, selected)
        at_once = max(1, NUMBERS_AT_ONCE // len(parameters))
        pending: dict[int, ClippedSum] = {}
        done = 0
        for begin in range(0, len(units), at_once):
            group = units[begin : begin + at_once]
            for client, total in self._group(group, clipping):
                pending[client] = pending[client] + total if client in pending else total
            ended = int(self._records.client[group[-1]])  # units are sorted by client: earlier clients are complete
            for client in range(done, ended):
                yield pending.pop(client, clipping.zeros(len(parameters)))
            done = ended
        for client in range(done, self._num_clients):
            yield pending.pop(client, clipping.zeros(len(parameters)))

    def rows_by_client(self, parameters: Vector, selected: Mask) -> RowsOf:
        """A client's gradients, from batches of its own records alone; one group of units is in memory."""
        owner = self._records.client
        return lambda client: self._blocks(parameters, selected & (owner == client))

    def _blocks(self, parameters: Vector, selected: Mask) -> Iterator[Rows]:
        units = self._begin(parameters, selected)
        at_once = max(1, NUMBERS_AT_ONCE // len(parameters))
        for begin in range(0, len(units), at_once):
            yield self._gradients(units[begin : begin + at_once]).flat().cpu().numpy()

    def _begin(self, parameters: Vector, selected: Mask) -> Index:
        """Load the broadcast parameters, prepare the records of the selected units, and return their numbers."""
        self._part.load(torch.from_numpy(parameters).float())
        units = np.flatnonzero(selected)
        self._material.prepare(self._records.of_units(units)[0])
        self._part.thaw()
        self._check_units_leave_one_another_alone(units)
        return units

    def _check_units_leave_one_another_alone(self, units: Index) -> None:
        """Let the engine check its first batch with two units on two short records: that takes many backward passes."""
        records, owner = self._records.of_units(units)
        if self._checked or len(np.unique(owner)) < 2:
            return
        order = np.argsort(self._material.sizes(records), kind="stable")
        other = next(i for i in order if owner[i] != owner[order[0]])
        two = records[[order[0], other]]
        batch = self._material.batch(two, torch.arange(2), torch.from_numpy(self._records.weight[two]))
        self._engine.accumulate(batch, self._engine.zeros(2))
        self._checked = True

    def _group(self, units: Index, clipping: RoundClipping) -> Iterator[tuple[int, ClippedSum]]:
        present, group = np.unique(self._records.client[units], return_inverse=True)
        yield from zip(present.tolist(), clipping.of(self._gradients(units), group, len(present)), strict=True)

    def _gradients(self, units: Index) -> UnitGradients:
        gradients = self._engine.zeros(len(units))
        records, owner = self._records.of_units(units)
        for places in self._runtime.by_tokens(self._material.sizes(records)):
            chosen = records[places]
            weight = torch.from_numpy(self._records.weight[chosen])
            batch = self._material.batch(chosen, torch.from_numpy(owner[places]), weight)
            self._engine.accumulate(batch, gradients)
        return gradients


class LocalWork:
    """``SecureWork`` of unit ``client``: a client trains from the broadcast parameters, and its update is clipped once.

    The update is broadcast minus trained parameters, so that the server steps against it as against a gradient (Reddi et al.
    2021, algorithm 1); with `sgd`, momentum 0 and learning rate 1 this is FedAvg (McMahan et al. 2018 with clipping). Nothing
    of a client outlives the round.

    | case | result |
    |---|---|
    | a client that is not selected, or without records | zeros |
    | training diverges to NaN or inf | that client contributes zero |
    """

    def __init__(
        self,
        runtime: Runtime,
        material: Material,
        objective: Objective,
        records: NodeRecords,
        config: LocalConfig,
    ) -> None:
        self._runtime, self._material, self._objective = runtime, material, objective
        self._records, self._config, self._part = records, config, runtime.part

    @property
    def units(self) -> Units:
        """The clients."""
        return self._records.units

    def clipped_sums(self, parameters: Vector, selected: Mask, clipping: RoundClipping) -> Iterator[ClippedSum]:
        """Client by client; one model, one client's optimiser at a time."""
        update_of = self.rows_by_client(parameters, selected)
        for client in range(len(selected)):
            (update,) = update_of(client)
            yield clipping(update, np.zeros(len(update), np.int64), 1)[0]

    def rows_by_client(self, parameters: Vector, selected: Mask) -> RowsOf:
        """A client trains when it is asked for."""
        return lambda client: [self._update(parameters, client, drawn=bool(selected[client]))]

    def _update(self, parameters: Vector, client: int, *, drawn: bool) -> Rows:
        """The update as the only row; none of a client that is not selected or has no records."""
        records, _ = self._records.of_units(np.array([client]))
        if not drawn or not len(records):
            return np.zeros((0, len(parameters)))
        start = torch.from_numpy(parameters).float()
        self._part.load(start)
        self._material.prepare(records)
        self._part.thaw()
        self._train(records, start.to(self._runtime.device))
        update: Rows = (parameters - self._part.flat().double().cpu().numpy())[None]
        return update

    def _train(self, records: Index, start: Tensor) -> None:
        config, parameters = self._config, list(self._part.parameters.values())
        optimizer = _local_optimizer(config, parameters)
        steps = 0
        for epoch in range(config.num_train_epochs):
            order = np.random.default_rng(epoch).permutation(records)
            for begin in range(0, len(order), config.per_device_train_batch_size):
                if config.max_steps is not None and steps >= config.max_steps:
                    return
                self._accumulate(order[begin : begin + config.per_device_train_batch_size])
                if config.proximal_mu:
                    self._pull(start)
                optimizer.step()
                optimizer.zero_grad()
                steps += 1

    def _accumulate(self, records: Index) -> None:
        """The gradient of the records' mean loss, in micro-batches by tokens."""
        for places in self._runtime.by_tokens(self._material.sizes(records)):
            chosen = records[places]
            number = torch.zeros(len(chosen), dtype=torch.int64)
            batch = self._material.batch(chosen, number, torch.from_numpy(self._records.weight[chosen]))
            losses = self._objective(self._part.model, batch)
            if losses.requires_grad:
                torch.autograd.backward(losses.sum() / len(records))

    def _pull(self, start: Tensor) -> None:
        """The gradient of FedProx's (mu / 2) |theta - broadcast|^2."""
        begin = 0
        for parameter in self._part.parameters.values():
            end = begin + parameter.numel()
            pull = self._config.proximal_mu * (parameter.detach() - start[begin:end].view_as(parameter))
            parameter.grad = pull if parameter.grad is None else parameter.grad + pull
            begin = end


def _local_optimizer(config: LocalConfig, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    if config.optim == "sgd":
        return torch.optim.SGD(parameters, lr=config.learning_rate)
    return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0)
