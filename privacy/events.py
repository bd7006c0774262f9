"""What happened to the private data in one round: a closed, versioned vocabulary.

Constitution. An event is necessary and sufficient for accounting. Fields are never removed or re-used; a new meaning is
a new ``kind``. Events are decoded through the table below and nothing else; no import path is ever taken from a file.
An event that cannot be accounted for shows as epsilon = infinity, never as nothing.

| kind | what one line books |
|---|---|
| gaussian | one (Poisson-sampled) Gaussian release; ``noise: continuous`` is that of old ledgers |
| truncated_poisson | the same, with at most ``largest_cohort`` units of ``population`` drawn |
| fixed_order | one un-amplified release that touches the units of one block of a fixed order alone |
| capped | one un-amplified release of which a unit takes part in at most ``cap`` within ``scope`` |
| repeated | ``times`` of a gaussian event within one round (local DP-SGD) |
| randomized_response | labels drawn once and kept: a total of its own |
| trusted, non_private | no finite epsilon |
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from privacy.errors import UnsupportedEventError

if TYPE_CHECKING:
    import dp_accounting

VOCABULARY_VERSION = 1


class _Coded:
    """``to_json`` of a flat event: its kind and its fields."""

    kind: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        """Canonical fields."""
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class GaussianEvent:
    """One Gaussian release of a sum with l2 sensitivity C, as private as noise of deviation ``noise_multiplier`` C.

    ``sample_rate`` 1.0 means un-amplified. ``noise`` names the sampler: ``continuous`` (double-precision numbers, old
    ledgers) or ``discrete`` (integers on a grid). A discrete release is, up to a factor exp(+-``log_ratio``) in
    density and up to ``total_variation``, post-processing of the continuous one with the same ``noise_multiplier``;
    accounting charges both (``privacy.mechanism``).
    """

    noise_multiplier: float
    sample_rate: float
    noise: str = "continuous"
    log_ratio: float = 0.0
    total_variation: float = 0.0

    kind = "gaussian"

    def to_json(self) -> dict[str, Any]:
        """Canonical fields; a continuous event has no slack."""
        fields = {"kind": self.kind, **asdict(self)}
        if self.noise == "continuous":
            del fields["log_ratio"], fields["total_variation"]
        return fields

    def to_dp_event(self) -> dp_accounting.DpEvent:
        """The event as dp_accounting knows it, without the slack."""
        import dp_accounting

        base = dp_accounting.GaussianDpEvent(self.noise_multiplier)
        return base if self.sample_rate == 1.0 else dp_accounting.PoissonSampledDpEvent(self.sample_rate, base)


@dataclass(frozen=True)
class TruncatedPoissonEvent(_Coded):
    """A discrete Gaussian release of Poisson-sampled units, cut to ``largest_cohort`` of ``population`` at random."""

    noise_multiplier: float
    sample_rate: float
    population: int
    largest_cohort: int
    log_ratio: float
    total_variation: float

    kind = "truncated_poisson"


@dataclass(frozen=True)
class FixedOrderEvent(_Coded):
    """An un-amplified discrete Gaussian release of the units of ``block``, one of ``blocks``.

    A unit sits in one block of an ``order`` (a name of the assignment, for example a run). Events of one order compose
    for the worst block; events of different orders add up.
    """

    noise_multiplier: float
    blocks: int
    block: int
    order: str
    log_ratio: float
    total_variation: float

    kind = "fixed_order"


@dataclass(frozen=True)
class CappedEvent(_Coded):
    """An un-amplified discrete Gaussian release; every unit refuses its (``cap`` + 1)-th one within ``scope``."""

    noise_multiplier: float
    cap: int
    scope: str
    log_ratio: float
    total_variation: float

    kind = "capped"


@dataclass(frozen=True)
class RepeatedEvent:
    """``times`` adaptive repetitions of one Gaussian event within a round."""

    event: GaussianEvent
    times: int

    kind = "repeated"

    def to_json(self) -> dict[str, Any]:
        """Canonical fields."""
        return {"kind": self.kind, "event": self.event.to_json(), "times": self.times}


@dataclass(frozen=True)
class RandomizedResponseEvent(_Coded):
    """Binary labels under randomised response with ``label_epsilon`` each, at most ``labels_per_unit`` of one unit.

    Warner 1965. Covers which answer was preferred, never the prompt and never that there is a record.
    """

    label_epsilon: float
    labels_per_unit: int

    kind = "randomized_response"


@dataclass(frozen=True)
class TrustedEvent(_Coded):
    """This adversary is trusted with un-noised sums by the recipe: nothing is promised against it."""

    kind = "trusted"


@dataclass(frozen=True)
class NonPrivateEvent(_Coded):
    """Something was released without noise, or with noise that can be predicted: epsilon is infinite."""

    reason: str

    kind = "non_private"


Event = (
    GaussianEvent
    | TruncatedPoissonEvent
    | FixedOrderEvent
    | CappedEvent
    | RepeatedEvent
    | RandomizedResponseEvent
    | TrustedEvent
    | NonPrivateEvent
)


def canonical(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _multiplier(x: Any) -> bool:
    return type(x) is float and 0 < x < math.inf


def _slack(x: Any) -> bool:
    return type(x) is float and 0 <= x < 1


def _rate(x: Any) -> bool:
    return type(x) is float and 0 < x <= 1


def _count(x: Any) -> bool:
    return type(x) is int and 1 <= x < 2**31


_SLACK: Mapping[str, Callable[[Any], bool]] = {"log_ratio": _slack, "total_variation": _slack}
_GAUSSIAN: Mapping[str, Callable[[Any], bool]] = {"noise_multiplier": _multiplier, "sample_rate": _rate}
_TABLE: tuple[tuple[type, Mapping[str, Callable[[Any], bool]]], ...] = (
    (GaussianEvent, {**_GAUSSIAN, "noise": lambda x: x == "continuous"}),
    (GaussianEvent, {**_GAUSSIAN, "noise": lambda x: x == "discrete", **_SLACK}),
    (TruncatedPoissonEvent, {**_GAUSSIAN, "population": _count, "largest_cohort": _count, **_SLACK}),
    (
        FixedOrderEvent,
        {
            "noise_multiplier": _multiplier,
            "blocks": _count,
            "block": lambda x: type(x) is int and x >= 0,
            "order": lambda x: isinstance(x, str),
            **_SLACK,
        },
    ),
    (CappedEvent, {"noise_multiplier": _multiplier, "cap": _count, "scope": lambda x: isinstance(x, str), **_SLACK}),
    (RandomizedResponseEvent, {"label_epsilon": _multiplier, "labels_per_unit": _count}),
    (TrustedEvent, {}),
    (NonPrivateEvent, {"reason": lambda x: isinstance(x, str)}),
)


def event_from_json(fields: Any) -> Event:
    """Decode one event through the closed table.

    Raises:
        UnsupportedEventError: unknown kind, a missing or surplus field, or a number out of range.
    """
    if isinstance(fields, dict):
        if fields.get("kind") == "repeated" and set(fields) == {"kind", "event", "times"} and _count(fields["times"]):
            inner = fields["event"]
            if isinstance(inner, dict) and inner.get("kind") == "gaussian":
                return RepeatedEvent(event_from_json(inner), fields["times"])  # type: ignore[arg-type]
        for kind, checks in _TABLE:
            values = {name: value for name, value in fields.items() if name != "kind"}
            if fields.get("kind") == kind.kind and values.keys() == checks.keys():  # type: ignore[attr-defined]
                event: Event = kind(**values)
                if all(check(values[name]) for name, check in checks.items()) and _fits(event):
                    return event
    raise UnsupportedEventError(
        f"Not an event of vocabulary {VOCABULARY_VERSION}: {str(fields)[:120]}",
        "Events are decoded through a closed table.",
        "Read the ledger with the version of fedpref that wrote it, or restore it from a copy.",
    )


def _fits(event: Event) -> bool:
    """Fields that bound one another."""
    if isinstance(event, FixedOrderEvent):
        return event.block < event.blocks
    if isinstance(event, TruncatedPoissonEvent):
        return event.largest_cohort <= event.population
    return True
