"""The client of secure aggregation: answers a server that it does not trust, or refuses with a code.

    invite -> keys        roster -> shares        cohort -> (ticket) -> masked        survivors -> [agreed ->] unmask

What it enforces, whatever the server says: the plan's digest in every message; rounds that only grow; one reply per stage
(asked again with the same bytes it sends the same bytes, asked with others it refuses); a cohort between the bounds of
the plan, of pinned identities only (if the plan has buckets: of the bucket that the rule gives), with its own keys
unaltered and nobody's repeated; a list of survivors inside that cohort, with itself, not below the least; the list of the
dropped is computed here, so the two are disjoint, and for no member both secrets are given. It forgets its own secrets
when its vector has left, the others' when the round ends.

``to_bytes`` journals the state (save before send); the caller books the round in its ledger between ``open_cohort``,
which touches no private data, and ``seal``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from privacy.errors import MechanismMisuseError
from privacy.secagg import messages as m
from privacy.secagg.errors import ConsistencyRefusal, SurvivorsRefusal
from privacy.secagg.keys import Identity, Pinned, RoundKeys, open_share, pair_pad_key, seal_share, self_pad_key, usable
from privacy.secagg.masks import add_pads
from privacy.secagg.messages import Advert
from privacy.secagg.packing import Ring, pack
from privacy.secagg.plan import Consistency, SecAggPlan, roster_digest, survivors_digest, view_digest
from privacy.secagg.shamir import SHARE_BYTES, split
from privacy.secagg.shares import NoisedShare
from privacy.secagg.state import MemberState, RoundState, Stage, Unclosed
from privacy.secagg.wire import LARGEST_CLIENT, MAGIC, Message, divide, exactly, join, open_signed, peek, sign


@dataclass(frozen=True)
class Ticket:
    """A checked request for a masked vector. Holds others' shares, so it is not serialised."""

    client: int
    round: int
    model: bytes
    members: tuple[int, ...]
    _header: bytes = field(repr=False)
    _received: dict[int, tuple[bytes, bytes]] = field(repr=False)
    _closed: bool = field(repr=False)


class SecAggClient:
    """One client through the rounds of one run."""

    def __init__(
        self,
        *,
        client: int,
        identity: Identity,
        pinned: Pinned,
        plan: SecAggPlan,
        least_cohort: int = 2,
        journal: bytes | None = None,
    ) -> None:
        """``least_cohort`` is the client's own bound from its terms; ``journal`` continues from ``to_bytes``.

        Raises:
            CohortRefusal: the plan's least cohort is below the client's own.
        """
        if plan.cohort.least < least_cohort:
            raise m.stranger(
                f"The plan unmasks sums of {plan.cohort.least} clients.",
                f"This client's own terms ask for at least {least_cohort}",
            )
        if pinned.clients.get(client) != identity.public:
            raise m.stranger(
                f"Client {client} has another identity key than the one pinned for it.", "Keys were mixed up"
            )
        self._client, self._identity, self._pinned, self._plan = client, identity, pinned, plan
        self._state = MemberState.from_bytes(journal) if journal else MemberState()

    def to_bytes(self) -> bytes:
        """The state for the client's journal, to be kept before a reply is sent; secrets included."""
        return self._state.to_bytes()

    def kept(self, request: bytes) -> bytes | None:
        """The reply that was made to exactly this request, if there is one: sent again after an interruption."""
        digest = open_signed(self._header_of(request), self._pinned.server).digest
        replies = (reply for r in self._state.rounds.values() for reply in r.replies.values())
        return next((reply for answered, reply in replies if answered == digest), None)

    def answer(self, request: bytes) -> bytes:
        """The reply to ``invite``, ``roster``, ``survivors`` or ``agreement``.

        Raises:
            MalformedMessage, ForgedMessage, ReplayRefusal, PlanRefusal, CohortRefusal, SurvivorsRefusal,
            ConsistencyRefusal: the request is refused, nothing is revealed and the state is as before.
        """
        kept = self.kept(request)
        if kept is not None:
            return kept
        kind = open_signed(request, self._pinned.server).kind
        handlers = {
            "invite": self._keys,
            "roster": self._shares,
            "survivors": self._agreed if self._strict else self._unmask_folded,
            "agreement": self._unmask_agreed,
        }
        if kind not in handlers:
            raise m.replay(f"A {kind[:20]!r} message, which is answered elsewhere or nowhere")
        return handlers[kind](request)

    def open_cohort(self, request: bytes) -> Ticket:
        """Check a request for a masked vector, before any private data is touched.

        Raises:
            as ``answer``.
        """
        header, blob = exactly(divide(request, at_most=2), 2)
        message, r = self._due(header, "cohort", Stage.SHARES)
        members, model = message.fields.clients("members"), message.fields.octets("model", m.DIGEST)
        message.fields.end()
        self._check_size(members, "cohort")
        if not set(members) <= set(r.roster) or self._client not in members:
            raise m.stranger("A cohort with a stranger in it, or without this client.", "U2 must lie in U1")
        closed = self._check_closure(bytes(message.blob))
        others = [v for v in members if v != self._client]
        received = {v: pair for v, e in m.entries(blob, others).items() if (pair := self._opened(r, v, e)) is not None}
        if r.own_shares is not None:
            received[self._client] = r.own_shares
        return Ticket(self._client, r.number, model, members, message.digest, received, closed)

    def seal(self, ticket: Ticket, share: NoisedShare) -> bytes:
        """Mask a noised share: the ``masked`` message. Forgets the client's own secrets of the round.

        Raises:
            MechanismMisuseError: a share of another round or plan.
            ReplayRefusal: the round's vector was sealed already, or the round is over.
        """
        r = self._state.rounds.get(ticket.round)
        if r is None or r.stage is not Stage.SHARES or ticket.client != self._client:
            raise m.replay(f"A second vector for round {ticket.round}, or one of a closed round")
        if (share.round, share.plan) != (ticket.round, self._plan.digest):
            raise MechanismMisuseError(
                "A share of another round or plan.", "Its noise and rotation are others.", "Make it for this ticket."
            )
        if not ticket._closed:
            self._state.unclosed += 1
        self._state.awaiting = None
        vector = share.value.copy()
        self._mask(r, ticket, vector)
        fields = m.head(self._plan, r.number, client=self._client, answers=ticket._header)
        reply = sign(self._identity, "masked", fields, pack(vector, self._plan.codec.bits))
        r.members, r.received = ticket.members, dict(ticket._received)
        r.erase_own()
        return self._sent(r, Stage.MASKED, "cohort", ticket._header, reply)

    @property
    def _strict(self) -> bool:
        return self._plan.cohort.consistency is Consistency.STRICT

    @staticmethod
    def _header_of(request: bytes) -> bytes:
        return request if request[:4] == MAGIC else exactly(divide(request, at_most=2), 2)[0]

    def _due(self, request: bytes, kind: str, stage: Stage) -> tuple[Message, RoundState]:
        """A server's message that fits an open round at this stage."""
        message, number = m.opened(request, self._pinned.server, kind, self._plan, None)
        r = self._state.rounds.get(number)
        if r is None:
            raise m.replay(f"Round {number} is closed or was never opened")
        if r.stage is not stage:
            raise m.replay(f"A {kind!r} message in round {number}, which stands at {r.stage.name}")
        if message.fields.octets("previous", m.DIGEST) != r.header:
            raise m.replay(f"A {kind!r} message that does not follow what this client was sent before")
        return message, r

    def _sent(self, r: RoundState, stage: Stage, kind: str, header: bytes, reply: bytes) -> bytes:
        r.stage, r.header = stage, header
        r.replies[kind] = (header, reply)
        return reply

    def _check_size(self, clients: tuple[int, ...], what: str) -> None:
        cohort = self._plan.cohort
        if not cohort.least <= len(clients) <= cohort.largest:
            raise m.stranger(
                f"A {what} of {len(clients)} clients.", f"The plan allows {cohort.least} to {cohort.largest}"
            )

    def _keys(self, request: bytes) -> bytes:
        message, number = m.opened(request, self._pinned.server, "invite", self._plan, None)
        invited = message.fields.clients("invited")
        message.fields.end()
        if number <= self._state.highest:
            raise m.replay(f"Round {number} after round {self._state.highest}")
        if self._client not in invited or not set(invited) <= set(self._pinned.clients):
            raise m.stranger("An invitation without this client, or with a client that is not pinned.", "Pin it first")
        bucket = next(b for b in self._plan.split(number, invited) if self._client in b)
        self._check_size(bucket, "invitation")
        self._state.forget_old()
        keys = RoundKeys()
        r = RoundState(number, bucket, keys, os.urandom(32))
        public = Advert(self._client, keys.channel_public, keys.mask_public)
        r.own = m.advert(self._identity, self._plan, number, message.digest, public)
        self._state.rounds[number], self._state.highest = r, number
        return self._sent(r, Stage.KEYS, "invite", message.digest, r.own)

    def _shares(self, request: bytes) -> bytes:
        message, r = self._due(request, "roster", Stage.KEYS)
        members = message.fields.clients("members")
        message.fields.end()
        adverts = exactly(divide(message.blob, at_most=len(members)), len(members))
        roster = self._checked_roster(r, members, adverts)
        keys, seed = self._secrets(r)
        context, points = self._plan.context(r.number), [v + 1 for v in members]
        threshold, r.roster, r.roster_digest = self._plan.cohort.threshold, roster, roster_digest(adverts)
        dealt = [split(secret, threshold, points) for secret in (seed, keys.private_bytes()[1])]
        blob = b"".join(self._entry(r, keys, v, dealt[0][v + 1], dealt[1][v + 1]) for v in members)
        r.own_shares = dealt[0][self._client + 1], dealt[1][self._client + 1]
        commitment = m.seed_commitment(context, self._client, seed)
        fields = m.head(self._plan, r.number, client=self._client, answers=message.digest, seed=commitment)
        return self._sent(r, Stage.SHARES, "roster", message.digest, sign(self._identity, "shares", fields, blob))

    @staticmethod
    def _secrets(r: RoundState) -> tuple[RoundKeys, bytes]:
        if r.keys is None or r.seed is None:
            raise m.replay(f"Round {r.number}: its secrets are erased")
        return r.keys, r.seed

    def _checked_roster(self, r: RoundState, members: tuple[int, ...], adverts: Sequence[bytes]) -> dict[int, Advert]:
        """U1: invited, in bounds, each key signed by its pinned identity for this invitation, all distinct, own unaltered."""
        self._check_size(members, "roster")
        if not set(members) <= set(r.invited) or self._client not in members:
            raise m.stranger(
                "A roster with a client that was not invited or is in another bucket, or without this client.",
                "U1 lies in the part of U0 that the rule gives",
            )
        roster = {}
        for v, data in zip(members, adverts, strict=True):
            roster[v], answers = m.read_advert(data, self._pinned.clients, self._plan, r.number, v)
            if answers != r.header:
                raise m.stranger(
                    f"Client {v} was shown another invitation than this one.", "The server splits its clients"
                )
        if adverts[members.index(self._client)] != r.own:
            raise m.stranger("A roster in which this client's own keys are altered.", "Someone else would hold them")
        public = [key for a in roster.values() for key in (a.channel, a.mask)]
        if len(set(public)) != len(public) or not all(map(usable, public)):
            raise m.stranger(
                "A roster with a key that occurs twice, or that makes every secret zero.", "Keys are fresh"
            )
        return roster

    def _entry(self, r: RoundState, keys: RoundKeys, v: int, seed_share: bytes, key_share: bytes) -> bytes:
        context = self._plan.context(r.number)
        commitments = m.commitment(context, self._client, v, b"seed", seed_share)
        commitments += m.commitment(context, self._client, v, b"key", key_share)
        if v == self._client:
            return commitments + bytes(m.SEALED)
        shared, bound = keys.channel_secret(r.roster[v].channel), m.entry_bound(r.roster_digest, commitments)
        return commitments + seal_share(shared, context, self._client, v, plain=seed_share + key_share, bound=bound)

    def _opened(self, r: RoundState, dealer: int, entry: bytes) -> tuple[bytes, bytes] | None:
        """A pair of shares that fits its commitments; otherwise it is as if it was never sent (the dealer's loss)."""
        if r.keys is None:
            return None
        context, bound = self._plan.context(r.number), m.entry_bound(r.roster_digest, entry)
        shared = r.keys.channel_secret(r.roster[dealer].channel)
        plain = open_share(shared, context, dealer, self._client, sealed=entry[2 * m.DIGEST :], bound=bound)
        if plain is None or len(plain) != 2 * SHARE_BYTES:
            return None
        pair = plain[:SHARE_BYTES], plain[SHARE_BYTES:]
        due = b"".join(
            m.commitment(context, dealer, self._client, what, s)
            for what, s in zip((b"seed", b"key"), pair, strict=True)
        )
        return pair if due == entry[: 2 * m.DIGEST] else None

    def _mask(self, r: RoundState, ticket: Ticket, vector: Ring) -> None:
        keys, seed = self._secrets(r)
        context = self._plan.context(r.number)
        view = view_digest(r.roster_digest, ticket.members, ticket.model)
        plus, minus = [self_pad_key(seed, context, view, self._client)], list[bytes]()
        for v in ticket.members:
            if v != self._client:
                key = pair_pad_key(keys.mask_secret(r.roster[v].mask), context, view, self._client, v)
                (plus if self._client < v else minus).append(key)
        add_pads(vector, plus, minus)

    def _checked_survivors(self, request: bytes, stage: Stage) -> tuple[Message, RoundState, tuple[int, ...]]:
        message, r = self._due(request, "survivors", stage)
        survivors = message.fields.clients("survivors")
        message.fields.end()
        if len(message.blob):
            raise m.replay("A list of survivors with something behind it")
        if not (
            self._client in survivors
            and set(survivors) <= set(r.members)
            and len(survivors) >= max(self._plan.cohort.least, self._plan.cohort.threshold)
        ):
            raise SurvivorsRefusal(
                f"Round {r.number}: {len(survivors)} survivors that this client does not unmask.",
                f"They must lie in the cohort, hold this client, and be {self._plan.cohort.least} or more.",
                "No share is given; abort the round.",
            )
        return message, r, survivors

    def _signed(self, r: RoundState, survivors: tuple[int, ...]) -> bytes:
        return m.agreed(self._identity, self._plan, r.number, self._client, survivors_digest(survivors))

    def _agreed(self, request: bytes) -> bytes:
        message, r, survivors = self._checked_survivors(request, Stage.MASKED)
        r.survivors = survivors
        return self._sent(r, Stage.AGREED, "survivors", message.digest, self._signed(r, survivors))

    def _unmask_folded(self, request: bytes) -> bytes:
        message, r, survivors = self._checked_survivors(request, Stage.MASKED)
        r.survivors = survivors
        reply = join((self._signed(r, survivors), self._revealed(r, message.digest)))
        self._state.awaiting = Unclosed(r.number, survivors)
        return self._finished(r, "survivors", message.digest, reply)

    def _unmask_agreed(self, request: bytes) -> bytes:
        message, r = self._due(request, "agreement", Stage.AGREED)
        message.fields.end()
        self._check_signatures(bytes(message.blob), r.number, r.survivors)
        return self._finished(r, "agreement", message.digest, self._revealed(r, message.digest))

    def _revealed(self, r: RoundState, answers: bytes) -> bytes:
        """Of survivors the seed's share, of the dropped the mask key's: never both of one member."""
        alive = set(r.survivors)
        shares = {v: pair[0] if v in alive else pair[1] for v, pair in r.received.items()}
        fields = m.head(self._plan, r.number, client=self._client, answers=answers)
        return sign(self._identity, "unmask", fields, m.reveal(shares, r.members))

    def _finished(self, r: RoundState, kind: str, header: bytes, reply: bytes) -> bytes:
        r.erase()
        r.replies.pop("cohort", None)  # large, and in the server's hands: it lists this client as a survivor
        return self._sent(r, Stage.DONE, kind, header, reply)

    def _check_signatures(self, blob: bytes, number: int, survivors: tuple[int, ...]) -> None:
        """At least t members signed the list that this client was shown, and nobody another one."""
        due, signers = survivors_digest(survivors), set[int]()
        for data in divide(blob, at_most=self._plan.cohort.largest):
            sender, signed = m.read_agreed(data, self._pinned.clients, self._plan, number)
            if sender not in survivors or signed != due or sender in signers:
                raise ConsistencyRefusal(
                    f"Round {number}: client {sender} signed another list of survivors, or twice.",
                    "The server shows its clients different lists.",
                    "No share is given. Keep the two signed messages: they are evidence.",
                )
            signers.add(sender)
        if len(signers) < self._plan.cohort.threshold:
            raise ConsistencyRefusal(
                f"Round {number}: only {len(signers)} of {self._plan.cohort.threshold} signatures on the survivors.",
                "Fewer members than the threshold confirm the list that this client was shown.",
                "No share is given; abort the round.",
            )

    @staticmethod
    def _closes(blob: bytes, number: int) -> bool:
        """False for the closure of another round, shown to a client that missed its own: as good as none.

        Read before it is verified; a lie here gains nothing over sending no closure.
        """
        first = next(iter(divide(blob, at_most=LARGEST_CLIENT)), b"")
        fields = peek(first)
        return fields.integer("round") == number

    def _of_own_bucket(self, blob: bytes, survivors: tuple[int, ...]) -> bytes:
        """The closure of all buckets -> the signatures of those that this client unmasked with; others sign other lists."""
        buckets = self._plan.buckets.count
        if buckets == 1:
            return blob
        parts = divide(blob, at_most=buckets * self._plan.cohort.largest)
        return join(part for part in parts if peek(part).integer("client") in survivors)

    def _check_closure(self, blob: bytes) -> bool:
        """True if the round unmasked before is closed by t signatures, or there was none."""
        awaiting = self._state.awaiting
        if awaiting is None:
            return True
        blob = self._of_own_bucket(blob, awaiting.survivors)
        if blob and self._closes(blob, awaiting.round):
            self._check_signatures(blob, awaiting.round, awaiting.survivors)
            return True
        if self._state.unclosed >= self._plan.cohort.unclosed:
            raise ConsistencyRefusal(
                f"Round {awaiting.round} was unmasked and never closed, like {self._state.unclosed} before it.",
                "An honest server shows the members' signatures on the survivors; a few aborted rounds are allowed.",
                "Ask the operator of the server why its rounds abort.",
            )
        return False
