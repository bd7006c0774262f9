"""The messages of a round: what they hold, how they are signed, and the checks that need no state.

| stage | server -> client | client -> server |
|---|---|---|
| keys | ``invite``: who may take part | ``keys``: two X25519 keys of the round |
| shares | ``roster``: the signed keys of U1 | ``shares``: for each member commitments and a sealed pair of shares |
| masked | ``cohort``: U2, digest of the model, closure of the last round; the member's shares | ``masked``: the vector |
| agreed (strict) | ``survivors``: U3 | ``agreed``: signature on U3 |
| unmask | ``survivors`` (folded) or ``agreement`` (strict) | ``unmask``: one share per member (folded: ``agreed`` beside it) |

Every head names run, round and plan; a server's names the header before it, a client's the header that it answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from privacy.secagg.errors import CohortRefusal, PlanRefusal, ReplayRefusal
from privacy.secagg.keys import KEY_BYTES, NONCE_BYTES, TAG_BYTES, Identity, digest, number
from privacy.secagg.plan import SecAggPlan
from privacy.secagg.shamir import SHARE_BYTES
from privacy.secagg.wire import Message, malformed, open_signed, peek, sign

DIGEST = 32
SEALED = NONCE_BYTES + 2 * SHARE_BYTES + TAG_BYTES
ENTRY = 2 * DIGEST + SEALED  # one member in a ``shares`` message: two commitments, then the sealed shares
REVEALED = 1 + SHARE_BYTES  # one member in an ``unmask`` message: present or not, then the share


@dataclass(frozen=True)
class Advert:
    """A client's public keys of one round."""

    client: int
    channel: bytes
    mask: bytes


def head(plan: SecAggPlan, round_number: int, **fields: Any) -> dict[str, Any]:
    """The fields of every head, and more; bytes as hexadecimal digits, client lists as lists."""
    shaped = {k: v.hex() if isinstance(v, bytes) else v for k, v in fields.items()}
    return {"run": plan.run, "round": round_number, "plan": plan.digest.hex(), **shaped}


def opened(data: bytes, public: bytes, kind: str, plan: SecAggPlan, round_number: int | None) -> tuple[Message, int]:
    """A message of one kind of this run and plan, signed by ``public``; and its round, which is checked if given.

    Raises:
        MalformedMessage, ForgedMessage: see ``wire.open_signed``.
        ReplayRefusal: another kind, run or round than expected.
        PlanRefusal: another plan.
    """
    message = open_signed(data, public)
    run, number_in, digest_in = (
        message.fields.text("run"),
        message.fields.integer("round"),
        message.fields.octets("plan", DIGEST),
    )
    if message.kind != kind or run != plan.run or number_in < 1 or round_number not in (None, number_in):
        raise replay(f"A {message.kind!r} of run {run[:40]!r}, round {number_in}, where {kind!r} is due")
    if digest_in != plan.digest:
        raise PlanRefusal(
            f"Round {number_in} runs under another plan than this side agreed to.",
            "Codec, clipping norm, noise, threshold or cohort bounds differ.",
            "Compare the resolved recipes; a server cannot change them during a run.",
        )
    return message, number_in


def replay(why: str) -> ReplayRefusal:
    """The one refusal of what is old, foreign, repeated or out of order."""
    return ReplayRefusal(
        "A message does not belong here and now.",
        why + ".",
        "Nothing is answered; ask for a new round with a larger number.",
    )


def stranger(what: str, why: str) -> CohortRefusal:
    """The one refusal of a cohort."""
    return CohortRefusal(what, why, "The client does not take part in this round.")


def advert(identity: Identity, plan: SecAggPlan, round_number: int, answers: bytes, keys: Advert) -> bytes:
    """A ``keys`` message."""
    fields = head(plan, round_number, client=keys.client, answers=answers, channel=keys.channel, mask=keys.mask)
    return sign(identity, "keys", fields)


def read_advert(
    data: bytes, pinned: Mapping[int, bytes], plan: SecAggPlan, round_number: int, client: int
) -> tuple[Advert, bytes]:
    """The keys of one client, and the digest of the invitation that it answers."""
    message, _ = opened(data, pinned[client], "keys", plan, round_number)
    sender, answers = message.fields.integer("client"), message.fields.octets("answers", DIGEST)
    keys = Advert(sender, message.fields.octets("channel", KEY_BYTES), message.fields.octets("mask", KEY_BYTES))
    message.fields.end()
    if sender != client or len(message.blob):
        raise malformed(f"Keys of client {sender} where those of {client} are due, or a blob")
    return keys, answers


def agreed(identity: Identity, plan: SecAggPlan, round_number: int, client: int, survivors: bytes) -> bytes:
    """An ``agreed`` message: a signature on H(U3)."""
    return sign(identity, "agreed", head(plan, round_number, client=client, survivors=survivors))


def read_agreed(data: bytes, pinned: Mapping[int, bytes], plan: SecAggPlan, round_number: int) -> tuple[int, bytes]:
    """Who signed which H(U3). The sender is read first, to know whose signature to check; nothing of it is believed."""
    sender = peek(data).integer("client")
    if sender not in pinned:
        raise stranger(f"Client {sender} signed survivors.", "Its identity is not pinned")
    message, _ = opened(data, pinned[sender], "agreed", plan, round_number)
    message.fields.integer("client")
    survivors = message.fields.octets("survivors", DIGEST)
    message.fields.end()
    return sender, survivors


def commitment(context: bytes, dealer: int, receiver: int, what: bytes, share: bytes) -> bytes:
    """Hash commitment to a share: hiding because a share has 521 random bits, binding because SHA-256 is."""
    return digest(b"commitment", context, number(dealer), number(receiver), what, share)


def seed_commitment(context: bytes, dealer: int, seed: bytes) -> bytes:
    """Hash commitment to the seed of a self pad."""
    return digest(b"seed", context, number(dealer), seed)


def entry_bound(roster: bytes, entry: bytes | memoryview) -> bytes:
    """What the encryption of a pair of shares authenticates beside it: the roster and the two commitments."""
    return digest(b"entry", roster, bytes(entry[: 2 * DIGEST]))


def entries(blob: bytes | memoryview, members: Sequence[int]) -> dict[int, bytes]:
    """The fixed-size entries of a blob, one per member in order.

    Raises:
        MalformedMessage: another length.
    """
    if len(blob) != ENTRY * len(members):
        raise malformed(f"{len(blob)} bytes of shares for {len(members)} members")
    return {v: bytes(blob[i * ENTRY : (i + 1) * ENTRY]) for i, v in enumerate(members)}


def revealed(blob: bytes | memoryview, members: Sequence[int]) -> dict[int, bytes]:
    """The shares in an ``unmask`` blob, by the member that dealt them.

    Raises:
        MalformedMessage: another length, a flag that is none, or a share where none is said to be.
    """
    if len(blob) != REVEALED * len(members):
        raise malformed(f"{len(blob)} bytes of revealed shares for {len(members)} members")
    shares = {}
    for i, v in enumerate(members):
        piece = bytes(blob[i * REVEALED : (i + 1) * REVEALED])
        if piece[0] == 1:
            shares[v] = piece[1:]
        elif any(piece):
            raise malformed("A flag that is neither zero nor one")
    return shares


def reveal(shares: Mapping[int, bytes], members: Sequence[int]) -> bytes:
    """The inverse of ``revealed``."""
    return b"".join(b"\1" + shares[v] if v in shares else bytes(REVEALED) for v in members)
