"""What a client keeps, forgets and repeats; and what the server sees of it."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from scipy import stats

from privacy.errors import MechanismMisuseError
from privacy.secagg import messages as m
from privacy.secagg.client import SecAggClient
from privacy.secagg.errors import MalformedMessage, ReplayRefusal
from privacy.secagg.packing import unpack
from privacy.secagg.plan import Consistency
from privacy.secagg.state import MemberState, Stage
from tests.adversary.scene import VICTIM, N, Scene
from tests.privacy.secagg.federation import MODES, client, identity, plan, run_round, share


def again(c: SecAggClient, p: Any) -> SecAggClient:
    """The client after a crash: from its journal."""
    return client(p, VICTIM, journal=c.to_bytes())


def secrets_of(c: SecAggClient, number: int = 1) -> list[bytes]:
    r = c._state.rounds[number]
    own = [*(r.keys.private_bytes() if r.keys else ()), *([r.seed] if r.seed else ()), *(r.own_shares or ())]
    return own + [s for pair in r.received.values() for s in pair]


@pytest.mark.parametrize("mode", MODES)
def test_a_round_survives_a_crash_at_every_stage(mode: Consistency) -> None:
    """All clients are restored from their journals before every request; the sum is what it would have been."""
    p = plan(4, mode=mode, least=3)

    class Crashing:
        def __init__(self, number: int) -> None:
            self.number, self.journal = number, client(p, number).to_bytes()

        def __getattr__(self, name: str) -> Any:
            def call(*arguments: Any) -> Any:
                c = client(p, self.number, journal=self.journal)
                result = getattr(c, name)(*arguments)
                self.journal = c.to_bytes()
                return result

            return call

    outcome = run_round(p, clients={i: Crashing(i) for i in range(4)})  # type: ignore[misc]
    plain = sum(int(x.value[0]) for x in outcome.shares.values()) % 2**32
    assert int(outcome.total.integers[0]) % 2**32 == plain


@pytest.mark.parametrize("stage", ["invitation", "roster", "cohort", "survivors"])
def test_a_restored_client_repeats_its_bytes_and_nothing_else(stage: str) -> None:
    s = Scene().uploaded()
    if stage == "survivors":
        s.people[VICTIM].answer(s.survivors)
    restored = again(s.victim, s.plan)
    request = s.requests[VICTIM] if stage == "cohort" else getattr(s, stage)
    assert restored.kept(request) == s.victim.kept(request)
    assert restored.kept(request)
    with pytest.raises(ReplayRefusal):
        restored.answer(s.lie("invite", invited=list(range(N - 1))))


def test_secrets_are_gone_when_they_are_no_longer_needed() -> None:
    s = Scene().dealt()
    own = [*s.victim._state.rounds[1].keys.private_bytes(), s.victim._state.rounds[1].seed]  # type: ignore[union-attr,list-item]
    journal = s.victim.to_bytes()
    assert all(secret.hex().encode() in journal for secret in own if secret)
    s.server.take_masked(VICTIM, s.upload(s.victim, VICTIM, s.requests[VICTIM]))
    assert secrets_of(s.victim)
    journal = s.victim.to_bytes()
    assert not any(secret.hex().encode() in journal or secret in journal for secret in own if secret)
    others = secrets_of(s.victim)
    for i in range(1, N):
        s.server.take_masked(i, s.upload(s.people[i], i, s.requests[i]))
    s.victim.answer(s.server.survivors())
    assert secrets_of(s.victim) == []
    journal = s.victim.to_bytes()
    assert not any(secret.hex().encode() in journal for secret in others)
    assert s.victim._state.rounds[1].stage is Stage.DONE


def test_an_abandoned_round_is_erased_and_cannot_be_gone_on_with() -> None:
    s = Scene().dealt()
    victim, request = s.victim, s.requests[VICTIM]
    ticket = victim.open_cohort(request)
    first = victim._state.rounds[1]
    s.next_round(2).invited()
    s.next_round(3).invited()
    assert first.keys is None
    assert not first.received
    with pytest.raises(ReplayRefusal):
        victim.open_cohort(request)
    with pytest.raises(ReplayRefusal):
        victim.seal(ticket, share(s.plan, VICTIM))


def test_the_journal_keeps_one_open_round_beside_the_newest() -> None:
    s = Scene()
    for number in range(1, 6):
        s.next_round(number).invited()
        assert len(s.victim._state.rounds) <= 2
    assert s.victim._state.highest == 5


@pytest.mark.parametrize("data", [b"x", b"", b"\0" * 30])
def test_a_broken_journal_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        MemberState.from_bytes(data)


def test_a_share_of_another_round_or_plan_is_not_masked_and_none_is_pickled() -> None:
    s = Scene().dealt()
    ticket = s.victim.open_cohort(s.requests[VICTIM])
    for wrong in (share(s.plan, VICTIM, 2), share(plan(N, run="x"), VICTIM)):
        with pytest.raises(MechanismMisuseError):
            s.victim.seal(ticket, wrong)
    with pytest.raises(MechanismMisuseError):
        pickle.dumps(share(s.plan, VICTIM))


def test_another_clients_ticket_is_refused() -> None:
    s = Scene().dealt()
    with pytest.raises(ReplayRefusal):
        s.victim.seal(s.people[1].open_cohort(s.requests[1]), share(s.plan, VICTIM))


def test_every_reply_has_one_size_whatever_the_data() -> None:
    sizes = set()
    for rows in (np.zeros((0, 6)), np.ones((1, 6)), np.full((2, 6), np.nan), np.full((50, 6), 1e300)):
        s = Scene().dealt()
        ticket = s.victim.open_cohort(s.requests[VICTIM])
        sizes.add(len(s.victim.seal(ticket, share(s.plan, VICTIM, rows=rows))))
    assert len(sizes) == 1


def masked_vectors(bits: int, rounds: int, d: int) -> np.ndarray:
    """What a server sees of one client that sends the same vector (zero, no noise) in many rounds, shape [rounds, d]."""
    p, rows = plan(3, d, bits=bits), np.zeros((0, d))
    people = {i: client(p, i) for i in range(3)}
    seen = []
    for number in range(1, rounds + 1):
        s = Scene.__new__(Scene)
        s.plan, s.people = p, people
        s.next_round(number)
        s.invitation = s.server.invitation(range(3))
        for i, c in people.items():
            s.server.take_keys(i, c.answer(s.invitation))
        roster = s.server.roster()
        for i, c in people.items():
            s.server.take_shares(i, c.answer(roster))
        request = s.server.cohort(b"m" * 32)[VICTIM]
        sealed = people[VICTIM].seal(people[VICTIM].open_cohort(request), share(p, VICTIM, number, rows))
        message, _ = m.opened(sealed, identity(VICTIM).public, "masked", p, number)
        seen.append(unpack(bytes(message.blob), d, bits))
    return np.array(seen)


@pytest.mark.statistical
@pytest.mark.parametrize("bits", [16, 20, 32])
def test_a_masked_vector_is_uniform_and_unrelated_to_the_last_one(bits: int) -> None:
    """Chi-square over 256 cells of the top and of the bottom byte, and correlation of rounds; 1e-6 each (3 x 3 tests)."""
    seen = masked_vectors(bits, 12, 4000)
    for byte in (seen & 0xFF, seen >> (bits - 8)):
        counts = np.bincount(byte.ravel().astype(np.int64), minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-6
    flat = seen.astype(np.float64)
    pairs = stats.pearsonr(flat[:-1].ravel(), flat[1:].ravel()).pvalue
    assert pairs > 1e-6
    assert len(np.unique(seen[:, 0])) > 6
    plain = np.bincount(np.zeros(48_000, dtype=np.int64), minlength=256)
    assert stats.chisquare(plain).pvalue < 1e-6  # an unmasked zero vector would be seen
