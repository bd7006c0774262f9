"""Clipped real vectors <-> integers whose sensitivity is an integer too.

    units --clip, scale, cut to 16 fractional bits--> int64, summed exactly
          --rotate (optional)--> --dither: floor((x + U) / 2^s)--> --clamp to [-L, L]--> integers of few bits

Why the sensitivity holds. Cutting towards zero never enlarges a norm, and integer sums do not depend on their order. For
one and the same U, floor((x+v+U)/S) - floor((x+U)/S) = floor((v+U')/S) with U' = (x+U) mod S, which is uniform: what a
unit adds to the rounded vector has exactly the law of its own rounding, whatever the others hold; its squared norm is
at most ``sensitivity2`` except with probability ``rounding_failure``. Where the unit is the client itself, the rounding
is repeated until the integer norm holds (conditional rounding, Kairouz, Liu and Steinke 2021), and the failure is zero;
inside a client that would be wrong, because acceptance would depend on all units together. Clamping is a projection on
a convex set and does not enlarge a distance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from privacy.clipping import INSIDE
from privacy.errors import MechanismMisuseError, ParameterError
from privacy.rng import Stream
from privacy.secagg.bounds import rounded_norm2
from privacy.secagg.packing import BITS, packed_size
from privacy.secagg.rotation import LARGEST_SUM, hadamard, signs
from privacy.units import PrivacyUnit

Integers = npt.NDArray[np.int64]
FRACTION = 16  # bits below one step of the grid in which units are summed
LARGEST_ROTATION = 22  # log2; beyond it padding never pays and sums of the transform would leave 2^53
CLIENT_FAILURE = math.exp(-0.5)  # of one attempt of the conditional rounding
_ATTEMPTS = 32
_CHUNK = 1 << 15  # coordinates; a few temporaries of this size fit the second-level cache


@dataclass(frozen=True)
class GridSum:
    """Clipped units of one client, summed exactly on the fine grid. Not noised: it has no serialiser."""

    value: npt.NDArray[np.signedinteger[Any]]
    codec: Codec

    def __reduce__(self) -> str | tuple[object, ...]:
        raise MechanismMisuseError(
            "A sum on the grid cannot be pickled or copied out of the process.",
            "It is not noised yet.",
            "Add the client's noise share and mask it.",
        )


@dataclass(frozen=True)
class Codec:
    """How vectors become integers; part of the plan, equal for all clients.

    Attributes:
        dimension: d.
        max_grad_norm: C, the clipping norm of one unit.
        steps: c, how many steps of the grid C is long (where the rounding happens).
        bits: b of the ring Z_{2^b}.
        rotated: transform by a randomised Hadamard matrix first (pads d to a power of two).
        clamp: L, the largest coordinate.
        unit: ``client`` rounds conditionally, ``user`` and ``example`` use the shared dither.
        rounding_failure: beta, for units inside a client; 0 for unit ``client``.
    """

    dimension: int
    max_grad_norm: float
    steps: float
    bits: int
    rotated: bool
    clamp: int
    unit: PrivacyUnit
    rounding_failure: float

    def __post_init__(self) -> None:
        client = self.unit is PrivacyUnit.CLIENT
        sound = (
            self.dimension >= 1
            and 0 < self.max_grad_norm < math.inf
            and 1 <= self.steps < 2 ** (31 - FRACTION)
            and self.bits in BITS
            and 1 <= self.clamp < 1 << (self.bits - 1)
            and (self.rounding_failure == 0 if client else 0 < self.rounding_failure <= 1e-6)
            and (not self.rotated or self._log2 <= LARGEST_ROTATION)
        )
        if not sound:
            raise ParameterError(
                f"No codec with {self.to_json()}.",
                "Some number is out of range: dimension and clamp at least 1, norm positive, 1 <= steps < 32,768, "
                f"bits one of {BITS}, rounding_failure 0 for unit `client` and in (0, 1e-6] otherwise.",
                "Use choose_codec, which finds the cheapest sound one.",
            )

    @property
    def _log2(self) -> int:
        return max(1, (self.dimension - 1).bit_length())

    @property
    def coordinates(self) -> int:
        """D: the dimension, padded to a power of two if rotated."""
        return 1 << self._log2 if self.rotated else self.dimension

    @property
    def shift(self) -> int:
        """log2 of S, the number of fine steps in one step of the grid; a rotation adds half of log2 D, rounded up."""
        return FRACTION + ((self._log2 + 1) // 2 if self.rotated else 0)

    @cached_property
    def scale(self) -> float:
        """Fine steps per real unit before the rotation, which multiplies norms by sqrt(D)."""
        return (
            self.steps / self.max_grad_norm * 2.0**self.shift / (math.sqrt(self.coordinates) if self.rotated else 1.0)
        )

    @cached_property
    def sensitivity2(self) -> int:
        """B^2: squared l2 distance by which one unit moves the integer vector."""
        failure = CLIENT_FAILURE if self.unit is PrivacyUnit.CLIENT else self.rounding_failure
        return rounded_norm2(self.steps, self.coordinates, failure)

    @property
    def upload_bytes(self) -> int:
        """Bytes of one masked vector."""
        return packed_size(self.coordinates, self.bits)

    def to_json(self) -> dict[str, Any]:
        """Canonical fields, for the plan's digest."""
        return {**asdict(self), "unit": self.unit.value}

    def sum_units(self, contributions: npt.NDArray[np.floating[Any]]) -> GridSum:
        """Clip every row to ``max_grad_norm``, put it on the fine grid and add the rows, exactly.

        Args:
            contributions: one row per privacy unit, shape [units, d]; for unit ``client`` at most one row.

        | row | contributes |
        |---|---|
        | any NaN or inf, or a squared norm that overflows | exactly zero |
        | norm 0, or no row | zero |
        | a coordinate beyond 2^53 / D fine steps after clipping, with rotation | that coordinate is clamped in the sum |

        Raises:
            ParameterError: the rows have another length, or a second row for unit ``client``.
        """
        if contributions.ndim != 2 or contributions.shape[1] != self.dimension:
            raise ParameterError(
                f"Rows of shape {contributions.shape} for dimension {self.dimension}.",
                "One row per unit, one column per parameter.",
                "Build codec and objective from one plan.",
            )
        if self.unit is PrivacyUnit.CLIENT and len(contributions) > 1:
            raise ParameterError(
                f"{len(contributions)} rows for one client.", "The unit is the client.", "Clip its whole update once."
            )
        # One row of norm below 2^15 steps fits 32 bits; that halves the memory of a large model's update.
        narrow = self.unit is PrivacyUnit.CLIENT and not self.rotated
        total: npt.NDArray[np.signedinteger[Any]] = np.zeros(self.dimension, dtype=np.int32 if narrow else np.int64)
        buffer = np.empty(_CHUNK)
        for row in contributions:
            self._add_row(total, row, buffer)
        return GridSum(total, self)

    def sum_blocks(self, blocks: Iterable[npt.NDArray[np.floating[Any]]]) -> GridSum:
        """``sum_units`` of rows that come block by block, so that only one block is in memory; the same integers.

        Raises:
            ParameterError: as ``sum_units``.
        """
        total, rows = self.sum_units(np.zeros((0, self.dimension))), 0
        for block in blocks:
            rows += len(block)
            if rows > 1 and self.unit is PrivacyUnit.CLIENT:
                raise ParameterError(
                    f"{rows} rows for one client.", "The unit is the client.", "Clip its whole update once."
                )
            total.value[:] += self.sum_units(block).value
        return total

    def _add_row(
        self,
        total: npt.NDArray[np.signedinteger[Any]],
        row: npt.NDArray[np.floating[Any]],
        buffer: npt.NDArray[np.float64],
    ) -> None:
        parts = [slice(start, start + _CHUNK) for start in range(0, self.dimension, _CHUNK)]
        with np.errstate(over="ignore", invalid="ignore"):
            squares = [_square(row[part], buffer) for part in parts]
        norm = math.sqrt(math.fsum(squares)) if all(map(math.isfinite, squares)) else math.inf
        if not math.isfinite(norm) or norm == 0:
            return
        factor = min(1.0, self.max_grad_norm * INSIDE / norm) * self.scale
        for part in parts:
            scaled = buffer[: len(row[part])]
            np.multiply(row[part], factor, out=scaled, dtype=np.float64)
            total[part] += scaled.astype(total.dtype)  # a cast cuts towards zero

    def round(self, units: GridSum, dither: Stream, rotation_key: bytes) -> npt.NDArray[np.int32]:
        """Rotate, round with one private dither for the whole sum, clamp; shape [coordinates].

        Args:
            dither: a stream nobody else knows, used for nothing else.
            rotation_key: 32 public bytes of the round, equal for all clients.

        Raises:
            MechanismMisuseError: the sum was made under another codec.
        """
        if units.codec != self:
            raise MechanismMisuseError(
                "A sum was made under another codec.", "Its sensitivity is another.", "Use one plan for a whole round."
            )
        exact = self._rotate(units.value, rotation_key) if self.rotated else units.value
        rounded = np.empty(len(exact), dtype=np.int32)
        for _ in range(_ATTEMPTS):
            squares = self._dither(exact, dither, rounded)
            if self.unit is not PrivacyUnit.CLIENT or squares <= self.sensitivity2:
                return rounded
        return np.zeros_like(rounded)

    def _rotate(self, value: npt.NDArray[np.signedinteger[Any]], key: bytes) -> Integers:
        """H diag(signs) x in integers. The clamp keeps all sums below 2^53; it is a projection like the other one."""
        limit = LARGEST_SUM // self.coordinates
        padded = np.zeros(self.coordinates)
        padded[: self.dimension] = np.clip(value, -limit, limit)
        padded *= signs(key, self.coordinates)
        return hadamard(padded).astype(np.int64)

    def _dither(self, exact: npt.NDArray[np.signedinteger[Any]], dither: Stream, rounded: npt.NDArray[np.int32]) -> int:
        """Fill ``rounded`` with the clamped integers; returns the squared norm before the clamp.

        Only unit ``client`` looks at it, and there it cannot overflow: norms are below 2^15 + sqrt(D).
        """
        squares = 0
        for start in range(0, len(exact), _CHUNK):
            x = exact[start : start + _CHUNK]
            y = x.astype(np.int64)
            y += _below(dither, self.shift, len(x))
            y >>= self.shift
            if self.unit is PrivacyUnit.CLIENT:
                squares += int(np.dot(y, y))
            np.clip(y, -self.clamp, self.clamp, out=y)
            rounded[start : start + _CHUNK] = y
        return squares

    def decode(self, total: Integers, rotation_key: bytes) -> npt.NDArray[np.float64]:
        """A sum of integer vectors, shape [coordinates], as a real one, shape [d]."""
        step = self.max_grad_norm / self.steps
        if not self.rotated:
            return np.asarray(total * step, dtype=np.float64)
        back: npt.NDArray[np.float64] = hadamard(total.astype(np.float64)) * signs(rotation_key, self.coordinates)
        return back[: self.dimension] * (step / math.sqrt(self.coordinates))


def _square(part: npt.NDArray[np.floating[Any]], buffer: npt.NDArray[np.float64]) -> float:
    wide = buffer[: len(part)]
    wide[:] = part
    return float(np.dot(wide, wide))


def _below(stream: Stream, bits: int, n: int) -> npt.NDArray[Any]:
    """Uniform integers in [0, 2^bits), bits <= 32, shape [n]."""
    if bits == 16:
        return stream.words((n + 3) // 4).astype("<u8").view("<u2")[:n]
    words = stream.words((n + 1) // 2).astype("<u8").view("<u4")[:n]
    return (words & np.uint32((1 << bits) - 1)).astype(np.int64)
