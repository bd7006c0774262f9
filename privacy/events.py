"""What happened to the private data in one round: a closed, versioned vocabulary.

Constitution. An event is necessary and sufficient for accounting. Fields are never removed or re-used; a new meaning is
a new ``kind``. Events are decoded through the table below and nothing else; no import path is ever taken from a file.
An event that cannot be accounted for shows as epsilon = infinity, never as nothing.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from privacy.errors import UnsupportedEventError

if TYPE_CHECKING:
    import dp_accounting

VOCABULARY_VERSION = 1


@dataclass(frozen=True)
class GaussianEvent:
    """One Gaussian release of a sum with l2 sensitivity C under noise of standard deviation ``noise_multiplier`` C.

    ``sample_rate`` 1.0 means un-amplified. ``noise`` names the sampler (``continuous``: double-precision numbers).
    """

    noise_multiplier: float
    sample_rate: float
    noise: str = "continuous"

    kind = "gaussian"

    def to_json(self) -> dict[str, Any]:
        """Canonical fields."""
        return {
            "kind": self.kind,
            "noise": self.noise,
            "noise_multiplier": self.noise_multiplier,
            "sample_rate": self.sample_rate,
        }

    def to_dp_event(self) -> dp_accounting.DpEvent:
        """The event as dp_accounting knows it."""
        import dp_accounting

        base = dp_accounting.GaussianDpEvent(self.noise_multiplier)
        return base if self.sample_rate == 1.0 else dp_accounting.PoissonSampledDpEvent(self.sample_rate, base)


@dataclass(frozen=True)
class TrustedEvent:
    """This adversary is trusted with un-noised sums by the recipe: nothing is promised against it."""

    kind = "trusted"

    def to_json(self) -> dict[str, Any]:
        """Canonical fields."""
        return {"kind": self.kind}


@dataclass(frozen=True)
class NonPrivateEvent:
    """Something was released without noise, or with noise that can be predicted: epsilon is infinite."""

    reason: str

    kind = "non_private"

    def to_json(self) -> dict[str, Any]:
        """Canonical fields."""
        return {"kind": self.kind, "reason": self.reason}


Event = GaussianEvent | TrustedEvent | NonPrivateEvent


def canonical(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def event_from_json(fields: Any) -> Event:
    """Decode one event through the closed table.

    Raises:
        UnsupportedEventError: unknown kind, a missing or surplus field, or a number out of range.
    """
    if isinstance(fields, dict):
        kind, keys = fields.get("kind"), set(fields)
        if kind == "gaussian" and keys == {"kind", "noise", "noise_multiplier", "sample_rate"}:
            z, q = fields["noise_multiplier"], fields["sample_rate"]
            numbers = all(isinstance(x, float) and math.isfinite(x) for x in (z, q))
            if numbers and z > 0 and 0 < q <= 1 and fields["noise"] == "continuous":
                return GaussianEvent(z, q, fields["noise"])
        if kind == "trusted" and keys == {"kind"}:
            return TrustedEvent()
        if kind == "non_private" and keys == {"kind", "reason"} and isinstance(fields["reason"], str):
            return NonPrivateEvent(fields["reason"])
    raise UnsupportedEventError(
        f"Not an event of vocabulary {VOCABULARY_VERSION}: {str(fields)[:120]}",
        "Events are decoded through a closed table.",
        "Read the ledger with the version of fedpref that wrote it, or restore it from a copy.",
    )
