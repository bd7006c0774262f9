"""The seam between server and nodes: send one request to all, collect sealed bytes or failures."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from privacy.events import canonical
from privacy.secagg.robust import Unmasked
from privacy.secagg.shares import NoisedShare


@dataclass(frozen=True)
class RoundRequest:
    """What the server sends to every client in one round; all of it is released already."""

    round: int
    manifest_digest: str
    parameters: npt.NDArray[np.float64]
    clipping_norm: float | None = None  # under adaptive clipping: the norm of this round, from noised counts

    @property
    def digest(self) -> bytes:
        """SHA-256 of all fields: what masks are bound to, so that clients which are asked different things do not cancel."""
        head = canonical([self.round, self.manifest_digest, self.clipping_norm]).encode()
        return hashlib.sha256(head + b"\n" + self.parameters.astype("<f8").tobytes()).digest()


@dataclass(frozen=True)
class Failure:
    """No usable reply from a client, by the channel's own account; its place in the replies says from which."""

    why: str
    code: str = ""
    """Of a coded refusal (FP413: the client's terms); empty for silence."""


class Channel(Protocol):
    """Sends a request to every client of the federation."""

    def exchange(self, request: RoundRequest) -> list[bytes | Failure] | Unmasked:
        """One reply per client, in the order of the clients; a client that does not answer is a ``Failure``.

        Under secure aggregation there are no replies to see: the unmasked sum comes back, or one per bucket.

        Raises:
            RoundAborted: under secure aggregation; nothing was unmasked, and the round stays booked.
        """


class Trips(Protocol):
    """Carries one trip of secure aggregation to the nodes and back."""

    def trip(self, bundles: Mapping[int, bytes], request: RoundRequest | None) -> Mapping[int, bytes | Failure]:
        """Each client's bundle to its node, with what is asked in the trip that wants vectors; who is silent is missing."""


class OpenShares(Protocol):
    """A node in the server's own process that hands out its clients' integers, for simulations alone."""

    def shares(
        self, request: RoundRequest, number: int, clients: tuple[int, ...]
    ) -> Mapping[int, NoisedShare | Failure]:
        """The noised, unmasked integers of each of these clients."""


class Answering(Protocol):
    """A node: answers for its clients."""

    def contribute(self, request: RoundRequest) -> list[bytes | Failure]:
        """One sealed contribution per client, or its coded refusal."""
