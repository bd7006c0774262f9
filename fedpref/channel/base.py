"""The seam between server and nodes: send one request to all, collect sealed bytes or failures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class RoundRequest:
    """What the server sends to every client in one round; all of it is released already."""

    round: int
    manifest_digest: str
    parameters: npt.NDArray[np.float64]
    clipping_norm: float | None = None  # under adaptive clipping: the norm of this round, from noised counts


@dataclass(frozen=True)
class Failure:
    """No usable reply from a client, by the channel's own account; its place in the replies says from which."""

    why: str
    code: str = ""
    """Of a coded refusal (FP413: the client's terms); empty for silence."""


class Channel(Protocol):
    """Sends a request to every client of the federation."""

    def exchange(self, request: RoundRequest) -> list[bytes | Failure]:
        """One reply per client, in the order of the clients; a client that does not answer is a ``Failure``."""


class Answering(Protocol):
    """A node: answers for its clients."""

    def contribute(self, request: RoundRequest) -> list[bytes | Failure]:
        """One sealed contribution per client, or its coded refusal."""
