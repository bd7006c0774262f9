"""A node's private data as tensors: features once per distinct text, units and their bounded records."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
import torch
from torch import Tensor

from fedpref.data.preferences import Preferences
from fedpref.data.split import hash_fraction
from fedpref.journal import write_durably
from privacy.sampling import Units
from privacy.units import PrivacyUnit
from reward.features import Array
from reward.pairs import Conversation, FeaturePairs

Progress = Callable[[int, int], None]
CHUNK = 256  # texts between two saves of the cache


class Extractor(Protocol):
    """Texts -> features, shape [n, *shape]."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one text's features."""

    def __call__(self, conversations: Sequence[Conversation], progress: Progress = ...) -> Array:
        """Features in order."""


class FeatureStore:
    """Features of every distinct text of one node, computed once and kept in the node's own folder."""

    def __init__(self, extractor: Extractor, key: str, path: Path | None) -> None:
        """Go on with a cache file made under the same ``key`` (model, layer, length); another key or damage starts anew."""
        self._extractor, self._key, self._path = extractor, key, path
        self._known: dict[str, Array] = {}
        if path and path.exists():
            try:
                with safetensors.safe_open(path, framework="np") as file:
                    if (file.metadata() or {}).get("key") == key:
                        rows = file.get_tensor("features")
                        names = file.get_tensor("texts")
                        self._known = {bytes(n).hex(): row for n, row in zip(names, rows, strict=True)}
            except (OSError, safetensors.SafetensorError, KeyError):
                path.unlink(missing_ok=True)

    def __call__(self, conversations: Sequence[Conversation], progress: Progress = lambda done, total: None) -> Array:
        """Features in the order asked for, shape [n, *shape] fp32."""
        names = [_digest(c) for c in conversations]
        missing = list({n: c for n, c in zip(names, conversations, strict=True) if n not in self._known}.items())
        missing.sort(key=lambda item: item[1])  # answers to one prompt together: the extractor shares the prompt's work
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            rows = self._extractor([c for _, c in chunk], _shifted(progress, start, len(missing)))
            self._known.update({name: row for (name, _), row in zip(chunk, rows, strict=True)})
            self._save()
        return np.stack([self._known[n] for n in names]) if names else np.zeros((0, *self._extractor.shape), np.float32)

    def _save(self) -> None:
        if self._path:
            names = np.array([list(bytes.fromhex(n)) for n in self._known], dtype=np.uint8)
            tensors: dict[str, npt.NDArray[Any]] = {"texts": names, "features": np.stack(list(self._known.values()))}
            write_durably(self._path, safetensors.numpy.save(tensors, metadata={"key": self._key}), mode=0o600)


def _shifted(progress: Progress, start: int, total: int) -> Progress:
    return lambda done, _: progress(start + done, total)


@lru_cache(maxsize=65536)
def _digest(conversation: Conversation) -> str:
    return hashlib.sha256(repr(conversation).encode()).hexdigest()


@dataclass(frozen=True)
class NodeData:
    """The training records of all clients of one node, sorted by unit.

    Shapes: ``chosen`` and ``rejected`` [n, d] (mixed layers: [n, layers, d]) fp32, ``weight`` [n], ``start`` [units + 1]
    (records of unit u are start[u] .. start[u+1]), ``client`` and ``place`` [units] as in ``privacy.sampling.Units``.
    """

    chosen: Tensor
    rejected: Tensor
    weight: Tensor
    start: npt.NDArray[np.int64]
    client: npt.NDArray[np.int64]
    place: npt.NDArray[np.float64]

    @property
    def units(self) -> Units:
        """What sampling may look at."""
        return Units(self.client, self.place)

    @property
    def num_units(self) -> int:
        """Privacy units of this node."""
        return len(self.client)

    def batch(self, selected: npt.NDArray[np.bool_]) -> FeaturePairs:
        """The records of the selected units; ``row_unit`` counts the selected units from 0."""
        units = np.flatnonzero(selected)
        counts = self.start[units + 1] - self.start[units]
        row_unit = np.repeat(np.arange(len(units)), counts)
        first = (
            np.repeat(self.start[units] - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts) if len(units) else 0
        )
        rows = torch.from_numpy(np.arange(len(row_unit)) + first)
        return FeaturePairs(self.chosen[rows], self.rejected[rows], self.weight[rows], torch.from_numpy(row_unit))


def prepare_node(
    clients: Mapping[str, Preferences],
    features: Callable[[Sequence[Conversation]], Array],
    unit: PrivacyUnit,
    max_pairs_per_user: int,
) -> NodeData:
    """Bound each person's records by a fixed rule, weight a unit's by 1/sqrt(count), and lay everything out by unit.

    Args:
        clients: name -> records, in the order of the clients' numbers; a client without records keeps its number.
        features: projected features of texts, shape [texts, d] or [texts, layers, d].
        unit: of privacy. ``client``: all of a client's records are one unit, also of one without any, all of weight 1.
        max_pairs_per_user: a user's first pairs in a hash order of their texts; the rest is not used. Looks at that
            user's own records only.
    """
    parts = [client_rows(i, data, unit, max_pairs_per_user) for i, data in enumerate(clients.values())]
    if unit is PrivacyUnit.CLIENT:
        parts = [as_one(rows, name) for rows, name in zip(parts, clients, strict=True)]
    table, offsets = _feature_table(clients, features)
    chosen = np.concatenate([offsets[i][p.chosen] for i, p in enumerate(parts)] or [np.zeros(0, np.int64)])
    rejected = np.concatenate([offsets[i][p.rejected] for i, p in enumerate(parts)] or [np.zeros(0, np.int64)])
    counts = np.concatenate([p.counts for p in parts] or [np.zeros(0, np.int64)])
    return NodeData(
        torch.from_numpy(table[chosen]),
        torch.from_numpy(table[rejected]),
        torch.from_numpy(_weights(counts, unit)),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        np.concatenate([np.full(len(p.counts), p.client) for p in parts] or [np.zeros(0)]).astype(np.int64),
        np.concatenate([p.place for p in parts] or [np.zeros(0)]),
    )


@dataclass(frozen=True)
class Rows:
    """The bounded records of one client, sorted by unit: ``chosen`` and ``rejected`` [n], ``counts`` and ``place`` [units]."""

    client: int
    chosen: npt.NDArray[np.int64]
    rejected: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    place: npt.NDArray[np.float64]


def client_rows(client: int, data: Preferences, unit: PrivacyUnit, limit: int) -> Rows:
    """A user's first ``limit`` records in a hash order of their texts, users in order; or every record by itself."""
    names = [f"{data.user[i]}:{pair_name(data, i)}" for i in range(len(data))]
    order = np.array([hash_fraction(f"order:{name}") for name in names])
    if unit is PrivacyUnit.EXAMPLE:
        keep = np.argsort(order, kind="stable")
        place = places([names[i] for i in keep])
        return Rows(client, data.chosen[keep], data.rejected[keep], np.ones(len(keep), dtype=np.int64), place)
    users, owner = np.unique(data.user, return_inverse=True)
    by_user = np.lexsort((order, owner))
    counts = np.bincount(owner) if len(owner) else np.zeros(0, dtype=np.int64)
    rank = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    keep = by_user[rank < limit]
    place = places([str(user) for user in users])
    return Rows(client, data.chosen[keep], data.rejected[keep], np.minimum(counts, limit), place)


def as_one(rows: Rows, client: str) -> Rows:
    """All records of a client as one unit. Its place depends on the name alone, whatever is trained (``privacy.sampling``)."""
    return replace(rows, counts=np.array([rows.counts.sum()], dtype=np.int64), place=places([client]))


def _weights(counts: npt.NDArray[np.int64], unit: PrivacyUnit) -> npt.NDArray[np.float32]:
    each = np.ones(len(counts)) if unit is PrivacyUnit.CLIENT else 1.0 / np.sqrt(np.maximum(counts, 1))
    return np.repeat(each, counts).astype(np.float32)


def places(names: Sequence[str]) -> npt.NDArray[np.float64]:
    """A hash of each name in [0, 1)."""
    return np.array([hash_fraction(f"place:{name}") for name in names], dtype=np.float64)


def pair_name(data: Preferences, i: int) -> str:
    """A name of the two texts of record ``i``, the same whichever of them is preferred."""
    return "|".join(sorted((_digest(data.texts[data.chosen[i]]), _digest(data.texts[data.rejected[i]]))))


def _feature_table(
    clients: Mapping[str, Preferences], features: Callable[[Sequence[Conversation]], Array]
) -> tuple[Array, list[npt.NDArray[np.int64]]]:
    """One row per distinct text of the node, and per client the map from its text numbers to rows."""
    row: dict[Conversation, int] = {}
    offsets = []
    for data in clients.values():
        used = np.unique(np.concatenate([data.chosen, data.rejected]))
        to_row = np.zeros(len(data.texts), dtype=np.int64)
        for t in used:
            to_row[t] = row.setdefault(data.texts[t], len(row))
        offsets.append(to_row)
    return features(list(row)), offsets
