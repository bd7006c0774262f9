"""The two messages that may leave a client without secure aggregation, and their bytes.

``Entrusted``: clipped, not noised; only under trust ``central``, only to the server that the client's terms name.
``LocallyPrivate``: noised by the client itself. Both have the same fields and the same size for every round, client and
realised sample (rule 8); nothing else of a client is ever serialised. Their numbers are multiples of the public grid
step of bound and dimension: what is off the grid is no message of ours, and has low-order bits that nobody accounted for.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from privacy.clipping import grid_step
from privacy.errors import ParameterError, SealedMessageError

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
        """Fixed-size bytes: header and little-endian 64-bit floats.

        Raises:
            SealedMessageError: client or round does not fit 32 bits.
        """
        for name, number in (("client", self.client), ("round", self.round)):
            if not 0 <= number < 2**32:
                raise SealedMessageError(
                    f"The {name} number {number} does not fit a message.",
                    "It has 32 bits, without a sign.",
                    f"Number {name}s from 0 or 1 upwards.",
                )
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
        SealedMessageError: wrong length, type, version, client, round or dimension, or a number that is not finite or not on
            the grid.
    """
    if len(data) != size_of(dimension):
        raise _malformed(client, f"{len(data)} bytes instead of {size_of(dimension)}")
    magic, version, who, when, d, bound = _HEAD.unpack_from(data)
    if (magic, version, who, when, d) != (expected.magic, _VERSION, client, round_number, dimension):
        raise _malformed(client, "another type, version, sender, round or dimension than asked for")
    value = np.frombuffer(data, dtype="<f8", offset=_HEAD.size).astype(np.float64)
    if not np.isfinite(value).all() or not np.isfinite(bound):
        raise _malformed(client, "a number that is not finite")
    try:
        with np.errstate(over="ignore"):
            steps = value / grid_step(bound, dimension)
    except ParameterError:
        raise _malformed(client, f"a bound of {bound:g}, which bounds nothing") from None
    if (np.rint(steps) != steps).any() or not (np.abs(steps) <= 2.0**52).all():
        raise _malformed(client, "a number off the grid of its bound")
    return expected(who, when, value, bound)


def _malformed(client: int, why: str) -> SealedMessageError:
    return SealedMessageError(
        f"Client {client} sent something that is not the message asked for.",
        f"It has {why}.",
        "The message is left out; check that client and server run the same version and plan.",
    )
