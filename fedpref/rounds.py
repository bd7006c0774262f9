"""The round loop: federated training of a reward model under differential privacy.

    for r = 1 .. T:
        reserve the round's event in the ledger                      (on disk before anything runs)
        every client: toss its units' coins in secret; per unit the gradient of its summed loss at the broadcast
            parameters; clip to C; sum; seal; keep the bytes; send
        server: sum; noise (trust central); divide by the public q N; one step of the server optimiser
        prepare the checkpoint; commit (on disk); publish it         (the published checkpoint is the release of round r)

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
    f.checkpoints.publish(f.ledger.committed_round)  # a kill between commit and publication
    done, state = f.checkpoints.last()
    f.ledger.check_rounds(done)
    if state is not None:
        f.server.restore(state)
    for round_number in range(done + 1, f.plan.num_rounds + 1):
        reservation = _reserve(f, round_number)
        replies = f.channel.exchange(f.server.request(round_number))
        release = f.server.release(replies, reservation)
        pseudo_gradient = f.server.step(release)
        f.checkpoints.prepare(round_number, f.server.state())
        f.ledger.commit(reservation)
        f.checkpoints.publish(round_number)
        f.trackers.log(
            {
                **f.plan.public_figures(round_number, f.ledger.num_reserved),
                "noise_std": release.noise_std,
                "pseudo_gradient_norm": float(np.linalg.norm(pseudo_gradient)),
                "parameter_norm": float(np.linalg.norm(f.server.optimizer.parameters)),
                **({} if f.server.clipping_norm is None else {"next_max_grad_norm": f.server.clipping_norm}),
            }
        )


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
