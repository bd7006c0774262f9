"""Users -> clients. Everything here depends on who is a member, the declared column and the seed; never on a vote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fedpref.config import PartitionConfig
from fedpref.data.preferences import Preferences
from fedpref.data.split import hash_fraction
from fedpref.errors import UnsupportedPlanError

Values = Mapping[str, Mapping[str, str]]


def partition(
    data: Preferences,
    config: PartitionConfig,
    users: Sequence[str],
    clients: Sequence[str],
    *,
    values: Values | None = None,
) -> dict[str, Preferences]:
    """Client name -> its records. A user's records all go to one client.

    ``users`` and ``clients`` are the members by the files' rows: a member without usable records keeps its client.
    ``values``: `topic` and `client` -> user -> the value of that user's rows (the most frequent one).

    | by | clients | flwr-datasets |
    |---|---|---|
    | hash | `num_clients`, also those that no user falls into; a user's depends on its name alone | |
    | iid | `num_clients`, as many users each as can be (they differ by one at most) | IidPartitioner |
    | dirichlet | `num_clients`; who share a value are dealt by shares drawn from Dirichlet(alpha) | DirichletPartitioner |
    | shards | `num_clients`; users sorted by value, cut into equal shards, `num_shards_per_partition` each | ShardPartitioner |
    | natural | one per user | NaturalIdPartitioner |
    | column | one per value of the `client` field; refused if a user is in two | NaturalIdPartitioner |
    | file | made where the files are read, not here | |

    Raises:
        UnsupportedPlanError: a user in two clients, fewer members than shards, or no column to go by.
    """
    if config.by in {"natural", "column"}:
        if config.by == "column":
            one_client_each(data)
        key, members = (data.user, users) if config.by == "natural" else (data.client, clients)
        return {name: data.select(key == name) for name in members}
    k = config.num_clients or 1
    names = [f"client-{i:0{len(str(k - 1))}d}" for i in range(k)]
    owner = _per_record(data.user, assign(config, users, values or {}))
    return {name: data.select(owner == i) for i, name in enumerate(names)}


def assign(config: PartitionConfig, users: Sequence[str], values: Values) -> dict[str, int]:
    """Member -> number of its client, for the partitions with `num_clients`; hashes of names, no generator's stream."""
    k = config.num_clients or 1
    members = sorted(set(users))
    if config.by == "hash":
        return {user: hashed_client(user, k) for user in members}
    if config.by == "iid":
        return {user: i % k for i, user in enumerate(_shuffled(members, f"iid:{config.seed}"))}
    value = _values_of(members, config, values)
    if config.by == "shards":
        return _shards(members, value, config, k)
    shares = {v: np.cumsum(dirichlet_shares(f"dirichlet:{config.seed}:{v}", k, config.alpha)) for v in value.values()}
    draws = {user: hash_fraction(f"dirichlet:{config.seed}:user:{user}") for user in members}
    return {user: min(int(np.searchsorted(shares[value[user]], draws[user], "right")), k - 1) for user in members}


def hashed_client(user: str, k: int) -> int:
    """Number of a member's client by its name alone; of every evaluation user's, whatever `num_clients` go by."""
    return int(hash_fraction(f"client:{user}") * k)


def dirichlet_shares(name: str, k: int, alpha: float) -> npt.NDArray[np.float64]:
    """One draw from Dirichlet(alpha, ..., alpha), shape [k], fixed by ``name``: normalised Gamma(alpha) quantiles.

    In logarithms, because for a small alpha nearly all Gamma draws are below the least float: there
    log x = (log u + log Gamma(alpha + 1)) / alpha, the first term of the inverse incomplete gamma function.
    """
    from scipy.special import gammaincinv, gammaln

    u = np.array([max(hash_fraction(f"{name}:{i}"), 2.0**-64) for i in range(k)])
    x = gammaincinv(alpha, u)
    with np.errstate(divide="ignore"):
        log_x = np.where(x > 1e-290, np.log(x), (np.log(u) + gammaln(alpha + 1)) / alpha)
    weight = np.exp(log_x - log_x.max())
    return np.asarray(weight / weight.sum())


def _shards(members: list[str], value: Mapping[str, str], config: PartitionConfig, k: int) -> dict[str, int]:
    num_shards = k * config.num_shards_per_partition
    if len(members) < num_shards:
        raise UnsupportedPlanError(
            f"{num_shards} shards cannot be filled by {len(members)} members.",
            "`shards` gives every client num_shards_per_partition shards of at least one person.",
            "Lower num_clients or num_shards_per_partition.",
        )
    ordered = sorted(_shuffled(members, f"shards:{config.seed}"), key=lambda user: value[user])
    dealt = _shuffled([str(i) for i in range(num_shards)], f"deal:{config.seed}")
    client_of = {int(shard): place % k for place, shard in enumerate(dealt)}
    return {user: client_of[place * num_shards // len(ordered)] for place, user in enumerate(ordered)}


def _values_of(members: list[str], config: PartitionConfig, values: Values) -> Mapping[str, str]:
    column = values.get(config.partition_by, {})
    if not any(column.get(user) for user in members):
        raise UnsupportedPlanError(
            f"No data set maps {config.partition_by!r}.",
            f"`partition.by: {config.by}` goes by its values, and all are empty.",
            f"Map a column to `{config.partition_by}` under `fields` in the data set's YAML, or choose by: iid.",
        )
    return {user: column.get(user, "") for user in members}


def _shuffled(names: list[str], salt: str) -> list[str]:
    return sorted(names, key=lambda name: (hash_fraction(f"{salt}:{name}"), name))


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


def _per_record(users: npt.NDArray[np.str_], client_of: Mapping[str, int]) -> npt.NDArray[np.int64]:
    names, inverse = np.unique(users, return_inverse=True)
    owner = np.array([client_of[str(name)] for name in names], dtype=np.int64)
    return owner[inverse] if len(names) else np.zeros(0, dtype=np.int64)
