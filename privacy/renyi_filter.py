"""A privacy filter: a fixed budget at one fixed Rényi order, for events whose parameters were chosen along the way.

Composition theorems hold for parameters that are fixed beforehand. A second run is planned by people who saw the first
one's release. For such a sequence, stop before the sum of the events' Rényi divergences at an order fixed beforehand
passes a budget fixed beforehand, and the whole is (order, budget)-RDP (Feldman and Zrnic 2021, theorem 4.3; Whitehouse,
Ramdas, Rogers and Wu 2023). Its epsilon is called a *filter bound*: it is above what an accountant says of the same
events planned at once.

Units: ``rdp`` in nats at ``order``; epsilon at ``delta`` by Canonne, Kamath and Steinke 2020, proposition 12. The bits
that a discrete sampler loses (``total_variation``) are charged to a part of delta of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.special import gammaln, logsumexp

from privacy.errors import ParameterError
from privacy.events import Event, canonical

ORDERS = (*range(2, 33), *range(36, 65, 4), *range(72, 129, 8), 160, 192, 256, 512)
_SAMPLER = 1e-3  # the part of delta for samplers' total variation


@dataclass(frozen=True)
class Cost:
    """What one event takes out of a filter: Rényi divergence at its order, and total variation."""

    rdp: float
    total_variation: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.rdp + other.rdp, self.total_variation + other.total_variation)

    def __mul__(self, times: int) -> Cost:
        return Cost(self.rdp * times, self.total_variation * times) if times else Cost(0.0)


@dataclass(frozen=True)
class RenyiFilter:
    """A cap (epsilon at delta) watched at one integer order; all three are fixed before the first event.

    Guarantees: if ``admits`` was true of the running total before every event, what was released is (epsilon,
    delta)-DP for the zero-out relation, however later events were chosen.

    | case | result |
    |---|---|
    | nothing spent | bound 0 |
    | a trusted, non-private or unknown event | costs infinity: never admitted |
    | a cap so small that this order cannot show it | admits nothing |
    | epsilon not positive or not finite, delta outside (0, 1), order below 2 or not whole | ParameterError |
    """

    epsilon: float
    delta: float
    order: int

    def __post_init__(self) -> None:
        if not (0 < self.epsilon < math.inf and 0 < self.delta < 1 and type(self.order) is int and self.order >= 2):
            raise ParameterError(
                f"epsilon={self.epsilon}, delta={self.delta}, order={self.order} make no filter.",
                "Epsilon must be positive and finite, delta in (0, 1), the order a whole number from 2.",
                "Check privacy.project_cap, or the budgets of the client's terms.",
            )

    @property
    def allowance(self) -> float:
        """The largest total divergence whose epsilon is the cap; negative if this order can show nothing."""
        return self.epsilon - self._conversion

    @property
    def _conversion(self) -> float:
        delta = self.delta * (1 - _SAMPLER)
        return math.log1p(-1 / self.order) - math.log(delta * self.order) / (self.order - 1)

    def admits(self, total: Cost) -> bool:
        """True if a total may be spent."""
        if total == Cost(0.0):
            return True
        lost = (1 + math.exp(min(self.epsilon, 700.0))) * total.total_variation
        return total.rdp <= self.allowance and lost <= _SAMPLER * self.delta

    def bound(self, total: Cost) -> float:
        """The filter bound of a total: its epsilon at ``delta``; infinite where the samplers lost too much."""
        if total == Cost(0.0):
            return 0.0
        value = max(total.rdp + self._conversion, 0.0)
        lost = (1 + math.exp(min(max(value, self.epsilon), 700.0))) * total.total_variation
        return value if lost <= _SAMPLER * self.delta else math.inf


def best_order(epsilon: float, delta: float, planned: Event) -> int:
    """The order at which the most of a planned event fits a cap; chosen when the books are opened, then fixed."""

    def fits(order: int) -> float:
        cost = event_cost(planned, order).rdp
        return RenyiFilter(epsilon, delta, order).allowance / cost if cost > 0 else -math.inf

    best: int = max(ORDERS, key=fits)
    return best


def event_cost(event: Event, order: int) -> Cost:
    """Divergence of one event at an integer order, the larger of both directions of the zero-out relation."""
    return _cost(canonical(event.to_json()), order)


@lru_cache(maxsize=4096)
def _cost(text: str, order: int) -> Cost:
    import json

    return cost_of_fields(json.loads(text), order)


def cost_of_fields(fields: Mapping[str, Any], order: int) -> Cost:
    """The same from an event's canonical fields. A kind that this table does not know costs infinity.

    A release of at most ``cap`` per unit, or of one block of a fixed order, counts for every unit; one of a truncated
    Poisson sample as an un-amplified release of twice the sensitivity: more than they cost, never less.
    """
    kind = fields["kind"]
    if kind == "repeated":
        return cost_of_fields(fields["event"], order) * int(fields["times"])
    if kind == "gaussian":
        base = sampled_gaussian_rdp(fields["noise_multiplier"], fields["sample_rate"], order)
    elif kind in {"capped", "fixed_order"}:
        base = sampled_gaussian_rdp(fields["noise_multiplier"], 1.0, order)
    elif kind == "truncated_poisson":
        base = sampled_gaussian_rdp(fields["noise_multiplier"] / 2, 1.0, order)
    else:
        return Cost(math.inf)
    # Densities off by a factor exp(+-log_ratio) on both sides: alpha times above, alpha - 1 times below.
    ratio = fields.get("log_ratio", 0.0) * (2 * order - 1) / (order - 1)
    return Cost(base + ratio, fields.get("total_variation", 0.0))


def sampled_gaussian_rdp(noise_multiplier: float, sample_rate: float, order: int) -> float:
    """Divergence at an integer order of the Poisson-subsampled Gaussian (Mironov, Talwar and Zhang 2019, equation 3)."""
    variance = noise_multiplier**2
    if variance == 0.0:  # so little noise that its square underflows
        return math.inf
    if sample_rate == 1.0:
        return order / (2 * variance)
    k = np.arange(order + 1)
    binomial = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    with np.errstate(over="ignore"):
        terms = binomial + k * math.log(sample_rate) + (order - k) * math.log1p(-sample_rate)
        total = logsumexp(terms + k * (k - 1) / (2 * variance))
    return max(float(total), 0.0) / (order - 1)
