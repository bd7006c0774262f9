"""One round at the server, all its buckets: each is a ``SecAggServer`` of its own, and a client talks to the one it is in.

A bucket that aborts is left out; if so few are left that a lie could not be outvoted, the round aborts. With one bucket
this is that bucket.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from privacy.secagg.errors import RoundAborted
from privacy.secagg.keys import Identity
from privacy.secagg.plan import SecAggPlan
from privacy.secagg.robust import BucketSum, Unmasked, collected, too_few_buckets
from privacy.secagg.server import SecAggServer

T = TypeVar("T")
Requests = dict[int, bytes]


class RoundServer:
    """Calls come in the order of the methods below; each gives the requests of one stage, by client."""

    def __init__(
        self, *, plan: SecAggPlan, identity: Identity, clients: Mapping[int, bytes], round_number: int
    ) -> None:
        """``clients``: pinned identity keys."""
        self._plan, self.round = plan, round_number
        self._all = [
            SecAggServer(plan=plan, identity=identity, clients=dict(clients), round_number=round_number, bucket=bucket)
            for bucket in range(plan.buckets.count)
        ]
        self._live, self._invited = list(self._all), 0
        self.aborted: list[RoundAborted] = []

    @property
    def faults(self) -> dict[int, str]:
        """Who misbehaved, in any bucket."""
        return {client: why for bucket in self._all for client, why in bucket.faults.items()}

    @property
    def closure(self) -> bytes:
        """Of every bucket that closed, one behind the other; see ``SecAggServer.closure``."""
        return b"".join(bucket.closure for bucket in self._all if bucket.closed)

    def invitation(self, invited: Sequence[int]) -> Requests:
        """Who may take part.

        Raises:
            RoundAborted: too few, in too many buckets; as all methods below.
        """
        self._invited = len(invited)
        return self._say(lambda bucket: _to_all(bucket.invitation(invited), bucket.invited))

    def roster(self) -> Requests:
        """The signed keys of each bucket."""
        return self._say(lambda bucket: _to_all(bucket.roster(), bucket.keyed))

    def cohort(self, model: bytes, closure: bytes) -> Requests:
        """Each bucket's members, and what vectors are asked at."""
        return self._say(lambda bucket: bucket.cohort(model, closure))

    def survivors(self) -> Requests:
        """Whose vector is in each bucket's sum."""
        return self._say(lambda bucket: _to_all(bucket.survivors(), bucket.uploaded))

    def agreement(self) -> Requests:
        """The signatures on each bucket's survivors (strict)."""
        return self._say(lambda bucket: _to_all(bucket.agreement(), bucket.signed))

    def taker(self, take: Callable[[SecAggServer, int, bytes], bool]) -> Callable[[int, bytes], bool]:
        """Gives what a client sent to its bucket; False if it is left out, or its bucket is."""
        homes = {client: bucket for bucket in self._live for client in bucket.invited}
        return lambda client, data: client in homes and take(homes[client], client, data)

    def finish(self) -> Unmasked:
        """Unmask each bucket's sum.

        Raises:
            RoundAborted: in too many buckets nothing could be unmasked.
        """
        found = self._each(lambda bucket: BucketSum(bucket.finish(), len(bucket.invited)))
        return collected(self._plan, self.round, found, self._invited)

    def _say(self, stage: Callable[[SecAggServer], Requests]) -> Requests:
        return {client: request for requests in self._each(stage) for client, request in requests.items()}

    def _each(self, stage: Callable[[SecAggServer], T]) -> list[T]:
        done = []
        for bucket in tuple(self._live):
            try:
                done.append(stage(bucket))
            except RoundAborted as error:
                self._live.remove(bucket)
                self.aborted.append(error)
        if len(self._live) < self._plan.least_buckets:
            one = self._plan.buckets.count == 1
            raise self.aborted[-1] if one else too_few_buckets(self._plan, self.round, len(self._live))
        return done


def _to_all(message: bytes, clients: Iterable[int]) -> Requests:
    return dict.fromkeys(clients, message)
