"""Randomised response on preference labels: drawn once, kept on disk, debiased in the loss.

The label of a pair says which of its two answers was preferred. It is flipped with probability p = 1 / (1 + exp(eps))
(Warner 1965): changing one label changes the probability of any kept table by at most exp(eps). Only the label is
covered, never the prompt, the answers, or that the pair is there. A unit with m labels is covered by m eps. Everything
computed from kept labels is post-processing; drawing one again would spend eps again, hence they are kept.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from privacy.chain import fsync_folder
from privacy.errors import LabelsError, LedgerWriteError, ParameterError
from privacy.events import RandomizedResponseEvent
from privacy.rng import Stream

Flips = npt.NDArray[np.bool_]
_MAGIC = b"fedpref kept labels 1\n"


@dataclass(frozen=True)
class RandomizedResponse:
    """Binary randomised response with ``label_epsilon`` per label, at most ``labels_per_unit`` labels of one unit.

    | case | result |
    |---|---|
    | label_epsilon 0 or below, NaN, inf or above 40; labels_per_unit below 1 | ParameterError |
    | no label | nothing drawn |
    """

    label_epsilon: float
    labels_per_unit: int

    def __post_init__(self) -> None:
        if not (0.0 < self.label_epsilon <= 40.0) or self.labels_per_unit < 1:
            raise ParameterError(
                f"label_epsilon={self.label_epsilon} with {self.labels_per_unit} labels randomises nothing.",
                "It must lie in (0, 40], with at least one label.",
                "Set privacy.label_epsilon, for example to 1.0.",
            )

    @property
    def flip_probability(self) -> float:
        """p = 1 / (1 + exp(label_epsilon))."""
        return 1.0 / (1.0 + math.exp(self.label_epsilon))

    @property
    def event(self) -> RandomizedResponseEvent:
        """The one event of a table of labels; its total stands apart from every other."""
        return RandomizedResponseEvent(float(self.label_epsilon), self.labels_per_unit)

    def draw(self, stream: Stream, n: int) -> Flips:
        """``n`` coins, True = flip, never with less probability than p: the coin for "keep" is rounded down."""
        keep = math.nextafter(1.0 / (1.0 + math.exp(-self.label_epsilon)), 0.0)
        return ~stream.bernoulli(keep, n)


class KeptLabels:
    """The flips of one node, by the name of the record; a file of its own in the node's folder, mode 0600.

    Layout: magic, SHA-256 of the rest, then per record 32 bytes (SHA-256 of its name) and one byte (0 or 1), sorted.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._table: dict[bytes, bool] | None = None  # as read and checked

    @property
    def drawn(self) -> bool:
        """True once a table is on disk."""
        return self._path.exists()

    def draw(self, names: Sequence[str], response: RandomizedResponse, stream: Stream) -> None:
        """Draw every record's coin and keep it; on disk when this returns. Names must differ.

        Raises:
            LabelsError: they were drawn before, or two records have one name.
            LedgerWriteError: the disk refused; nothing was kept, and nothing may be used.
        """
        keys = [hashlib.sha256(name.encode()).digest() for name in names]
        if self.drawn or len(set(keys)) != len(keys):
            raise LabelsError(
                "These labels cannot be drawn.",
                "They were drawn before, or two records have one name.",
                "Use the kept ones; a second draw of a label would spend its epsilon again.",
            )
        flips = response.draw(stream, len(keys))
        body = b"".join(key + bytes([flip]) for key, flip in sorted(zip(keys, flips.tolist(), strict=True)))
        scratch = self._path.with_name(f".{self._path.name}.part")
        try:
            with open(os.open(scratch, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:
                file.write(_MAGIC + hashlib.sha256(body).digest() + body)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(self._path)
            fsync_folder(self._path.parent)
        except OSError as error:
            raise LedgerWriteError(
                f"{self._path.name} could not be written.", f"{error.strerror or error}.", "Free space, then --resume."
            ) from None

    def knows_any(self, names: Sequence[str]) -> bool:
        """True if the label of at least one of these records was drawn.

        Raises:
            LabelsError: the file is missing or broken.
        """
        table = self._read()
        return any(hashlib.sha256(name.encode()).digest() in table for name in names)

    def flips(self, names: Sequence[str]) -> Flips:
        """The kept coins of these records, in their order.

        Raises:
            LabelsError: the file is missing or broken, or does not know a record.
        """
        table = self._read()
        try:
            return np.array([table[hashlib.sha256(name.encode()).digest()] for name in names], dtype=np.bool_)
        except KeyError:
            raise _unusable(self._path.name, "A record is not among those whose labels were drawn") from None

    def _read(self) -> dict[bytes, bool]:
        if self._table is not None:
            return self._table
        try:
            data = self._path.read_bytes()
        except OSError as error:
            raise _unusable(self._path.name, f"It cannot be read: {error.strerror or error}") from None
        start = len(_MAGIC) + 32
        body = data[start:]
        if (
            data[: len(_MAGIC)] != _MAGIC
            or data[len(_MAGIC) : start] != hashlib.sha256(body).digest()
            or len(body) % 33
        ):
            raise _unusable(self._path.name, "Its digest is not that of its content")
        rows = [body[i : i + 33] for i in range(0, len(body), 33)]
        self._table = {row[:32]: row[32] == 1 for row in rows}
        return self._table


def _unusable(name: str, why: str) -> LabelsError:
    return LabelsError(
        f"{name}: the kept labels cannot be used.",
        why + ".",
        "Restore the file from a copy; drawing again would spend every label's epsilon again.",
    )
