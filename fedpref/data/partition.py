"""Users -> clients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedpref.config import PartitionConfig
from fedpref.data.preferences import Preferences
from fedpref.data.split import hash_fraction
from fedpref.errors import UnsupportedPlanError


def partition(
    data: Preferences, config: PartitionConfig, users: Sequence[str], clients: Sequence[str]
) -> dict[str, Preferences]:
    """Client name -> its records. A user's records all go to one client.

    ``users`` and ``clients`` are the members by the files' rows: a member without usable records keeps its client.

    | by | clients |
    |---|---|
    | hash | `num_clients`, also those that no user falls into |
    | natural | one per user |
    | column | one per value of the `client` field; refused if a user is in two |
    | file | made where the files are read, not here |
    """
    if config.by == "hash":
        k = config.num_clients or 1
        names = [f"client-{i:0{len(str(k - 1))}d}" for i in range(k)]
        owner = _hash_owner(data.user, k)
        return {name: data.select(owner == i) for i, name in enumerate(names)}
    key = data.user if config.by == "natural" else data.client
    if config.by == "column":
        one_client_each(data)
    members = users if config.by == "natural" else clients
    return {name: data.select(key == name) for name in members}


def one_client_each(data: Preferences) -> None:
    """Refuse a person who is in two clients.

    Raises:
        UnsupportedPlanError: somebody is.
    """
    pairs = np.unique(np.stack([data.user, data.client]), axis=1)
    users, counts = np.unique(pairs[0], return_counts=True)
    if (counts > 1).any():
        raise UnsupportedPlanError(
            f"{int((counts > 1).sum())} of {len(users)} users have records in several clients.",
            "A person's contribution is clipped in each client, so it would be bounded by a multiple of max_grad_norm.",
            "Partition by hash or natural, or map `client` so that each person belongs to one.",
        )


def _hash_owner(users: npt.NDArray[np.str_], k: int) -> npt.NDArray[np.int64]:
    names, inverse = np.unique(users, return_inverse=True)
    owner = np.array([int(hash_fraction(f"client:{name}") * k) for name in names], dtype=np.int64)
    return owner[inverse] if len(names) else np.zeros(0, dtype=np.int64)
