"""Pads of Z_{2^b}: AES-256 in counter mode under one-time keys, streamed in chunks that stay in the cache.

The key of a pad is used once (one round, one roster, one model; see ``keys``), so the nonce is zero. A chunk of the
vector is read once, all its pads are added, and it is written once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from privacy.secagg.packing import Ring

_CHUNK = 1 << 17  # bytes; accumulator and pad together fit the second-level cache
_ZEROS = bytes(_CHUNK)


def add_pads(vector: Ring, plus: Sequence[bytes], minus: Sequence[bytes]) -> None:
    """Add the pads of the keys ``plus`` and subtract those of ``minus``, in place and with wrap-around.

    Args:
        vector: uint16 or uint32, contiguous, shape [d]. A pad has one uniform word per coordinate.
        plus: 32-byte keys.
        minus: 32-byte keys.
    """
    encryptors = [(_stream(key), np.add) for key in plus] + [(_stream(key), np.subtract) for key in minus]
    buffer = bytearray(_CHUNK)
    pad = np.frombuffer(buffer, dtype=vector.dtype)
    step = len(pad)
    for start in range(0, len(vector), step):
        part = vector[start : start + step]
        size = part.nbytes
        source, target, words = _ZEROS, buffer, pad
        if size < _CHUNK:
            source, target, words = bytes(size), bytearray(size + 16), pad  # room for a last block
            words = np.frombuffer(target, dtype=vector.dtype, count=len(part))
        for encryptor, combine in encryptors:
            encryptor.update_into(source, target)
            combine(part, words, out=part)


def _stream(key: bytes) -> CipherContext:
    """AES-256-CTR from counter block 2 on, as GCM encrypts (NIST SP 800-38D, section 7.1); its tag is never asked for.

    OpenSSL has wide vector code (VAES) for GCM and none for plain CTR: the same bytes at 1.7 times the speed.
    """
    return Cipher(algorithms.AES(key), modes.GCM(bytes(12))).encryptor()
