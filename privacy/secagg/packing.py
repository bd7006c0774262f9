"""Vectors of the ring Z_{2^b} as bytes: 16, 20 (two in five bytes), 24 or 32 bits a coordinate.

In memory a ring vector is uint16 (b = 16) or uint32 (b > 16) with natural wrap-around; only ``pack`` reduces it to b
bits. Both are ring homomorphisms, so sums may be reduced at any time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from privacy.errors import ParameterError

Ring = npt.NDArray[Any]  # uint16 or uint32
BITS = (16, 20, 24, 32)


def word(bits: int) -> np.dtype[Any]:
    """The dtype that holds a ring element in memory."""
    if bits not in BITS:
        raise ParameterError(f"A ring of {bits} bits is not packed.", f"Bits are one of {BITS}.", "Use choose_codec.")
    return np.dtype("<u2") if bits == 16 else np.dtype("<u4")


def packed_size(dimension: int, bits: int) -> int:
    """Bytes of a packed vector."""
    return 5 * ((dimension + 1) // 2) if bits == 20 else dimension * bits // 8


def pack(vector: Ring, bits: int) -> bytes | memoryview:
    """A ring vector, shape [d], as bytes; 16 and 32 bits without a copy."""
    if bits in {16, 32}:
        return vector.data.cast("B")
    octets = vector.view(np.uint8).reshape(-1, 4)
    if bits == 24:
        return bytes(octets[:, :3].tobytes())
    pairs = np.zeros((len(vector) + 1) // 2 * 2, dtype="<u4")
    pairs[: len(vector)] = vector & np.uint32(0xFFFFF)
    both = pairs[0::2].astype("<u8") | (pairs[1::2].astype("<u8") << np.uint64(20))
    return bytes(both.view(np.uint8).reshape(-1, 8)[:, :5].tobytes())


def unpack(data: bytes, dimension: int, bits: int) -> Ring:
    """The inverse of ``pack``; ``data`` has ``packed_size(dimension, bits)`` bytes (the caller has checked)."""
    if bits in {16, 32}:
        return np.frombuffer(data, dtype=word(bits))
    if bits == 24:
        padded = np.zeros((dimension, 4), dtype=np.uint8)
        padded[:, :3] = np.frombuffer(data, dtype=np.uint8).reshape(-1, 3)
        return padded.view("<u4").ravel()
    octets = np.zeros((len(data) // 5, 8), dtype=np.uint8)
    octets[:, :5] = np.frombuffer(data, dtype=np.uint8).reshape(-1, 5)
    both = octets.view("<u8").ravel()
    pairs = np.empty(2 * len(both), dtype="<u4")
    pairs[0::2], pairs[1::2] = both & np.uint64(0xFFFFF), both >> np.uint64(20)
    return pairs[:dimension]


def centred(vector: Ring, bits: int) -> npt.NDArray[np.int64]:
    """The representatives in [-2^(b-1), 2^(b-1)), shape [d]."""
    width = 8 * vector.itemsize
    top = np.left_shift(vector, width - bits) if bits < width else vector  # the sign bit where the machine looks for it
    signed = top.view(np.dtype(f"<i{vector.itemsize}"))
    return np.right_shift(signed, width - bits).astype(np.int64) if bits < width else signed.astype(np.int64)
