"""What one evaluation user contributes to federated evaluation: a short bounded vector, never a vote.

Per group g of pairs (seen topics, unseen topics) a user who has pairs in g contributes (1, m) with m the mean of
+1 (right), -1 (wrong), 0 (tie or not finite) over the user's own pairs in g; a user without pairs there (0, 0). So
each group adds at most 2 to the squared norm, a user's whole vector is at most sqrt(2 G) long, and accuracy is
1/2 + sum(m) / (2 sum(1)). Counting from -1 to 1 instead of 0 to 1 halves what the noise does to the accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from fedpref.channel.base import RoundRequest
from fedpref.client.guard import Guard
from fedpref.client.node import Node
from fedpref.client.work import NodeData
from fedpref.federated_evaluation import evaluation_bound
from fedpref.journal import SealedJournal
from fedpref.manifest import Manifest
from privacy.clipping import ClippedSum, clip_and_sum
from privacy.errors import CodedError
from privacy.ledger import Ledger
from privacy.mechanism import GaussianMechanism
from privacy.rng import RandomSource
from privacy.terms import Offer

Vector = npt.NDArray[np.float64]
Sums = Callable[[Collection[int]], list[ClippedSum]]


class EvaluationNode(Node):
    """A node in the one round of federated evaluation: terms, books, journal and seals are those of every round.

    What it sums is not a gradient but ``evaluation_sums`` of the clients that agree, scored by the released model.
    """

    def __init__(
        self,
        *,
        name: str,
        num_clients: int,
        manifest: Manifest,
        mechanism: GaussianMechanism,
        ledger: Ledger,
        journal: SealedJournal,
        rng: RandomSource,
        offer: Offer,
        guards: Mapping[int, Guard],
        sums: Sums,
    ) -> None:
        """``sums(refusing clients)`` is called once, after terms and books, and is the first to touch a vote."""
        super().__init__(
            name=name,
            num_clients=num_clients,
            data=_no_training_data(),
            manifest=manifest,
            mechanism=mechanism,
            ledger=ledger,
            journal=journal,
            rng=rng,
            offer=offer,
            guards=guards,
        )
        self._sums = sums

    def _clipped_sums(
        self, request: RoundRequest, mechanism: GaussianMechanism, refusals: Mapping[int, CodedError]
    ) -> list[ClippedSum]:
        """No coins: every evaluation user of a willing client takes part."""
        del request, mechanism
        return self._sums(refusals.keys())


def _no_training_data() -> NodeData:
    nothing, nobody = torch.zeros(0, 1), np.zeros(0, dtype=np.int64)
    return NodeData(nothing, nothing, torch.zeros(0), np.zeros(1, dtype=np.int64), nobody, np.zeros(0))


def evaluation_sums(
    correct: Sequence[Vector], users: Sequence[npt.NDArray[np.str_]], client_of: Mapping[str, int], num_clients: int
) -> list[ClippedSum]:
    """One clipped sum per client, of dimension 2 G: presences of the groups, then mean margins.

    Args:
        correct: per group and pair 1, 0.5 or 0 as ``reward.evaluate.pair_correct`` has it, shape [pairs of the group].
        users: per group the user of every pair; a user's pairs in one group become one mean.
        client_of: the one client of every user.
        num_clients: each gets a sum, also without an evaluation user.

    Guarantees: a user moves the sum of the user's client by at most ``evaluation_bound``, and no other.

    | case | result |
    |---|---|
    | no user | zeros of the same size |
    | a figure that is NaN, infinite or outside [0, 1] | the pair counts as a tie |
    | a user in all groups | at most the bound, cut to the grid |
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
    return clip_and_sum(table, clients, num_clients, evaluation_bound(groups))
