"""What a client remembers of its rounds, and the bytes of it for the client's own journal.

The journal holds secrets as long as the protocol needs them (round keys, the seed, shares of others) and not longer; it
lies in the client's own folder with the client's own rights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from privacy.events import canonical
from privacy.secagg.keys import RoundKeys
from privacy.secagg.messages import Advert
from privacy.secagg.wire import divide, join, malformed

_SCHEMA = "fedpref-secagg-client-1"


class Stage(IntEnum):
    """How far a client got in a round: the last thing it sent."""

    KEYS = 1
    SHARES = 2
    MASKED = 3
    AGREED = 4
    DONE = 5


@dataclass
class RoundState:
    """One round at one client. ``replies``: request digest and reply by the kind of request, for identical resends."""

    number: int
    invited: tuple[int, ...]
    keys: RoundKeys | None
    seed: bytes | None
    stage: Stage = Stage.KEYS
    header: bytes = b""
    own: bytes = b""  # digest-free copy of the own ``keys`` message
    roster: dict[int, Advert] = field(default_factory=dict)
    roster_digest: bytes = b""
    own_shares: tuple[bytes, bytes] | None = None
    members: tuple[int, ...] = ()
    received: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)
    survivors: tuple[int, ...] = ()
    replies: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)

    def erase_own(self) -> None:
        """Forget the own secrets; from here on only the others can take this client's pads away."""
        self.keys = self.seed = self.own_shares = None

    def erase(self) -> None:
        """Forget all secrets of the round."""
        self.erase_own()
        self.received.clear()


@dataclass(frozen=True)
class Unclosed:
    """A round that this client unmasked and whose closure it has not seen: who may sign, and what."""

    round: int
    survivors: tuple[int, ...]


@dataclass
class MemberState:
    """One client over a run."""

    highest: int = 0
    unclosed: int = 0
    awaiting: Unclosed | None = None
    rounds: dict[int, RoundState] = field(default_factory=dict)

    def forget_old(self) -> None:
        """Before a new round: drop what is done, and all but the newest that is not (it is abandoned, and erased)."""
        open_rounds = sorted(n for n, r in self.rounds.items() if r.stage is not Stage.DONE)
        for number in set(self.rounds) - set(open_rounds[-1:]):
            self.rounds.pop(number).erase()

    def to_bytes(self) -> bytes:
        """For the journal; secrets included."""
        awaiting = [self.awaiting.round, list(self.awaiting.survivors)] if self.awaiting else None
        top = {"schema": _SCHEMA, "highest": self.highest, "unclosed": self.unclosed, "awaiting": awaiting}
        parts = [canonical(top).encode()]
        for r in self.rounds.values():
            parts += [canonical(_fields(r)).encode(), r.own, join(p for pair in r.replies.values() for p in pair)]
        return join(parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> MemberState:
        """The inverse of ``to_bytes``.

        Raises:
            MalformedMessage: not a journal of this version.
        """
        try:
            parts = divide(data, at_most=1 + 3 * 8)
            top = json.loads(parts[0])
            if top["schema"] != _SCHEMA or len(parts) % 3 != 1:
                raise ValueError(top["schema"])
            awaiting = Unclosed(top["awaiting"][0], tuple(top["awaiting"][1])) if top["awaiting"] else None
            rounds = [_round(json.loads(parts[i]), parts[i + 1], parts[i + 2]) for i in range(1, len(parts), 3)]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise malformed(f"A client's journal cannot be read ({type(error).__name__})") from None
        return cls(top["highest"], top["unclosed"], awaiting, {r.number: r for r in rounds})


def _fields(r: RoundState) -> dict[str, Any]:
    return {
        "number": r.number,
        "invited": list(r.invited),
        "keys": [k.hex() for k in r.keys.private_bytes()] if r.keys else None,
        "seed": r.seed.hex() if r.seed else None,
        "stage": int(r.stage),
        "header": r.header.hex(),
        "roster": [[a.client, a.channel.hex(), a.mask.hex()] for a in r.roster.values()],
        "roster_digest": r.roster_digest.hex(),
        "own_shares": [s.hex() for s in r.own_shares] if r.own_shares else None,
        "members": list(r.members),
        "received": [[v, a.hex(), b.hex()] for v, (a, b) in r.received.items()],
        "survivors": list(r.survivors),
        "replies": list(r.replies),
    }


def _round(f: dict[str, Any], own: bytes, replies: bytes) -> RoundState:
    flat = divide(replies, at_most=2 * len(f["replies"]))
    own_shares = [bytes.fromhex(s) for s in f["own_shares"]] if f["own_shares"] else None
    return RoundState(
        f["number"],
        tuple(f["invited"]),
        RoundKeys(*(bytes.fromhex(k) for k in f["keys"])) if f["keys"] else None,
        bytes.fromhex(f["seed"]) if f["seed"] else None,
        Stage(f["stage"]),
        bytes.fromhex(f["header"]),
        own,
        {v: Advert(v, bytes.fromhex(c), bytes.fromhex(m)) for v, c, m in f["roster"]},
        bytes.fromhex(f["roster_digest"]),
        (own_shares[0], own_shares[1]) if own_shares else None,
        tuple(f["members"]),
        {v: (bytes.fromhex(a), bytes.fromhex(b)) for v, a, b in f["received"]},
        tuple(f["survivors"]),
        {kind: (flat[2 * i], flat[2 * i + 1]) for i, kind in enumerate(f["replies"])},
    )
