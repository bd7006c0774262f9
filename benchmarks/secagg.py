"""Cost of secure aggregation: one client, one server, no transport; and the codec's error against the exact sum.

    python -m benchmarks.secagg [--json] [--quick]
    python -m benchmarks.secagg --only utility          what it costs in accuracy; see secagg_utility.py
    python -m benchmarks.secagg --only buckets          what buckets cost, and what they save from a liar; see secagg_buckets.py

CPU seconds of one process (``time.process_time``, best of three for the client, one run for the server). The vectors of
all but one client are made up: any bytes of the right length are a masked vector. Flower's SecAgg+ functions run beside
it if ``flwr`` can be imported; nothing else needs it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from privacy.noise import DiscreteGaussian
from privacy.rng import Stream, SystemRandom
from privacy.secagg.bounds import clamp_within
from privacy.secagg.choice import WRAP, Sums, choose_codec, figures
from privacy.secagg.client import SecAggClient
from privacy.secagg.codec import Codec
from privacy.secagg.keys import Identity, Pinned
from privacy.secagg.plan import Cohort, SecAggPlan
from privacy.secagg.rotation import hadamard, signs
from privacy.secagg.server import SecAggServer
from privacy.secagg.shares import make_share, simulated_sum
from privacy.secagg.sizing import ShareNoise
from privacy.units import PrivacyUnit

MILLION = 1_000_000
MODEL = bytes(32)


def cpu(function: Callable[[], Any], repeat: int = 3) -> tuple[float, Any]:
    """Best CPU seconds of some calls, and the last result."""
    best, result = float("inf"), None
    for _ in range(repeat):
        start = time.process_time()
        result = function()
        best = min(best, time.process_time() - start)
    return best, result


@dataclass
class Round:
    """A plan with its people, set up to the point where vectors are due."""

    plan: SecAggPlan
    server: SecAggServer
    clients: dict[int, SecAggClient]

    @classmethod
    def ready(cls, dimension: int, members: int, bits: int) -> Round:
        """Without rotation and noise, in a ring of so many bits."""
        least = -(-9 * members // 10)
        cohort = Cohort(members, least, least)
        clamp = clamp_within(bits, members, 0.0, dimension, WRAP)
        codec = Codec(dimension, 1.0, 5 * dimension**0.5, bits, False, clamp, PrivacyUnit.CLIENT, 0.0)
        noise = ShareNoise(Fraction(0), cohort.honest_shares, codec.sensitivity2, codec.coordinates)
        plan = SecAggPlan("benchmark", codec, noise, cohort)
        identities, server = {i: Identity.new() for i in range(members)}, Identity.new()
        pinned = Pinned(server.public, {i: k.public for i, k in identities.items()})
        clients = {i: SecAggClient(client=i, identity=k, pinned=pinned, plan=plan) for i, k in identities.items()}
        return cls(
            plan, SecAggServer(plan=plan, identity=server, clients=dict(pinned.clients), round_number=1), clients
        )

    def set_up(self) -> dict[str, float]:
        """Keys and shares; CPU seconds of client 0."""
        spent: dict[str, float] = {}
        invite = self.server.invitation(tuple(self.clients))
        for i, c in self.clients.items():
            seconds, reply = cpu(lambda c=c: c.answer(invite), 1)  # type: ignore[misc]
            spent.setdefault("keys", seconds)
            self.server.take_keys(i, reply)
        roster = self.server.roster()
        for i, c in self.clients.items():
            seconds, reply = cpu(lambda c=c: c.answer(roster), 1)  # type: ignore[misc]
            spent.setdefault("shares", seconds)
            self.server.take_shares(i, reply)
        return spent


def client_cost(dimension: int, members: int, bits: int) -> dict[str, Any]:
    """All that one client computes in a round apart from its gradient: set-up, codec, masks, unmasking."""
    delta = np.random.default_rng(0).standard_normal(dimension, dtype=np.float32)
    best: dict[str, float] = {}
    for _ in range(3):
        r = Round.ready(dimension, members, bits)
        spent = r.set_up()
        requests = r.server.cohort(MODEL)
        start = time.process_time()
        share = make_share(r.plan, r.plan.codec.sum_units(delta[None]), 1, 0, SystemRandom())
        spent["codec"] = time.process_time() - start
        start = time.process_time()
        reply = r.clients[0].seal(r.clients[0].open_cohort(requests[0]), share)
        spent["masks"] = time.process_time() - start
        for name, seconds in spent.items():
            best[name] = min(best.get(name, seconds), seconds)
    return {
        "dimension": dimension,
        "members": members,
        "bits": r.plan.codec.bits,
        "cpu_seconds": sum(best.values()),
        **{f"cpu_{k}": v for k, v in best.items()},
        "upload_bytes": len(reply),
        "upload_vs_float32": len(reply) / (4 * dimension),
    }


def server_cost(dimension: int, members: int, dropped: int, bits: int) -> dict[str, Any]:
    """Adding the vectors, and unmasking with drop-outs after the shares; CPU and wall seconds."""
    r = Round.ready(dimension, members, bits)
    r.set_up()
    requests = r.server.cohort(MODEL)
    zero = make_share(r.plan, r.plan.codec.sum_units(np.zeros((0, dimension))), 1, 0, SystemRandom())
    adding = 0.0
    for i in range(members - dropped):
        reply = r.clients[i].seal(r.clients[i].open_cohort(requests[i]), zero)
        seconds, taken = cpu(lambda i=i, reply=reply: r.server.take_masked(i, reply), 1)  # type: ignore[misc]
        assert taken, r.server.faults
        adding += seconds
    survivors = r.server.survivors()
    for i in range(members - dropped):
        assert r.server.take_unmask(i, r.clients[i].answer(survivors)), r.server.faults
    wall = time.perf_counter()
    seconds, total = cpu(r.server.finish, 1)
    wall = time.perf_counter() - wall
    assert not total.integers.any()  # the pads are gone, bit for bit
    return {
        "dimension": dimension,
        "members": members,
        "dropped": dropped,
        "bits": r.plan.codec.bits,
        "cpu_adding": adding,
        "cpu_unmasking": seconds,
        "wall_unmasking": wall,
        "cpu_seconds": adding + seconds,
    }


def rotation_cost() -> dict[str, float]:
    """2^20 coordinates."""
    x = np.random.default_rng(0).integers(-1000, 1000, 1 << 20).astype(np.float64)
    seconds, _ = cpu(lambda: hadamard(x * signs(bytes(32), len(x))).astype(np.int64))
    return {"coordinates": len(x), "cpu_seconds": seconds, "cpu_seconds_per_million": seconds * MILLION / len(x)}


def noise_cost() -> list[dict[str, float]]:
    """One million draws for several widths; the table is built before."""
    rows = []
    for sigma in (4, 100, 1000, 5000):
        sampler = DiscreteGaussian.of(sigma)
        seconds, _ = cpu(lambda s=sampler: s.sample(MILLION, Stream(os.urandom(32))))  # type: ignore[misc]
        rows.append({"sigma": sigma, "cpu_seconds_per_million": seconds})
    return rows


def codec_errors() -> list[dict[str, Any]]:
    """Planned codecs, and the measured error of a mean of clients against the exact one."""
    rows = []
    for dimension, members, unit, largest, multiplier in (
        (64, 320, PrivacyUnit.CLIENT, 1.0, 2.25),
        (64, 10, PrivacyUnit.USER, 32.0, 1.67),
        (4_000, 50, PrivacyUnit.CLIENT, 1.0, 2.25),
        (184_320, 10, PrivacyUnit.USER, 40.0, 1.67),
    ):
        least = -(-9 * members // 10)
        cohort = Cohort(members, least, least)
        sums = Sums(dimension, 1.0, unit, largest, members, cohort.honest_shares, multiplier)
        codec, noise = choose_codec(sums)
        plan = SecAggPlan("benchmark", codec, noise, cohort)
        vectors = np.random.default_rng(1).standard_normal((members, 1, dimension))
        exact = np.sum([v / np.linalg.norm(v) for v in vectors[:, 0]], axis=0)
        shares = [make_share(plan, codec.sum_units(v), 1, i, SystemRandom()) for i, v in enumerate(vectors)]
        released = simulated_sum(plan, dict(enumerate(shares))).value
        measured = float(np.linalg.norm(released - exact) / members)
        rows.append(
            {"members": members, "unit": unit.value, **figures(codec, noise, members), "measured_error": measured}
        )
    return rows


def flower() -> list[dict[str, Any]] | None:
    """Flower's SecAgg+ helpers on the same task: quantise, add the masks of all pairs; None without ``flwr``."""
    try:
        from benchmarks.flower_secagg import client_cost as theirs
    except ImportError:
        return None
    return [theirs(dimension, 10) for dimension in (MILLION, 10 * MILLION)]


def measure(quick: bool) -> dict[str, Any]:
    """All figures; ``quick`` leaves out ten million parameters."""
    large = [] if quick else [(10 * MILLION, 10), (10 * MILLION, 50)]
    ours = [(MILLION, 10), (MILLION, 50), *large]
    return {
        "cores": os.cpu_count(),
        "client": [client_cost(d, n, bits) for d, n in ours for bits in (16, 32)],
        "server": [server_cost(MILLION if quick else 10 * MILLION, 50, 5, bits) for bits in (16, 32)],
        "rotation": rotation_cost(),
        "noise": noise_cost(),
        "codec": codec_errors(),
        "flower": flower(),
    }


def show(result: dict[str, Any]) -> None:
    """Tables for people."""
    for name, rows in result.items():
        sys.stdout.write(f"\n{name}\n")
        for row in rows if isinstance(rows, list) else [rows]:
            if not isinstance(row, dict):
                sys.stdout.write(f"  {row if row is not None else 'flwr is not installed'}\n")
                continue
            cells = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items())
            sys.stdout.write("  " + "  ".join(cells) + "\n")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--quick", action="store_true", help="nothing above one million parameters")
    parser.add_argument(
        "--only", choices=["utility", "buckets"], help="accuracy under trust `distributed`; needs torch and the model"
    )
    parser.add_argument("--folds", default="0,1,2,3,4,5,6", help="of --only")
    arguments = parser.parse_args()
    if arguments.only == "utility":
        from benchmarks.secagg_utility import utility

        result: dict[str, Any] = {"utility": utility([int(i) for i in arguments.folds.split(",")])}
    elif arguments.only == "buckets":
        from benchmarks.secagg_buckets import buckets

        result = {"buckets": buckets([int(i) for i in arguments.folds.split(",")])}
    else:
        result = measure(arguments.quick)
    if arguments.json:
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
    else:
        show(result)


if __name__ == "__main__":
    main()
