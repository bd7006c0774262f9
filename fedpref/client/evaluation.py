"""What one evaluation user contributes to federated evaluation: a short bounded vector, never a vote.

Per group g of pairs (seen topics, unseen topics) a user who has pairs in g contributes (1, m) with m the mean of
+1 (right), -1 (wrong), 0 (tie or not finite) over the user's own pairs in g; a user without pairs there (0, 0). So
each group adds at most 2 to the squared norm, a user's whole vector is at most sqrt(2 G) long, and accuracy is
1/2 + sum(m) / (2 sum(1)). Counting from -1 to 1 instead of 0 to 1 halves what the noise does to the accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fedpref.client.contribution import RoundClipping, RowsOf
from privacy.clipping import ClippedSum
from privacy.sampling import Mask, Units

Vector = npt.NDArray[np.float64]


class EvaluationRows(NamedTuple):
    """One row per evaluation user [users, 2 G], and the client of each [users]."""

    value: Vector
    client: npt.NDArray[np.int64]


class EvaluationWork:
    """``SecureWork`` of the one round of federated evaluation; terms, books, journal and seals are those of every round.

    What is summed is not a gradient but ``evaluation_rows`` of the clients that agree, scored by the released model.
    """

    def __init__(self, num_clients: int, rows: Callable[[Collection[int]], EvaluationRows]) -> None:
        """``rows(refusing clients)`` is called once, after terms and books, and is the first to touch a vote."""
        self._num_clients, self._rows = num_clients, rows

    @property
    def units(self) -> Units:
        """One per client: no coin is tossed, and nothing about evaluation users is looked at before the books."""
        return Units(np.arange(self._num_clients), np.zeros(self._num_clients))

    def clipped_sums(self, parameters: Vector, selected: Mask, clipping: RoundClipping) -> list[ClippedSum]:
        """Every evaluation user of a willing client takes part, bounded by ``federated_evaluation.evaluation_bound``."""
        rows = self._of_willing(parameters, selected)
        return clipping(rows.value, rows.client, self._num_clients)

    def rows_by_client(self, parameters: Vector, selected: Mask) -> RowsOf:
        """The same people, client by client."""
        rows = self._of_willing(parameters, selected)
        return lambda client: [rows.value[rows.client == client]]

    def _of_willing(self, parameters: Vector, selected: Mask) -> EvaluationRows:
        del parameters  # what is scored is the released model
        return self._rows(np.flatnonzero(~selected).tolist())


def evaluation_rows(
    correct: Sequence[Vector], users: Sequence[npt.NDArray[np.str_]], client_of: Mapping[str, int]
) -> EvaluationRows:
    """One row per user, of dimension 2 G: presences in the groups, then mean margins.

    Args:
        correct: per group and pair 1, 0.5 or 0 as ``reward.evaluate.pair_correct`` has it, shape [pairs of the group].
        users: per group the user of every pair; a user's pairs in one group become one mean.
        client_of: the one client of every user.

    Guarantees: a user has one row, of at most ``federated_evaluation.evaluation_bound``, and moves no other.

    | case | result |
    |---|---|
    | no user | no row |
    | a figure that is NaN, infinite or outside [0, 1] | the pair counts as a tie |
    | a user in all groups | at most the bound |
    """
    names = sorted({name for group in users for name in group.tolist()})
    row = {name: i for i, name in enumerate(names)}
    groups = len(users)
    table = np.zeros((len(names), 2 * groups))
    for g, (figures, owners) in enumerate(zip(correct, users, strict=True)):
        inside = np.where(np.isfinite(figures), figures, 0.5)
        margins = 2.0 * np.where((inside >= 0) & (inside <= 1), inside, 0.5) - 1.0
        owner = np.array([row[name] for name in owners.tolist()], dtype=np.int64)
        count = np.bincount(owner, minlength=len(names))
        total = np.bincount(owner, weights=margins, minlength=len(names))
        table[:, g] = count > 0
        table[:, groups + g] = total / np.maximum(count, 1)
    clients = np.array([client_of[name] for name in names], dtype=np.int64)
    return EvaluationRows(table, clients)
