"""The two messages that may leave a client without secure aggregation, and their bytes.

``Entrusted``: clipped, not noised; only under trust ``central``, only to the server that the client's terms name.
``LocallyPrivate``: noised by the client itself. Both have the same fields and the same size for every round, client and
realised sample (rule 8); nothing else of a client is ever serialised.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from privacy.errors import SealedMessageError

_HEAD = struct.Struct("<4sBIIId")  # magic, version, client, round, dimension, bound
_VERSION = 1


@dataclass(frozen=True)
class _Sealed:
    client: int
    round: int
    value: npt.NDArray[np.float64]
    l2_bound: float

    magic: ClassVar[bytes]

    def to_bytes(self) -> bytes:
        """Fixed-size bytes: header and little-endian 64-bit floats."""
        head = _HEAD.pack(self.magic, _VERSION, self.client, self.round, len(self.value), self.l2_bound)
        return head + self.value.astype("<f8").tobytes()


@dataclass(frozen=True)
class Entrusted(_Sealed):
    """A client's clipped sum, un-noised, for the trusted server of trust ``central``."""

    magic = b"FPEN"


@dataclass(frozen=True)
class LocallyPrivate(_Sealed):
    """A client's noised sum: private by itself, whoever reads it."""

    magic = b"FPLP"


Sealed = Entrusted | LocallyPrivate


def size_of(dimension: int) -> int:
    """Bytes of one sealed message of this dimension."""
    return _HEAD.size + 8 * dimension


def sealed_from_bytes(data: bytes, expected: type[Sealed], client: int, round_number: int, dimension: int) -> Sealed:
    """Unverified bytes -> the message that was expected from this client in this round.

    Raises:
        SealedMessageError: wrong length, type, version, client, round or dimension, or a number that is not finite.
    """
    if len(data) != size_of(dimension):
        raise _malformed(client, f"{len(data)} bytes instead of {size_of(dimension)}")
    magic, version, who, when, d, bound = _HEAD.unpack_from(data)
    if (magic, version, who, when, d) != (expected.magic, _VERSION, client, round_number, dimension):
        raise _malformed(client, "another type, version, sender, round or dimension than asked for")
    value = np.frombuffer(data, dtype="<f8", offset=_HEAD.size).astype(np.float64)
    if not np.isfinite(value).all() or not np.isfinite(bound):
        raise _malformed(client, "a number that is not finite")
    return expected(who, when, value, bound)


def _malformed(client: int, why: str) -> SealedMessageError:
    return SealedMessageError(
        f"Client {client} sent something that is not the message asked for.",
        f"It has {why}.",
        "The message is left out; check that client and server run the same version and plan.",
    )
