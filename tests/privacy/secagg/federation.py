"""A small federation in memory: people, plans, and rounds with drop-outs at every stage."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from privacy.rng import SeededNonPrivateRandom
from privacy.secagg.bounds import clamp_within
from privacy.secagg.client import SecAggClient, Ticket
from privacy.secagg.codec import Codec
from privacy.secagg.keys import Identity, Pinned
from privacy.secagg.plan import Cohort, Consistency, SecAggPlan
from privacy.secagg.server import SecAggServer
from privacy.secagg.shares import NoisedShare, SecureSum, make_share
from privacy.secagg.sizing import ShareNoise
from privacy.secagg.two_trip import TwoTripServer, answer_bundle
from privacy.units import PrivacyUnit

MODEL = b"m" * 32
RNG = SeededNonPrivateRandom(5)
MODES = (Consistency.FOLDED, Consistency.STRICT)


def plan(
    n: int = 5,
    d: int = 6,
    *,
    least: int | None = None,
    colluders: int = 0,
    mode: Consistency = Consistency.FOLDED,
    bits: int = 32,
    sigma: float = 0.0,
    run: str = "run",
    steps: float = 64.0,
    rotated: bool = False,
    max_grad_norm: float = 1.0,
    unclosed: int = 2,
    unit: PrivacyUnit = PrivacyUnit.USER,
) -> SecAggPlan:
    """A plan for n clients of which one in five may be missing; without noise unless ``sigma`` is given."""
    least = least or max(-(-4 * n // 5), 2 * n // 3 + 1)
    cohort = Cohort(n, least, least, colluders, mode, unclosed)
    failure = 0.0 if unit is PrivacyUnit.CLIENT else 1e-12
    coordinates = Codec(d, max_grad_norm, steps, 32, rotated, 1, unit, failure).coordinates
    clamp = max(1, clamp_within(bits, n, sigma, coordinates, 1e-9))
    codec = Codec(d, max_grad_norm, steps, bits, rotated, clamp, unit, failure)
    noise = ShareNoise(Fraction(sigma), cohort.honest_shares, codec.sensitivity2, codec.coordinates)
    return SecAggPlan(run, codec, noise, cohort)


@lru_cache
def identity(name: int) -> Identity:
    """The identity of a client; -1 is the server's."""
    del name
    return Identity.new()


def pinned(n: int) -> Pinned:
    """Everybody's public identity."""
    return Pinned(identity(-1).public, {i: identity(i).public for i in range(n)})


def client(p: SecAggPlan, number: int, n: int | None = None, **more: Any) -> SecAggClient:
    """One client."""
    people = pinned(n or p.cohort.largest)
    return SecAggClient(client=number, identity=identity(number), pinned=people, plan=p, **more)


def server(p: SecAggPlan, round_number: int = 1, n: int | None = None) -> SecAggServer:
    """The server of one round."""
    clients = dict(pinned(n or p.cohort.largest).clients)
    return SecAggServer(plan=p, identity=identity(-1), clients=clients, round_number=round_number)


def share(
    p: SecAggPlan, number: int, round_number: int = 1, rows: npt.NDArray[np.float64] | None = None
) -> NoisedShare:
    """A client's share of random units, or of the given ones."""
    if rows is None:
        rows = np.random.default_rng([number, round_number]).standard_normal((3, p.codec.dimension))
    return make_share(p, p.codec.sum_units(rows), round_number, number, RNG)


@dataclass
class Outcome:
    """What a round gave: the sum, the plain shares of those in it, all bytes by kind and client."""

    total: SecureSum
    shares: Mapping[int, NoisedShare]
    server: SecAggServer
    clients: Mapping[int, SecAggClient]
    messages: dict[tuple[str, int], bytes] = field(default_factory=dict)


def run_round(
    p: SecAggPlan,
    *,
    round_number: int = 1,
    silent: Mapping[str, Collection[int]] | None = None,
    clients: Mapping[int, SecAggClient] | None = None,
    closure: bytes = b"",
    at: SecAggServer | None = None,
    sealed: dict[int, NoisedShare] | None = None,
) -> Outcome:
    """A whole round by single stages; ``silent`` says who does not answer a stage (nor any later one)."""
    n = p.cohort.largest
    people = dict(clients or {i: client(p, i) for i in range(n)})
    s, gone = at or server(p, round_number), set[int]()
    messages: dict[tuple[str, int], bytes] = {}
    shares: dict[int, NoisedShare] = {} if sealed is None else sealed

    def exchange(stage: str, requests: Mapping[int, bytes], take: Any) -> None:
        gone.update((silent or {}).get(stage, ()))
        for i, request in requests.items():
            if i in gone:
                continue
            if stage == "masked":
                ticket = people[i].open_cohort(request)
                shares[i] = share(p, i, round_number)
                reply = people[i].seal(ticket, shares[i])
            else:
                reply = people[i].answer(request)
            messages[stage, i] = reply
            assert take(i, reply), s.faults

    exchange("keys", dict.fromkeys(people, s.invitation(tuple(people))), s.take_keys)
    exchange("shares", dict.fromkeys(s.keyed, s.roster()), s.take_shares)
    exchange("masked", s.cohort(MODEL, closure), s.take_masked)
    survivors = s.survivors()
    if p.cohort.consistency is Consistency.STRICT:
        exchange("agreed", dict.fromkeys(s.uploaded, survivors), s.take_agreed)
        exchange("unmask", dict.fromkeys(s.signed, s.agreement()), s.take_unmask)
    else:
        exchange("unmask", dict.fromkeys(s.uploaded, survivors), s.take_unmask)
    return Outcome(s.finish(), shares, s, people, messages)


def run_two_trip(
    p: SecAggPlan, rounds: int, silent: Mapping[tuple[str, int], Collection[int]] | None = None
) -> tuple[list[SecureSum], dict[tuple[int, int], NoisedShare], list[str], TwoTripServer]:
    """A run in two trips a round. ``silent``: who does not answer a trip, by its name and how often it came before.

    Returns the sums, all shares that were sealed by (round, client), the names of the trips, and the server.
    """
    n = p.cohort.largest
    people = {i: client(p, i) for i in range(n)}
    s = TwoTripServer(
        plan=p, identity=identity(-1), clients=pinned(n).clients, invite=lambda _: range(n), rounds=rounds
    )
    sums, shares, trips = list[SecureSum](), dict[tuple[int, int], NoisedShare](), list[str]()
    while not s.finished and len(trips) < 4 * (rounds + 4):
        name = s.trip.value
        gone = (silent or {}).get((name, trips.count(name)), ())
        trips.append(name)
        replies = {}
        for i, bundle in s.requests(MODEL).items():
            if i in gone:
                continue

            def contribute(ticket: Ticket, i: int = i) -> NoisedShare:
                shares[ticket.round, i] = share(p, i, ticket.round)
                return shares[ticket.round, i]

            reply = answer_bundle(people[i], bundle, contribute)
            assert reply.refusals == (), (name, i, reply.refusals)
            replies[i] = reply.data
        total = s.take(replies)
        if total is not None:
            sums.append(total)
    return sums, shares, trips, s


def plain_sum(p: SecAggPlan, shares: Mapping[int, NoisedShare], survivors: Collection[int]) -> npt.NDArray[np.int64]:
    """The sum of the survivors' integers in Python's own arithmetic, brought into [-2^(b-1), 2^(b-1))."""
    half = 1 << (p.codec.bits - 1)
    columns = zip(*(shares[i].value.tolist() for i in survivors), strict=True)
    return np.array([(sum(column) + half) % (2 * half) - half for column in columns], dtype=np.int64)
