"""Events -> epsilon at a delta, by dp_accounting's privacy loss distributions; RDP is the cross-check.

Relation: zero-out, which is the REPLACE_SPECIAL of dp_accounting. PLD reports; it must not exceed RDP by 0.01 or 1 %
(rule 11). Koskela, Jälkö and Honkela 2020; Doroshenko et al. 2022 (PLD); Mironov, Talwar and Zhang 2019 (RDP).
"""

from __future__ import annotations

import logging
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache

from privacy.errors import AccountantDisputeError, ParameterError, UnsupportedEventError
from privacy.events import Event, GaussianEvent, NonPrivateEvent, TrustedEvent

Composition = Mapping[Event, int]

LARGEST_EPSILON = 1000.0  # by RDP; beyond it no number means anything, and loss distributions would fill the memory
_INTERVAL = 1e-4


def epsilon(events: Composition, delta: float) -> float:
    """The epsilon of a composition of events at ``delta``, against one adversary.

    Args:
        events: how often each event happened.
        delta: in (0, 1).

    | composition | result |
    |---|---|
    | empty | 0.0 |
    | contains a trusted or a non-private event | inf |
    | epsilon by RDP above 1,000 | inf |
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
    gaussians = tuple(
        sorted((e.noise_multiplier, e.sample_rate, n) for e, n in present.items() if isinstance(e, GaussianEvent))
    )
    return _epsilon(gaussians, delta) if gaussians else 0.0


@lru_cache(maxsize=4096)
def _epsilon(gaussians: tuple[tuple[float, float, int], ...], delta: float) -> float:
    """PLD epsilon of a sorted composition of (noise multiplier, sampling rate, count), checked against RDP."""
    try:
        rdp = rdp_epsilon(gaussians, delta)
        if rdp > LARGEST_EPSILON:
            return math.inf
        pld = pld_epsilon(gaussians, delta, interval=max(_INTERVAL, rdp * 1e-6))
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


def pld_epsilon(gaussians: tuple[tuple[float, float, int], ...], delta: float, interval: float = _INTERVAL) -> float:
    """Epsilon by privacy loss distributions, discretised pessimistically at ``interval``."""
    from dp_accounting import pld

    return _compose(pld.PLDAccountant(_relation(), value_discretization_interval=interval), gaussians, delta)


def rdp_epsilon(gaussians: tuple[tuple[float, float, int], ...], delta: float) -> float:
    """Epsilon by Rényi differential privacy."""
    from dp_accounting import rdp

    return _compose(rdp.RdpAccountant(neighboring_relation=_relation()), gaussians, delta)


def _relation() -> object:
    from dp_accounting import NeighboringRelation

    return NeighboringRelation.REPLACE_SPECIAL


def _compose(accountant: object, gaussians: tuple[tuple[float, float, int], ...], delta: float) -> float:
    with warnings.catch_warnings(), _quiet_absl():  # RDP drops orders that do not converge; it stays an upper bound
        warnings.simplefilter("ignore")
        for z, q, count in gaussians:
            accountant.compose(GaussianEvent(z, q).to_dp_event(), count)  # type: ignore[attr-defined]
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
