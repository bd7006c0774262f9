"""The round loop: federated training of a flat vector, head or adapter, under differential privacy.

    for r = 1 .. T:
        reserve the round's event in the ledger                      (on disk before anything runs)
        every client: toss its units' coins in secret; per unit the gradient of its summed loss at the broadcast
            parameters; clip to C; sum; seal; keep the bytes; send
        server: sum (trust distributed: unmask the sum, or abort: spent, no step); noise (trust central); divide by the
            public q N; one step of the server optimiser
        prepare the checkpoint; commit (on disk); publish it         (the published checkpoint is the release of round r)

guarantees.md rules 3 (secret coins), 4 (public divisor), 6 (empty samples), 15 (retries) and 17 (one gradient a round).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedpref.aggregation.optimizers import Vector
from fedpref.channel.base import Channel
from fedpref.journal import Checkpoints
from fedpref.plan import Plan
from fedpref.server import Server
from fedpref.tracking import Trackers
from privacy.ledger import Ledger, Reservation
from privacy.mechanism import Mechanism, Release
from privacy.secagg.errors import RoundAborted


@dataclass(frozen=True)
class Federation:
    """Everything that a run of rounds needs."""

    plan: Plan
    mechanism: Mechanism
    server: Server
    channel: Channel
    ledger: Ledger
    checkpoints: Checkpoints
    trackers: Trackers
    warn: Callable[[str], None] = lambda _: None


def run_rounds(federation: Federation) -> None:
    """Run the rounds that are left; after a kill, go on where the last checkpoint stands."""
    server, channel, ledger = federation.server, federation.channel, federation.ledger
    checkpoints = federation.checkpoints
    for round_number in range(_restore(federation) + 1, federation.plan.num_rounds + 1):
        reservation = _reserve(federation, round_number)
        try:
            release = server.release(channel.exchange(server.request(round_number)), reservation)
        except RoundAborted as reason:
            _skip(federation, reservation, reason)
            continue
        pseudo_gradient = server.step(release)
        checkpoints.prepare(round_number, server.state())
        ledger.commit(reservation)
        checkpoints.publish(round_number)
        federation.trackers.log(_figures(federation, release, pseudo_gradient))


def _skip(federation: Federation, reservation: Reservation, reason: RoundAborted) -> None:
    """No step: the round stays spent, and the state after it is the one before it (already released)."""
    federation.warn(f"{reason.what} {reason.why} {reason.fix}")
    federation.checkpoints.prepare(reservation.round, federation.server.state())
    federation.ledger.abort(reservation, f"{reason.code}: {reason.why}", spent=True)
    federation.checkpoints.publish(reservation.round)


def _restore(federation: Federation) -> int:
    """Bring the server to where the last checkpoint stands; returns the rounds done."""
    interrupted = federation.ledger.open_reservation
    if interrupted is not None and federation.checkpoints.is_prepared(interrupted.round):
        # Its noise is drawn: another draw for the same sum, under the same booking, would be a second release.
        federation.ledger.commit(interrupted)
    federation.checkpoints.publish(federation.ledger.closed_round)  # a kill between closing and publication
    done, state = federation.checkpoints.last()
    federation.ledger.check_rounds(done)
    if state is not None:
        federation.server.restore(state)
    return done


def _figures(federation: Federation, release: Release, pseudo_gradient: Vector) -> dict[str, Any]:
    """What trackers are told of a round: public constants, and functions of what was released."""
    norm, error = federation.server.clipping_norm, federation.server.aggregation_error
    return {
        **federation.plan.public_figures(release.round, federation.ledger.num_reserved),
        "noise_std": release.noise_std,
        "pseudo_gradient_norm": float(np.linalg.norm(pseudo_gradient)),
        "parameter_norm": float(np.linalg.norm(federation.server.optimizer.parameters)),
        **({} if norm is None else {"next_max_grad_norm": norm}),
        **({} if error is None else {"aggregation_error": error}),
    }


def _reserve(f: Federation, round_number: int) -> Reservation:
    """Book the round. An interrupted one goes on under its own booking: uncommitted, hence never released (rule 15)."""
    interrupted = f.ledger.open_reservation
    if interrupted is None:
        return f.ledger.reserve(round_number, f.mechanism.events(round_number))
    if interrupted.round == round_number:
        f.ledger.retry(interrupted, "no release left the server")
        return interrupted
    f.ledger.abort(interrupted, "another round goes on", spent=True)
    return f.ledger.reserve(round_number, f.mechanism.events(round_number))
