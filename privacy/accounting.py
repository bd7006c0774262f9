"""Events -> epsilon at a delta, by dp_accounting's privacy loss distributions; RDP is the cross-check.

Un-amplified Gaussians alone compose in closed form (``privacy.analytic_gaussian``), which is exact and takes no time.

Relation: zero-out, which is the REPLACE_SPECIAL of dp_accounting. PLD reports; it must not exceed RDP by 0.01 or 1 %
(rule 11). Koskela, Jälkö and Honkela 2020; Doroshenko et al. 2022 (PLD); Mironov, Talwar and Zhang 2019 (RDP).

Events become rows (noise multiplier, sample rate, count), of which the accountants compose any mixture; a row of a
truncated Poisson sample has two numbers more, population and largest cohort (after Ganesh 2024; PLD only, so that its
cross-check is the un-amplified Gaussian of four times the sensitivity, which it never exceeds).
"""

from __future__ import annotations

import logging
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

from privacy.analytic_gaussian import analytic_epsilon, composed_mu, gaussian_rdp_epsilon
from privacy.errors import AccountantDisputeError, ParameterError, UnsupportedEventError
from privacy.events import (
    CappedEvent,
    Event,
    FixedOrderEvent,
    GaussianEvent,
    NonPrivateEvent,
    RandomizedResponseEvent,
    RepeatedEvent,
    TruncatedPoissonEvent,
    TrustedEvent,
)

if TYPE_CHECKING:
    import dp_accounting

Composition = Mapping[Event, int]
Row = tuple[float, float, int] | tuple[float, float, int, int, int]
Rows = tuple[Row, ...]

LARGEST_EPSILON = 1000.0  # by RDP; beyond it no number means anything, and loss distributions would fill the memory
_INTERVAL = 1e-4
_Atom = GaussianEvent | TruncatedPoissonEvent


def epsilon(events: Composition, delta: float) -> float:
    """The epsilon of a composition of events at ``delta``, against one adversary.

    Args:
        events: how often each event happened.
        delta: in (0, 1).

    | composition | result |
    |---|---|
    | empty | 0.0 |
    | contains a trusted or a non-private event | inf |
    | epsilon by RDP above 1,000, or the booked total variation exceeds delta | inf |
    | randomised labels alone | label_epsilon x labels_per_unit, added up: pure, at any delta |
    | randomised labels beside other events | UnsupportedEventError: their total stands apart (rule 12) |
    | delta outside (0, 1) | ParameterError |
    | PLD above RDP by more than 0.01 and 1 %, or not a number | AccountantDisputeError |
    | numbers beyond what the accountants can represent | UnsupportedEventError |
    """
    if not 0.0 < delta < 1.0:
        raise ParameterError(
            f"delta={delta} is no failure probability.",
            "It must lie in (0, 1).",
            "Set privacy.target_delta, e.g. 1e-5.",
        )
    present = {event: count for event, count in events.items() if count > 0}
    if any(isinstance(event, (TrustedEvent, NonPrivateEvent)) for event in present):
        return math.inf
    labels = {e: n for e, n in present.items() if isinstance(e, RandomizedResponseEvent)}
    if labels and len(labels) < len(present):
        raise UnsupportedEventError(
            "Randomised labels and noised releases are in one composition.",
            "They protect different things: the label alone, and the whole record.",
            "Keep a ledger of its own for each; their totals stand apart.",
        )
    if labels:
        return math.fsum(e.label_epsilon * e.labels_per_unit * n for e, n in labels.items())
    return _with_slack(_atoms(present), delta)


def _atoms(events: Composition) -> Counter[_Atom]:
    """What one unit goes through at worst: how often each Gaussian release.

    A unit is in one block of a fixed order: per order, the largest count over its blocks (of every kind of release;
    exact if all blocks have one noise multiplier, above it otherwise). Events with different orders or scopes add up.
    """
    atoms: Counter[_Atom] = Counter()
    orders: dict[str, dict[int, Counter[_Atom]]] = {}
    for event, count in events.items():
        if isinstance(event, (GaussianEvent, TruncatedPoissonEvent)):
            atoms[event] += count
        elif isinstance(event, RepeatedEvent):
            atoms[event.event] += count * event.times
        elif isinstance(event, CappedEvent):
            atoms[_plain(event)] += min(count, event.cap)
        elif isinstance(event, FixedOrderEvent):
            blocks = orders.setdefault(f"{event.blocks}:{event.order}", {})
            blocks.setdefault(event.block, Counter())[_plain(event)] += count
        else:
            raise UnsupportedEventError(
                f"No epsilon for the event {type(event).__name__}.",
                "The accountant does not know how it composes with others.",
                "Use the version that wrote the ledger, or a newer one.",
            )
    for blocks in orders.values():
        worst: Counter[_Atom] = Counter()
        for block in blocks.values():
            worst |= block
        atoms += worst
    return atoms


def _plain(event: CappedEvent | FixedOrderEvent) -> GaussianEvent:
    return GaussianEvent(event.noise_multiplier, 1.0, "discrete", event.log_ratio, event.total_variation)


def _with_slack(atoms: Counter[_Atom], delta: float) -> float:
    """Charge what separates the discrete releases from the Gaussian ones that the accountants compose.

    With L the sum of ``log_ratio`` and V that of ``total_variation``: if the Gaussians have delta_G(eps), the releases
    have exp(L) delta_G(eps - 2 L) + (1 + exp(eps)) V. Solved for eps from above.
    """
    ratio = math.fsum(e.log_ratio * n for e, n in atoms.items())
    variation = math.fsum(e.total_variation * n for e, n in atoms.items())
    totals: Counter[tuple[float, ...]] = Counter()
    for event, count in atoms.items():
        cut = (event.population, event.largest_cohort) if isinstance(event, TruncatedPoissonEvent) else ()
        totals[event.noise_multiplier, event.sample_rate, *cut] += count
    rows: Rows = tuple(sorted((z, q, n, *cut) for (z, q, *cut), n in totals.items()))  # type: ignore[misc]
    if not rows:
        return 0.0
    value = rows_epsilon(rows, delta)
    while math.isfinite(value) and (ratio or variation):
        left = delta * math.exp(-ratio) - (1.0 + math.exp(min(value, 700.0))) * variation
        if left <= delta / 2:
            return math.inf
        needed = rows_epsilon(rows, left) + 2.0 * ratio
        if needed <= value:
            break
        value = needed * (1 + 1e-9) + 1e-12
    return value


@lru_cache(maxsize=4096)
def rows_epsilon(gaussians: Rows, delta: float) -> float:
    """PLD epsilon of a sorted composition, or the closed form where there is one, checked against RDP."""
    plain = all(len(row) == 3 and row[1] == 1.0 for row in gaussians)
    try:
        mu = composed_mu((row[0], row[2]) for row in gaussians) if plain else 0.0
        rdp = gaussian_rdp_epsilon(mu, delta) if plain else rdp_epsilon(gaussians, delta)
        if rdp > LARGEST_EPSILON:
            return math.inf
        pld = analytic_epsilon(mu, delta) if plain else pld_epsilon(gaussians, delta, max(_INTERVAL, rdp * 1e-6))
    except (ArithmeticError, ValueError, MemoryError) as error:
        raise UnsupportedEventError(
            f"No epsilon for {str(gaussians)[:120]}.",
            f"The accountant said {type(error).__name__}: {error}.",
            "Use a noise multiplier and a sample rate in an ordinary range.",
        ) from error
    if not pld <= rdp + max(0.01, 0.01 * rdp):  # so written, NaN is a dispute too
        raise AccountantDisputeError(
            f"PLD says epsilon {pld:.4f}, RDP says {rdp:.4f}.",
            "The tighter accountant may never report more than the looser one.",
            "Do not use this ledger entry; report the events to the authors.",
        )
    return pld


def pld_epsilon(gaussians: Rows, delta: float, interval: float = _INTERVAL) -> float:
    """Epsilon by privacy loss distributions, discretised pessimistically at ``interval``."""
    from dp_accounting import pld

    if any(len(row) > 3 for row in gaussians):
        return _truncated_epsilon(gaussians, delta, interval)
    events = [(_dp_event(row), row[2]) for row in gaussians]
    return _compose(pld.PLDAccountant(_relation(), value_discretization_interval=interval), events, delta)


def rdp_epsilon(gaussians: Rows, delta: float) -> float:
    """Epsilon by Rényi differential privacy; a truncated sample counts as un-amplified, its sensitivity four times C."""
    from dp_accounting import rdp

    whole: list[Row] = [row if len(row) == 3 else (row[0] / 4, 1.0, row[2]) for row in gaussians]
    events = [(_dp_event(row), row[2]) for row in whole]
    return _compose(rdp.RdpAccountant(neighboring_relation=_relation()), events, delta)


def _dp_event(row: Row) -> dp_accounting.DpEvent:
    return GaussianEvent(row[0], row[1]).to_dp_event()


def _truncated_epsilon(rows: Rows, delta: float, interval: float) -> float:
    """Epsilon of a composition with truncated Poisson samples, by PLD.

    Fix the coins of all other units. If fewer than the largest cohort are heads, one unit's data shift the sum by at
    most C, with probability q. Else a drawn unit pushes another one out: both worlds are mixtures of the sum as it is
    and, with probability below q, of sums at most 2 C away from it, which the pair for replacement at 2 C dominates.
    The two cases mix with the probability of the second (hockey-sticks are jointly convex). dp_accounting's own event
    uses the mean of the second q over the others' coins, which is smaller; here it is the largest.
    """
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism, identity
    from scipy import stats

    total = identity(value_discretization_interval=interval)
    for z, q, count, *cut in rows:
        common = {"sampling_prob": q, "value_discretization_interval": interval}
        one = from_gaussian_mechanism(z, neighboring_relation=NeighboringRelation.REPLACE_SPECIAL, **common)
        cut_short = float(stats.binom.sf(cut[1] - 1, cut[0] - 1, q)) if cut else 0.0
        if cut_short > 0.0:
            two = from_gaussian_mechanism(z / 2, neighboring_relation=NeighboringRelation.REPLACE_ONE, **common)
            one = two.compute_mixture(one, cut_short)
        total = total.compose(one.self_compose(count))
    return float(total.get_epsilon_for_delta(delta))


def _relation() -> object:
    from dp_accounting import NeighboringRelation

    return NeighboringRelation.REPLACE_SPECIAL


def _compose(accountant: object, events: list[tuple[dp_accounting.DpEvent, int]], delta: float) -> float:
    with warnings.catch_warnings(), _quiet_absl():  # RDP drops orders that do not converge; it stays an upper bound
        warnings.simplefilter("ignore")
        for event, count in events:
            accountant.compose(event, count)  # type: ignore[attr-defined]
        return float(accountant.get_epsilon(delta))  # type: ignore[attr-defined]


@contextmanager
def _quiet_absl() -> Iterator[None]:
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def add(events: Composition, event: Event, count: int = 1) -> Counter[Event]:
    """The composition with ``count`` more of ``event``."""
    total: Counter[Event] = Counter(events)
    total[event] += count
    return total
