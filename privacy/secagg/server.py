"""The server of secure aggregation: collects, names who misbehaves, unmasks one sum or aborts.

Bytes of a client that are malformed, forged, out of place or a second version of what it sent are left out, and the client
is named in ``faults``. Nothing is unmasked unless every secret was rebuilt and fits what its owner committed to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from privacy.errors import CodedError
from privacy.secagg import messages as m
from privacy.secagg.errors import RoundAborted
from privacy.secagg.keys import SIGNATURE_BYTES, Identity, agree, mask_public_of, pair_pad_key, self_pad_key, usable
from privacy.secagg.masks import add_pads
from privacy.secagg.packing import unpack, word
from privacy.secagg.plan import Consistency, SecAggPlan, roster_digest, survivors_digest, view_digest
from privacy.secagg.shamir import Interpolation
from privacy.secagg.shares import SecureSum, decoded_sum
from privacy.secagg.wire import Message, divide, exactly, join, malformed, open_signed, sign


class SecAggServer:
    """One round at the server. Calls come in the order of the methods below."""

    def __init__(
        self,
        *,
        plan: SecAggPlan,
        identity: Identity,
        clients: dict[int, bytes],
        round_number: int,
        bucket: int = 0,
    ) -> None:
        """``clients``: pinned identity keys; ``bucket``: which part of the invited this is the server of."""
        self._bucket = bucket
        self._plan, self._identity, self._clients = plan, identity, clients
        self._round = round_number
        self._context = plan.context(round_number)
        self.faults: dict[int, str] = {}
        self._seen: dict[tuple[str, int], bytes] = {}
        self._header, self._due = b"", ""
        self._adverts: dict[int, tuple[m.Advert, bytes]] = {}
        self._dealt: dict[int, dict[int, bytes]] = {}
        self._seeds: dict[int, bytes] = {}
        self._agreed: dict[int, bytes] = {}
        self._revealed: dict[int, dict[int, bytes]] = {}
        self._uploaded: set[int] = set()
        self._total = np.zeros(plan.codec.coordinates, dtype=word(plan.codec.bits))
        self._invited: tuple[int, ...] = ()
        self._roster: tuple[int, ...] = ()
        self._members: tuple[int, ...] = ()
        self._survivors: tuple[int, ...] = ()
        self._model = b""

    @property
    def round(self) -> int:
        """The round's number."""
        return self._round

    @property
    def invited(self) -> tuple[int, ...]:
        """Who is in this sum, if all answer."""
        return self._invited

    @property
    def keyed(self) -> tuple[int, ...]:
        """Who sent keys."""
        return tuple(sorted(self._adverts))

    @property
    def uploaded(self) -> tuple[int, ...]:
        """Whose vector is in the sum."""
        return tuple(sorted(self._uploaded))

    @property
    def signed(self) -> tuple[int, ...]:
        """Who signed the survivors."""
        return tuple(sorted(self._agreed))

    @property
    def closed(self) -> bool:
        """True if the threshold of members signed the survivors."""
        return len(self._agreed) >= self._plan.cohort.threshold

    # ---- keys

    def invitation(self, invited: Sequence[int]) -> bytes:
        """Who may take part, in all buckets; to all of them. Every bucket's server signs the same bytes.

        Raises:
            RoundAborted: fewer than the least cohort.
        """
        self._invited = self._plan.split(self._round, invited)[self._bucket]
        self._enough(self._invited, "invited")
        return self._say("invite", invited=sorted(invited))

    def take_keys(self, client: int, data: bytes) -> bool:
        """A client's keys; False if they are left out."""
        return self._take("keys", client, self._invited, data, self._keys)

    def _keys(self, client: int, data: bytes) -> None:
        keys, answers = m.read_advert(data, self._clients, self._plan, self._round, client)
        public = [key for a, _ in self._adverts.values() for key in (a.channel, a.mask)]
        if answers != self._header or keys.channel == keys.mask or {keys.channel, keys.mask} & set(public):
            raise malformed("It answers another invitation, or repeats a key")
        if not (usable(keys.channel) and usable(keys.mask)):
            raise malformed("A key of small order")
        self._adverts[client] = (keys, data)

    # ---- shares

    def roster(self) -> bytes:
        """The signed keys of U1; to all of U1.

        Raises:
            RoundAborted: fewer than the least cohort sent keys.
        """
        self._roster = self.keyed
        self._enough(self._roster, "sent keys")
        blob = join(self._adverts[v][1] for v in self._roster)
        return self._say("roster", blob, members=list(self._roster))

    def take_shares(self, client: int, data: bytes) -> bool:
        """A client's sealed shares for all of U1; False if they are left out."""
        return self._take("shares", client, self._roster, data, self._shares)

    def _shares(self, client: int, data: bytes) -> None:
        message = self._answer(client, data, "shares")
        seed = message.fields.octets("seed", m.DIGEST)
        message.fields.end()
        self._dealt[client], self._seeds[client] = m.entries(message.blob, self._roster), seed

    # ---- masked vectors

    def cohort(self, model: bytes, closure: bytes = b"") -> dict[int, bytes]:
        """For each member of U2: the cohort, the digest of the model, the last closure; and the shares meant for it.

        ``closure``: of the round unmasked before, ``closure`` of its server (folded).

        Raises:
            RoundAborted: fewer than the least cohort dealt shares.
        """
        self._members = tuple(sorted(self._dealt))
        self._enough(self._members, "dealt shares")
        self._model = model
        header = self._say("cohort", closure, members=list(self._members), model=model.hex())
        return {u: join((header, b"".join(self._dealt[v][u] for v in self._members if v != u))) for u in self._members}

    def take_masked(self, client: int, data: bytes) -> bool:
        """A masked vector; False if it is left out. It is added to the sum at once and not kept."""
        return self._take("masked", client, self._members, data, self._masked)

    def _masked(self, client: int, data: bytes) -> None:
        message = self._answer(client, data, "masked")
        message.fields.end()
        codec = self._plan.codec
        if len(message.blob) != codec.upload_bytes:
            raise malformed(f"{len(message.blob)} bytes of a vector instead of {codec.upload_bytes}")
        self._total += unpack(message.blob, codec.coordinates, codec.bits)  # type: ignore[arg-type]
        self._uploaded.add(client)

    # ---- survivors, agreement (strict)

    def survivors(self) -> bytes:
        """U3: whose vector is in the sum; to all of them.

        Raises:
            RoundAborted: fewer than the least cohort; nothing will be unmasked.
        """
        self._survivors = self.uploaded
        self._enough(self._survivors, "uploaded")
        return self._say("survivors", survivors=list(self._survivors))

    def take_agreed(self, client: int, data: bytes) -> bool:
        """A signature on U3 (strict); False if it is left out."""
        return self._take("agreed", client, self._survivors, data, self._sign_off)

    def _sign_off(self, client: int, data: bytes) -> None:
        sender, signed = m.read_agreed(data, self._clients, self._plan, self._round)
        if sender != client or signed != survivors_digest(self._survivors):
            raise malformed("It signs another list of survivors, or for somebody else")
        self._agreed[client] = data

    def agreement(self) -> bytes:
        """The signatures on U3 (strict); to all who signed.

        Raises:
            RoundAborted: fewer than the threshold signed.
        """
        if not self.closed:
            raise self._abort(f"{len(self._agreed)} clients signed the survivors, the threshold is higher")
        return self._say("agreement", self.closure)

    @property
    def closure(self) -> bytes:
        """The signatures on U3, for the next round's ``cohort`` message."""
        return join(self._agreed[v] for v in sorted(self._agreed)[: self._plan.cohort.threshold])

    # ---- unmask

    def take_unmask(self, client: int, data: bytes) -> bool:
        """A client's revealed shares (folded: its signature before them); False if they are left out."""
        return self._take("unmask", client, self._survivors, data, self._unmask)

    def _unmask(self, client: int, data: bytes) -> None:
        if self._plan.cohort.consistency is Consistency.FOLDED:
            signed, data = exactly(divide(data, at_most=2), 2)
            self._sign_off(client, signed)
        message = self._answer(client, data, "unmask")
        message.fields.end()
        shares = m.revealed(message.blob, self._members)
        alive = set(self._survivors)
        wrong = []
        for dealer, share in shares.items():
            what, at = (b"seed", 0) if dealer in alive else (b"key", m.DIGEST)
            committed = self._dealt[dealer][client][at : at + m.DIGEST]
            if m.commitment(self._context, dealer, client, what, share) != committed:
                wrong.append(dealer)
        self._revealed[client] = {v: s for v, s in shares.items() if v not in wrong}
        if wrong:
            self._blame(client, f"its shares of clients {wrong[:5]} are not those that were dealt")

    def finish(self) -> SecureSum:
        """Rebuild the secrets, take the pads away, decode the sum.

        Raises:
            RoundAborted: too few answers, or a secret that cannot be rebuilt; nothing was unmasked.
        """
        if self._due != "unmask":
            raise self._abort("it does not stand where a sum can be unmasked")
        if len(self._revealed) < self._plan.cohort.threshold:
            raise self._abort(f"{len(self._revealed)} clients answered, the threshold is {self._plan.cohort.threshold}")
        alive, interpolations = set(self._survivors), dict[tuple[int, ...], Interpolation]()
        secrets = {v: self._checked(v, self._rebuilt(v, interpolations), v in alive) for v in self._members}
        view = view_digest(self._roster_digest, self._members, self._model)
        plus, minus = list[bytes](), list[bytes]()
        for v, secret in secrets.items():
            if v in alive:
                minus.append(self_pad_key(secret, self._context, view, v))
                continue
            for u in self._survivors:  # u added the pad of (u, v) if u < v, and subtracted it otherwise
                shared = agree(secret, self._adverts[u][0].mask)
                (minus if u < v else plus).append(pair_pad_key(shared, self._context, view, u, v))
        add_pads(self._total, plus, minus)
        self._due = ""
        return decoded_sum(self._plan, self._total, self._round, self._survivors)

    def _rebuilt(self, dealer: int, interpolations: dict[tuple[int, ...], Interpolation]) -> bytes | None:
        holders = sorted(u for u, shares in self._revealed.items() if dealer in shares)
        if len(holders) < self._plan.cohort.threshold:
            self._blame(dealer, f"only {len(holders)} of the shares that it dealt came back")
            raise self._abort(f"only {len(holders)} shares of client {dealer} came back")
        points = tuple(u + 1 for u in holders[: self._plan.cohort.threshold])
        if points not in interpolations:
            interpolations[points] = Interpolation(points)
        secret = interpolations[points].secret({x: self._revealed[x - 1][dealer] for x in points})
        return secret

    def _checked(self, dealer: int, secret: bytes | None, alive: bool) -> bytes:
        """All shares fit their commitments; if the secret does not, its dealer lied."""
        if secret is None:
            fits = False
        elif alive:
            fits = m.seed_commitment(self._context, dealer, secret) == self._seeds[dealer]
        else:
            fits = mask_public_of(secret) == self._adverts[dealer][0].mask
        if secret is None or not fits:
            self._blame(dealer, "its shares do not give the secret that it committed to")
            raise self._abort(f"client {dealer} dealt shares of another secret")
        return secret

    # ---- common

    @property
    def _roster_digest(self) -> bytes:
        return roster_digest([self._adverts[v][1] for v in self._roster])

    def _say(self, kind: str, blob: bytes = b"", **fields: object) -> bytes:
        """A signed header that follows the last one of this round."""
        if self._header:
            fields["previous"] = self._header.hex()
        last = "unmask" if self._plan.cohort.consistency is Consistency.FOLDED else "agreed"
        self._due = {"invite": "keys", "roster": "shares", "cohort": "masked", "survivors": last}.get(kind, "unmask")
        data = sign(self._identity, kind, m.head(self._plan, self._round, **fields), blob)
        self._header = open_signed(data, self._identity.public).digest
        return data

    def _answer(self, client: int, data: bytes, kind: str) -> Message:
        message, _ = m.opened(data, self._clients[client], kind, self._plan, self._round)
        if message.fields.integer("client") != client or message.fields.octets("answers", m.DIGEST) != self._header:
            raise malformed("It answers another message, or for somebody else")
        return message

    def _take(
        self, kind: str, client: int, due: Sequence[int], data: bytes, read: Callable[[int, bytes], None]
    ) -> bool:
        """First version counts; a later one that differs names the client, and is left out. What is late is nobody's fault."""
        if client not in due or kind != self._due:
            return False
        name = bytes(data[-SIGNATURE_BYTES:])  # binds the digest of all the rest
        if (kind, client) in self._seen:
            if self._seen[kind, client] != name:
                self._blame(client, f"it sent two different {kind!r} messages; the first counts")
            return False
        try:
            read(client, data)
        except CodedError as error:
            self._blame(client, f"its {kind!r} message is left out: {error.why}")
            return False
        self._seen[kind, client] = name
        return True

    def _blame(self, client: int, why: str) -> None:
        self.faults.setdefault(client, why)

    def _enough(self, clients: Sequence[int], what: str) -> None:
        least, largest = self._plan.cohort.least, self._plan.cohort.largest
        if not least <= len(clients) <= largest or not set(clients) <= set(self._clients):
            raise self._abort(f"{len(clients)} clients {what}; the plan asks for {least} to {largest} pinned ones")

    def _abort(self, why: str) -> RoundAborted:
        return RoundAborted(
            f"Round {self._round} is aborted.",
            f"{why[0].upper()}{why[1:]}.",
            "Nothing was unmasked; the event stays booked. Go on with a new round number.",
        )
