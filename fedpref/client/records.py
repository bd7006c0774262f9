"""A node's private records for training on tokens: bounded per unit, sorted by unit, each text kept once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedpref.client.work import as_one, client_rows
from fedpref.data.preferences import Preferences
from privacy.sampling import Units
from privacy.units import PrivacyUnit
from reward.pairs import Conversation

Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class NodeRecords:
    """The training records of all clients of one node, sorted by unit.

    Shapes: ``first`` and ``second`` [n] index ``texts`` (the better and the worse answer; an empty one is none), ``weight``
    [n] fp32, ``start`` [units + 1] (records of unit u are start[u] .. start[u+1]), ``client`` and ``place`` [units].
    """

    texts: tuple[Conversation, ...]
    first: Index
    second: Index
    weight: npt.NDArray[np.float32]
    start: Index
    client: Index
    place: npt.NDArray[np.float64]

    @property
    def units(self) -> Units:
        """What sampling may look at."""
        return Units(self.client, self.place)

    def of_units(self, units: Index) -> tuple[Index, Index]:
        """The records of some units, and the place of each record's unit in ``units``; both [records]."""
        counts = self.start[units + 1] - self.start[units]
        records = [np.arange(self.start[u], self.start[u + 1]) for u in units]
        return np.concatenate([np.zeros(0, np.int64), *records]), np.repeat(np.arange(len(units)), counts)


def prepare_records(clients: Mapping[str, Preferences], unit: PrivacyUnit, max_pairs_per_user: int) -> NodeRecords:
    """Bound each user's records by a fixed rule and lay everything out by unit.

    A record weighs 1/sqrt(records of its unit), as for the reward head; under unit ``client``, whose update is clipped as
    a whole, 1.

    Args:
        clients: name -> records, in the order of the clients' numbers; a client without records keeps its number.
        unit: for ``client``, every client is one unit, also without a record.
    """
    parts = [client_rows(i, data, unit, max_pairs_per_user) for i, data in enumerate(clients.values())]
    if unit is PrivacyUnit.CLIENT:
        parts = [as_one(part, name) for part, name in zip(parts, clients, strict=True)]
    row: dict[Conversation, int] = {}
    first, second = [], []
    for data, part in zip(clients.values(), parts, strict=True):
        number = [row.setdefault(text, len(row)) for text in data.used_texts]
        used = np.unique(np.concatenate([data.chosen, data.rejected])).astype(np.int64)
        to_row = dict(zip(used.tolist(), number, strict=True))
        first += [to_row[i] for i in part.chosen.tolist()]
        second += [to_row[i] for i in part.rejected.tolist()]
    counts = np.concatenate([np.zeros(0, np.int64), *(part.counts for part in parts)])
    each = np.ones(len(counts)) if unit is PrivacyUnit.CLIENT else 1.0 / np.sqrt(np.maximum(counts, 1))
    weight = np.repeat(each, counts)
    return NodeRecords(
        tuple(row),
        np.array(first, dtype=np.int64),
        np.array(second, dtype=np.int64),
        weight.astype(np.float32),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        np.concatenate([np.zeros(0, np.int64), *(np.full(len(part.counts), part.client) for part in parts)]),
        np.concatenate([np.zeros(0), *(part.place for part in parts)]),
    )
