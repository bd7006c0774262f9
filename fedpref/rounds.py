"""The round loop: federated training of a reward model under differential privacy.

    for r = 1 .. T:
        reserve the round's event in the ledger                      (on disk before anything runs)
        every client: toss its units' coins in secret; per unit the gradient of its summed loss at the broadcast
            parameters; clip to C; sum; seal; keep the bytes; send
        server: sum; noise (trust central); divide by the public q N; one step of the server optimiser
        checkpoint; commit                                           (the checkpoint is the release of round r)

guarantees.md rules 3 (secret coins), 4 (public divisor), 6 (empty samples), 15 (retries) and 17 (one gradient a round).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedpref.channel.base import Channel
from fedpref.journal import Checkpoints
from fedpref.plan import Plan
from fedpref.server import Server
from fedpref.tracking import Trackers
from privacy.ledger import Ledger, Reservation
from privacy.mechanism import GaussianMechanism


@dataclass(frozen=True)
class Federation:
    """Everything that a run of rounds needs."""

    plan: Plan
    mechanism: GaussianMechanism
    server: Server
    channel: Channel
    ledger: Ledger
    checkpoints: Checkpoints
    trackers: Trackers


def run_rounds(federation: Federation) -> None:
    """Run the rounds that are left; after a kill, go on where the last checkpoint stands."""
    f = federation
    done, state = f.checkpoints.last()
    if state is not None:
        f.server.optimizer.restore(state)
    _close_interrupted(f, done)
    for round_number in range(done + 1, f.plan.num_rounds + 1):
        reservation = _reserve(f, round_number)
        replies = f.channel.exchange(f.server.request(round_number))
        release = f.server.release(replies, reservation)
        pseudo_gradient = f.server.step(release)
        f.checkpoints.save(round_number, f.server.optimizer.state())
        f.ledger.commit(reservation)
        f.trackers.log(
            {
                **f.plan.public_figures(round_number),
                "noise_std": release.noise_std,
                "pseudo_gradient_norm": float(np.linalg.norm(pseudo_gradient)),
                "parameter_norm": float(np.linalg.norm(f.server.optimizer.parameters)),
            }
        )


def _reserve(f: Federation, round_number: int) -> Reservation:
    """Book the round. An interrupted one goes on under its own booking: its release never left the server."""
    interrupted = f.ledger.open_reservation
    if interrupted is not None and interrupted.round == round_number:
        f.ledger.retry(interrupted, "no release left the server")
        return interrupted
    return f.ledger.reserve(round_number, f.mechanism.events())


def _close_interrupted(f: Federation, done: int) -> None:
    """A kill between checkpoint and commit: the round is released, so commit it. A lost checkpoint: it stays spent."""
    interrupted = f.ledger.open_reservation
    if interrupted is None or interrupted.round == done + 1:
        return
    if interrupted.round == done:
        f.ledger.commit(interrupted)
    else:
        f.ledger.abort(interrupted, "its checkpoint is missing", spent=True)
