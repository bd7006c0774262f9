"""A round in the middle of which somebody lies. The adversary holds the server's signing key."""

from __future__ import annotations

from typing import Any

from privacy.secagg import messages as m
from privacy.secagg.client import SecAggClient
from privacy.secagg.keys import Identity
from privacy.secagg.plan import Consistency, SecAggPlan
from privacy.secagg.wire import sign
from tests.privacy.secagg.federation import MODEL, client, identity, plan, server, share

N = 5
VICTIM = 0


class Scene:
    """Honest clients and a server object that has run the honest protocol up to some point."""

    def __init__(self, mode: Consistency = Consistency.FOLDED, **changes: Any) -> None:
        self.plan: SecAggPlan = plan(N, mode=mode, **changes)
        self.people = {i: client(self.plan, i) for i in range(N)}
        self.next_round()

    @property
    def victim(self) -> SecAggClient:
        """The honest client that is lied to."""
        return self.people[VICTIM]

    def next_round(self, number: int = 1, closure: bytes = b"") -> Scene:
        """A fresh round."""
        self.number, self.closure = number, closure
        self.server = server(self.plan, number)
        return self

    def invited(self) -> Scene:
        """Everybody sent keys."""
        self.invitation = self.server.invitation(range(N))
        self.adverts = {i: c.answer(self.invitation) for i, c in self.people.items()}
        for i, data in self.adverts.items():
            self.server.take_keys(i, data)
        return self

    def dealt(self) -> Scene:
        """Everybody dealt shares; ``requests`` are ready."""
        self.invited()
        self.roster = self.server.roster()
        for i, c in self.people.items():
            self.server.take_shares(i, c.answer(self.roster))
        self.requests = self.server.cohort(MODEL, self.closure)
        return self

    def uploaded(self) -> Scene:
        """Everybody sent a masked vector; ``survivors`` is ready."""
        self.dealt()
        for i, c in self.people.items():
            self.server.take_masked(i, self.upload(c, i, self.requests[i]))
        self.survivors = self.server.survivors()
        return self

    def agreed(self) -> Scene:
        """Strict: everybody signed the survivors; ``agreement`` is ready."""
        self.uploaded()
        for i, c in self.people.items():
            self.server.take_agreed(i, c.answer(self.survivors))
        self.agreement = self.server.agreement()
        return self

    def unmasked(self) -> Scene:
        """Folded: the round is over."""
        self.uploaded()
        for i, c in self.people.items():
            self.server.take_unmask(i, c.answer(self.survivors))
        self.total = self.server.finish()
        return self

    def upload(self, who: SecAggClient, number: int, request: bytes) -> bytes:
        """A masked vector."""
        ticket = who.open_cohort(request)
        return who.seal(ticket, share(self.plan, number, self.number))

    def lie(
        self,
        kind: str,
        blob: bytes = b"",
        *,
        run: str | None = None,
        plan: SecAggPlan | None = None,
        number: int | None = None,
        signer: Identity | None = None,
        follow: bool = True,
        **fields: Any,
    ) -> bytes:
        """A header of the adversary's making; by default it follows what the victim was last sent."""
        head = m.head(plan or self.plan, self.number if number is None else number, **fields)
        if run is not None:
            head["run"] = run
        known = self.victim._state.rounds.get(self.number)
        if follow and kind != "invite" and known is not None:
            head["previous"] = known.header.hex()
        return sign(signer or identity(-1), kind, head, blob)
