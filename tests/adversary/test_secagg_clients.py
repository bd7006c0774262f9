"""Malicious clients are named and left out, or the round aborts with nothing released; what stays possible is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from privacy.secagg import client as client_module
from privacy.secagg import messages as m
from privacy.secagg.errors import RoundAborted
from privacy.secagg.keys import RoundKeys
from privacy.secagg.plan import Consistency, survivors_digest
from privacy.secagg.shares import NoisedShare, implausible
from privacy.secagg.wire import divide, join, sign
from tests.adversary.scene import N, Scene
from tests.privacy.secagg.federation import identity, plain_sum, plan, run_round, share

LIAR = 4
HONEST = tuple(range(LIAR))
Spoil = Callable[[Scene, bytes], bytes]


def resigned(s: Scene, kind: str, who: int = LIAR, blob: bytes = b"", **fields: object) -> bytes:
    """A well-signed message of the liar with other content."""
    return sign(identity(LIAR), kind, m.head(s.plan, 1, client=who, answers=s.server._header, **fields), blob)


def keys(s: Scene, channel: bytes, mask: bytes, answers: bytes | None = None) -> bytes:
    return m.advert(identity(LIAR), s.plan, 1, answers or s.server._header, m.Advert(LIAR, channel, mask))


def fresh() -> tuple[bytes, bytes]:
    pair = RoundKeys()
    return pair.channel_public, pair.mask_public


BAD_KEYS: dict[str, Spoil] = {
    "nothing": lambda s, good: b"",
    "cut off": lambda s, good: good[:-1],
    "one bit changed": lambda s, good: good[:50] + bytes([good[50] ^ 1]) + good[51:],
    "signed by another": lambda s, good: m.advert(identity(0), s.plan, 1, s.server._header, m.Advert(LIAR, *fresh())),
    "of another client": lambda s, good: m.advert(identity(LIAR), s.plan, 1, s.server._header, m.Advert(0, *fresh())),
    "of another round": lambda s, good: m.advert(identity(LIAR), s.plan, 2, s.server._header, m.Advert(LIAR, *fresh())),
    "for another invitation": lambda s, good: keys(s, *fresh(), answers=bytes(32)),
    "one key twice": lambda s, good: keys(s, fresh()[0], s.people[0]._state.rounds[1].keys.mask_public),  # type: ignore[union-attr]
    "small order": lambda s, good: keys(s, fresh()[0], bytes(32)),
    "another kind": lambda s, good: resigned(s, "masked"),
}
BAD_SHARES: dict[str, Spoil] = {
    "cut off": lambda s, good: good[:-65],
    "signed by another": lambda s, good: sign(identity(0), "shares", {}, b""),
    "too few": lambda s, good: resigned(s, "shares", blob=bytes(m.ENTRY * (N - 1)), seed=bytes(32)),
    "too many": lambda s, good: resigned(s, "shares", blob=bytes(m.ENTRY * (N + 1)), seed=bytes(32)),
    "for somebody else": lambda s, good: resigned(s, "shares", who=0, blob=bytes(m.ENTRY * N), seed=bytes(32)),
    "without commitment": lambda s, good: resigned(s, "shares", blob=bytes(m.ENTRY * N)),
}
BAD_VECTORS: dict[str, Spoil] = {
    "empty": lambda s, good: resigned(s, "masked"),
    "a byte short": lambda s, good: resigned(s, "masked", blob=bytes(s.plan.codec.upload_bytes - 1)),
    "a byte long": lambda s, good: resigned(s, "masked", blob=bytes(s.plan.codec.upload_bytes + 1)),
    "one bit changed": lambda s, good: good[:-70] + bytes([good[-70] ^ 1]) + good[-69:],
    "with a weight": lambda s, good: resigned(s, "masked", blob=bytes(s.plan.codec.upload_bytes), num_examples=7),
}


def finish(s: Scene, survivors: tuple[int, ...]) -> None:
    """Unmask with the honest ones, and compare."""
    request = s.server.survivors()
    assert s.server.uploaded == survivors
    for i in survivors:
        assert s.server.take_unmask(i, s.people[i].answer(request))
    total = s.server.finish()
    shares = {i: share(s.plan, i) for i in survivors}
    np.testing.assert_array_equal(total.integers, plain_sum(s.plan, shares, survivors))


def rest(s: Scene, stage: str) -> None:
    """The honest protocol of the clients in it, from a stage on."""
    if stage == "keys":
        roster = s.server.roster()
        for i in s.server.keyed:
            assert s.server.take_shares(i, s.people[i].answer(roster))
    if stage in {"keys", "shares"}:
        for i, request in s.server.cohort(b"m" * 32).items():
            assert s.server.take_masked(i, s.upload(s.people[i], i, request))
    finish(s, HONEST)


@pytest.mark.parametrize("spoil", BAD_KEYS.values(), ids=BAD_KEYS.keys())
def test_bad_keys_are_left_out_and_their_sender_named(spoil: Spoil) -> None:
    s = Scene()
    invitation = s.server.invitation(range(N))
    for i in HONEST:
        assert s.server.take_keys(i, s.people[i].answer(invitation))
    assert not s.server.take_keys(LIAR, spoil(s, s.people[LIAR].answer(invitation)))
    assert set(s.server.faults) == {LIAR}
    rest(s, "keys")


@pytest.mark.parametrize("spoil", BAD_SHARES.values(), ids=BAD_SHARES.keys())
def test_bad_shares_are_left_out_and_their_sender_named(spoil: Spoil) -> None:
    s = Scene().invited()
    roster = s.server.roster()
    for i in HONEST:
        assert s.server.take_shares(i, s.people[i].answer(roster))
    assert not s.server.take_shares(LIAR, spoil(s, s.people[LIAR].answer(roster)))
    assert set(s.server.faults) == {LIAR}
    rest(s, "shares")


@pytest.mark.parametrize("spoil", BAD_VECTORS.values(), ids=BAD_VECTORS.keys())
def test_a_bad_vector_is_left_out_and_its_sender_named(spoil: Spoil) -> None:
    s = Scene().dealt()
    for i in HONEST:
        assert s.server.take_masked(i, s.upload(s.people[i], i, s.requests[i]))
    assert not s.server.take_masked(LIAR, spoil(s, s.upload(s.people[LIAR], LIAR, s.requests[LIAR])))
    assert set(s.server.faults) == {LIAR}
    finish(s, HONEST)


def test_messages_of_strangers_and_of_the_wrong_stage_count_for_nothing() -> None:
    s = Scene().dealt()
    assert not s.server.take_masked(77, b"x")
    assert not s.server.take_unmask(LIAR, b"x")
    assert s.server.faults == {}


@pytest.mark.parametrize("stage", ["keys", "shares", "masked"])
def test_of_two_different_messages_the_first_counts_and_the_sender_is_named(stage: str) -> None:
    s = Scene().invited()
    if stage == "keys":
        assert not s.server.take_keys(LIAR, keys(s, *fresh()))
    s.roster = s.server.roster()
    for i, c in s.people.items():
        assert s.server.take_shares(i, c.answer(s.roster))
    if stage == "shares":
        assert not s.server.take_shares(LIAR, resigned(s, "shares", blob=bytes(m.ENTRY * N), seed=bytes(32)))
    for i, request in s.server.cohort(b"m" * 32).items():
        assert s.server.take_masked(i, s.upload(s.people[i], i, request))
    if stage == "masked":
        assert not s.server.take_masked(LIAR, resigned(s, "masked", blob=bytes(s.plan.codec.upload_bytes)))
    assert set(s.server.faults) == {LIAR}
    assert "two different" in s.server.faults[LIAR]
    finish(s, tuple(range(N)))


def test_the_same_message_again_is_no_fault() -> None:
    s = Scene().invited()
    assert not s.server.take_keys(LIAR, s.adverts[LIAR])
    assert s.server.faults == {}


def unmask_of(s: Scene, shares: dict[int, bytes], survivors: tuple[int, ...] = tuple(range(N))) -> bytes:
    fields = m.head(s.plan, 1, client=LIAR, answers=s.server._header)
    revealed = sign(identity(LIAR), "unmask", fields, m.reveal(shares, range(N)))
    return join((m.agreed(identity(LIAR), s.plan, 1, LIAR, survivors_digest(survivors)), revealed))


def test_a_share_that_was_never_dealt_names_its_sender_and_is_skipped() -> None:
    s = Scene().uploaded()
    for i in HONEST:
        assert s.server.take_unmask(i, s.people[i].answer(s.survivors))
    assert s.server.take_unmask(LIAR, unmask_of(s, {v: bytes(66) for v in range(N)}))
    assert "not those that were dealt" in s.server.faults[LIAR]
    total = s.server.finish()
    np.testing.assert_array_equal(total.integers, plain_sum(s.plan, {i: share(s.plan, i) for i in range(N)}, range(N)))


@pytest.mark.parametrize("kind", ["cut off", "other list", "one part"])
def test_a_bad_unmask_message_is_left_out(kind: str) -> None:
    s = Scene().uploaded()
    good = s.people[LIAR].answer(s.survivors)
    spoilt = {
        "cut off": good[:-1],
        "other list": unmask_of(s, {}, (0, 1, 2, 4)),
        "one part": divide(good, at_most=2)[1],
    }
    assert not s.server.take_unmask(LIAR, spoilt[kind])
    assert set(s.server.faults) == {LIAR}
    for i in HONEST:
        assert s.server.take_unmask(i, s.people[i].answer(s.survivors))
    s.server.finish()


def test_too_many_liars_at_the_end_abort_the_round() -> None:
    s = Scene().uploaded()
    for i in (3, LIAR):
        assert not s.server.take_unmask(i, b"rubbish")
    for i in (0, 1, 2):
        assert s.server.take_unmask(i, s.people[i].answer(s.survivors))
    with pytest.raises(RoundAborted):
        s.server.finish()
    assert set(s.server.faults) == {3, LIAR}


@pytest.mark.parametrize("drops", [False, True], ids=["in the sum", "dropped"])
def test_a_dealer_of_another_secret_is_named_and_the_round_aborts(drops: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Well-committed shares of something else: found out when the secret is rebuilt, before anything is unmasked."""
    s = Scene().invited()
    roster, honest_split = s.server.roster(), client_module.split
    for i, c in s.people.items():
        with monkeypatch.context() as patch:
            if i == LIAR:
                patch.setattr(client_module, "split", lambda _, t, points: honest_split(b"\7" * 32, t, points))
            assert s.server.take_shares(i, c.answer(roster))
    for i, request in s.server.cohort(b"m" * 32).items():
        if not (drops and i == LIAR):
            assert s.server.take_masked(i, s.upload(s.people[i], i, request))
    request = s.server.survivors()
    for i in s.server.uploaded:
        assert s.server.take_unmask(i, s.people[i].answer(request))
    masked = s.server._total.copy()
    with pytest.raises(RoundAborted):
        s.server.finish()
    assert set(s.server.faults) == {LIAR}
    np.testing.assert_array_equal(s.server._total, masked)


@pytest.mark.parametrize("reach", [1, 2])
def test_sealed_rubbish_counts_as_a_missing_share(reach: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One member without the share: the others suffice. Too many: the round aborts and the dealer is named."""
    s = Scene().invited()
    roster, honest = s.server.roster(), client_module.seal_share

    def rubbish(shared: bytes, context: bytes, dealer: int, receiver: int, *, plain: bytes, bound: bytes) -> bytes:
        other = plain if receiver >= reach else bytes(len(plain))
        return honest(shared, context, dealer, receiver, plain=other, bound=bound)

    for i, c in s.people.items():
        with monkeypatch.context() as patch:
            if i == LIAR:
                patch.setattr(client_module, "seal_share", rubbish)
            assert s.server.take_shares(i, c.answer(roster))
    for i, request in s.server.cohort(b"m" * 32).items():
        assert s.server.take_masked(i, s.upload(s.people[i], i, request))
    if reach == 1:
        finish(s, tuple(range(N)))
        assert s.server.faults == {}
    else:
        with pytest.raises(RoundAborted):
            finish(s, tuple(range(N)))
        assert set(s.server.faults) == {LIAR}


def test_a_signature_on_other_survivors_is_left_out() -> None:
    s = Scene(Consistency.STRICT).uploaded()
    other = m.agreed(identity(LIAR), s.plan, 1, LIAR, survivors_digest((0, 1, 2, 4)))
    assert not s.server.take_agreed(LIAR, other)
    assert set(s.server.faults) == {LIAR}


def test_a_well_formed_lie_inside_the_mask_is_not_seen_and_shifts_the_sum() -> None:
    """No range proof: the promise is privacy of the honest, not a bound on the liar. docs/secagg.md says so."""
    s = Scene().dealt()
    lie = np.full(s.plan.codec.coordinates, 10**6, dtype=np.uint32)
    for i, request in s.requests.items():
        ticket = s.people[i].open_cohort(request)
        own = share(s.plan, i) if i != LIAR else NoisedShare(lie, 1, s.plan.digest)
        assert s.server.take_masked(i, s.people[i].seal(ticket, own))
    request = s.server.survivors()
    for i in range(N):
        assert s.server.take_unmask(i, s.people[i].answer(request))
    total = s.server.finish()
    honest = plain_sum(s.plan, {i: share(s.plan, i) for i in HONEST}, HONEST)
    np.testing.assert_array_equal(total.integers - honest, np.full(len(honest), 10**6))
    assert s.server.faults == {}
    assert implausible(s.plan, total, largest_norm=3.0)  # three units a client: so gross a lie is seen in the sum


@pytest.mark.parametrize("sigma", [0, 50])
def test_an_honest_sum_is_plausible(sigma: int) -> None:
    p = plan(N, sigma=sigma)
    total = run_round(p).total
    assert not implausible(p, total, largest_norm=3.0)
    shifted = replace(total, integers=total.integers + 3000)
    assert implausible(p, shifted, largest_norm=3.0)


def test_a_late_vector_changes_nothing_and_blames_nobody() -> None:
    s = Scene().dealt()
    late = s.upload(s.people[LIAR], LIAR, s.requests[LIAR])
    for i in HONEST:
        assert s.server.take_masked(i, s.upload(s.people[i], i, s.requests[i]))
    request = s.server.survivors()
    assert not s.server.take_masked(LIAR, late)
    for i in HONEST:
        assert s.server.take_unmask(i, s.people[i].answer(request))
    total = s.server.finish()
    np.testing.assert_array_equal(total.integers, plain_sum(s.plan, {i: share(s.plan, i) for i in HONEST}, HONEST))
    assert s.server.faults == {}
    with pytest.raises(RoundAborted):
        s.server.finish()
