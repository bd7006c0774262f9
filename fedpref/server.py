"""The server: asks for contributions, turns sealed bytes into one noised sum, takes a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fedpref.aggregation.lora import LoraRule
from fedpref.aggregation.optimizers import ServerOptimizer, Vector
from fedpref.channel.base import Failure, RoundRequest
from fedpref.errors import NoDataError
from fedpref.manifest import Manifest
from privacy.adaptive import QuantileClipping
from privacy.clipping import ClippedSum
from privacy.distributed import DistributedMechanism
from privacy.errors import MechanismMisuseError, SealedMessageError
from privacy.ledger import Reservation
from privacy.mechanism import GaussianMechanism, Mechanism, Release
from privacy.rng import RandomSource
from privacy.sealed import Entrusted, LocallyPrivate, Sealed, sealed_from_bytes
from privacy.secagg.errors import RoundAborted
from privacy.secagg.robust import BucketSums, Unmasked
from privacy.secagg.shares import implausible
from privacy.units import Trust


class Server:
    """Holds the released parameters; under trust ``central`` it is trusted with clients' clipped sums and adds the noise."""

    def __init__(
        self,
        *,
        manifest: Manifest,
        num_clients: int,
        mechanism: Mechanism,
        optimizer: ServerOptimizer,
        divisor: float,
        largest_norm: float,
        rng: RandomSource,
        warn: Callable[[str], None] = lambda _: None,
        clipping: QuantileClipping | None = None,
        clipping_norm: float | None = None,
        rule: LoraRule | None = None,
        aggregation_error: float | None = None,
    ) -> None:
        """``divisor`` is a public constant (sample_rate x num_units), never a realised count (rule 4).

        ``largest_norm``, a public constant as well, is more than any honest client's sum can have. A message above it is
        left out: numbers so large that the noise drowns in their rounding would undo it for everybody.

        ``rule``: for updates whose mean is inexact, where every update may be seen; ``aggregation_error`` is 0 for those
        whose mean is exact, and None where nobody may know.

        ``clipping``: adaptive, starting at ``clipping_norm``; the norm is part of the server's state.
        """
        self._clipping, self.clipping_norm = clipping, clipping_norm
        self._largest_norm, self._rule, self._updates = largest_norm, rule, list[Vector]()
        self.aggregation_error = aggregation_error
        self._manifest, self._num_clients, self._mechanism = manifest, num_clients, mechanism
        self.optimizer, self._divisor, self._rng, self._warn = optimizer, divisor, rng, warn

    def request(self, round_number: int) -> RoundRequest:
        """What all clients are asked in a round."""
        return RoundRequest(round_number, self._manifest.digest, self.optimizer.parameters, self.clipping_norm)

    def state(self) -> dict[str, Vector]:
        """Everything that the next round depends on, as named fp64 tensors; all of it is released."""
        norm = {} if self.clipping_norm is None else {"clipping.norm": np.array([self.clipping_norm])}
        return {**self.optimizer.state(), **norm}

    def restore(self, state: dict[str, Vector]) -> None:
        """Go on from ``state``."""
        if self._clipping is not None:
            self.clipping_norm = float(state["clipping.norm"][0])
        self.optimizer.restore(state)

    @property
    def _dimension(self) -> int:
        """Numbers of a message: one more for the count of adaptive clipping."""
        return self._manifest.dimension + (self._clipping is not None)

    @property
    def _bound(self) -> float:
        """The bound of this round."""
        if self._clipping is None or self.clipping_norm is None:
            return self._mechanism.max_grad_norm
        return self._clipping.joint_bound(self.clipping_norm)

    def release(self, replies: list[bytes | Failure] | Unmasked, reservation: Reservation) -> Release:
        """Sealed replies -> one noised sum. A malformed message is named and left out; the noise does not depend on it.

        Under secure aggregation what came back is the noised sum itself, or one per bucket.

        Raises:
            NoDataError: not one usable message (a bug or another version at every client).
            RoundAborted: a sum that clients which run the codec cannot have; no step is taken with it.
        """
        if not isinstance(replies, list) or isinstance(self._mechanism, DistributedMechanism):
            return self._release_sum(replies, reservation)
        messages = [m for i, reply in enumerate(replies) if (m := self._open(i, reply, reservation.round)) is not None]
        if not messages:
            raise NoDataError(
                f"Round {reservation.round}: no client sent a usable message.",
                "All of them failed or speak another version.",
                "See the warnings above, then go on with --resume.",
            )
        mechanism = self._gaussian()
        if mechanism.trust is Trust.LOCAL:
            return mechanism.collect([m for m in messages if isinstance(m, LocallyPrivate)], reservation)
        total = ClippedSum(np.zeros(self._dimension), mechanism.max_grad_norm)
        if self._rule is not None:
            self._updates = [message.value for message in messages]
        for message in messages:
            total += ClippedSum(message.value, message.l2_bound)
        return mechanism.release(total, reservation, self._rng)

    def _gaussian(self) -> GaussianMechanism:
        """The mechanism of this round, with its bound."""
        if not isinstance(self._mechanism, GaussianMechanism):
            raise _mixed()
        return replace(self._mechanism, max_grad_norm=self._bound)

    def _release_sum(self, total: list[bytes | Failure] | Unmasked, reservation: Reservation) -> Release:
        """An unmasked sum; gross nonsense is thrown away, which is post-processing of what was released already."""
        mechanism = self._mechanism
        if isinstance(total, list) or not isinstance(mechanism, DistributedMechanism):
            raise _mixed()
        release = mechanism.release(total, self._bound, reservation)
        if isinstance(total, BucketSums):
            return release  # each bucket's sum was cut back to what honest clients can have
        if implausible(mechanism.secagg, total, self._largest_norm / mechanism.max_grad_norm):
            raise RoundAborted(
                f"Round {reservation.round}: the sum is larger than any of honest clients.",
                "Somebody put a false vector behind the masks; nobody can say who.",
                "No step is taken; the event stays booked. Look at clients that joined lately.",
            )
        return release

    def step(self, release: Release) -> Vector:
        """One step of the server optimiser; returns the pseudo-gradient (released: noised, publicly scaled)."""
        total = release.value
        if self._clipping is not None and self.clipping_norm is not None:
            total, self.clipping_norm = self._clipping.split(total, self.clipping_norm)
        pseudo_gradient: Vector = total / self._divisor
        if self._rule is not None:
            pseudo_gradient, self.aggregation_error = self._rule(self.optimizer.parameters, self._updates)
        self.optimizer.step(pseudo_gradient)
        return pseudo_gradient

    def _open(self, client: int, reply: bytes | Failure, round_number: int) -> Sealed | None:
        if isinstance(reply, Failure):
            self._warn(f"client {client} did not answer round {round_number}: {reply.why}")
            return None
        if client >= self._num_clients:
            self._warn(f"round {round_number}: a reply beyond those of the {self._num_clients} clients is left out")
            return None
        expected: type[Sealed] = Entrusted if self._mechanism.trust is Trust.CENTRAL else LocallyPrivate
        try:
            message = sealed_from_bytes(reply, expected, client, round_number, self._dimension)
            if message.l2_bound != self._bound:
                raise SealedMessageError(
                    f"Client {client} clipped to another bound.", f"{message.l2_bound:g}.", "Use one recipe for all."
                )
            limit = self._largest_norm * message.l2_bound / self._mechanism.max_grad_norm
            if expected is Entrusted and not np.linalg.norm(message.value) <= limit:
                raise SealedMessageError(
                    f"Client {client} sent a sum that no honest client can have.",
                    f"Its norm is above {limit:g}.",
                    "Look at that client; if it is honest, federation.num_units is declared far too low.",
                )
        except SealedMessageError as error:
            self._warn(f"round {round_number}: {error.what} {error.why}")
            return None
        return message


def _mixed() -> MechanismMisuseError:
    return MechanismMisuseError(
        "What came back is not what this trust gives.",
        "Sealed messages belong to `central` and `local`, an unmasked sum to `distributed`.",
        "Build server and channel from one plan.",
    )
