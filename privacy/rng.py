"""Random bits: AES-256-CTR keyed by the operating system; a seeded variant for reproducing runs is another, loud type.

``SystemRandom`` keys every stream afresh from ``os.urandom``. ``SeededNonPrivateRandom`` derives the key of a stream
from a seed and the stream's labels, so that a run can be repeated; whoever knows the seed can subtract the noise, hence
its ``private`` is False, and every ledger line and report of such a run is marked ``non_private`` (rule 7).
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Protocol

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from privacy.errors import ParameterError


class Stream:
    """A stream of uniform 64-bit words from AES-256-CTR under one 32-byte key."""

    def __init__(self, key: bytes) -> None:
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def words(self, n: int) -> npt.NDArray[np.uint64]:
        """``n`` independent uniform 64-bit words, shape [n]."""
        return np.frombuffer(self._encryptor.update(bytes(8 * n)), dtype="<u8").astype(np.uint64)

    def bernoulli(self, probability: float, n: int) -> npt.NDArray[np.bool_]:
        """``n`` independent coins, shape [n]; True with ``floor(probability * 2**64) / 2**64``.

        The threshold is rounded down, so a unit is never sampled more often than the event says.

        Raises:
            ParameterError: the probability is not in [0, 1].
        """
        if not 0.0 <= probability <= 1.0:
            raise ParameterError(
                f"A coin cannot have probability={probability}.",
                "Probabilities lie in [0, 1].",
                "Set privacy.sample_rate to a number in (0, 1].",
            )
        if probability == 1.0:
            return np.ones(n, dtype=np.bool_)
        numerator, denominator = probability.as_integer_ratio()
        threshold = np.uint64((numerator << 64) // denominator)
        return self.words(n) < threshold


class RandomSource(Protocol):
    """Hands out streams; two streams with different labels are independent."""

    @property
    def private(self) -> bool:
        """True only if nobody can predict the streams."""

    def stream(self, purpose: str, **labels: int | str) -> Stream:
        """A fresh stream for one purpose (``coins``, ``noise``) of one round and party."""


class SystemRandom:
    """Streams keyed by the operating system's CSPRNG; labels only document the use. Nothing is ever repeated."""

    private = True

    def stream(self, purpose: str, **labels: int | str) -> Stream:
        """A stream under 256 fresh bits of the operating system."""
        del purpose, labels
        return Stream(os.urandom(32))


class SeededNonPrivateRandom:
    """Reproducible streams for tests and for repeating a run. Never private."""

    private = False

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def stream(self, purpose: str, **labels: int | str) -> Stream:
        """The stream that belongs to (seed, purpose, labels); different labels give unrelated streams."""
        name = json.dumps([self._seed, purpose, sorted(labels.items())], separators=(",", ":"))
        return Stream(hashlib.sha256(b"fedpref seeded non-private stream v1|" + name.encode()).digest())
