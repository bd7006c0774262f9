"""A server that lies gets a coded refusal, the client's state stays as it was, and nothing is unmasked."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from privacy.errors import ParameterError
from privacy.secagg import errors as e
from privacy.secagg import messages as m
from privacy.secagg.client import SecAggClient
from privacy.secagg.keys import Pinned, self_pad_key
from privacy.secagg.masks import add_pads
from privacy.secagg.packing import unpack
from privacy.secagg.plan import Cohort, Consistency, view_digest
from privacy.secagg.shamir import Interpolation
from privacy.secagg.wire import divide, sign
from tests.adversary.scene import VICTIM, N, Scene
from tests.adversary.secagg_attacks import ATTACKS, EVERYBODY, Attack, cohort, roster, signatures
from tests.privacy.secagg.federation import client, identity, plan, share


def ask(victim: SecAggClient, request: bytes) -> None:
    """As a node does: a cohort is opened, all else is answered."""
    if request[:4] == b"FPSA":
        victim.answer(request)
    else:
        victim.open_cohort(request)


@pytest.mark.parametrize(("refusal", "lie"), [pytest.param(r, f, id=n) for n, r, f in ATTACKS])
def test_the_client_refuses_and_its_state_stays(refusal: type[Exception], lie: Attack) -> None:
    scene, request = lie()
    before = scene.victim.to_bytes()
    with pytest.raises(refusal) as refused:
        ask(scene.victim, request)
    assert type(refused.value) is refusal
    assert scene.victim.to_bytes() == before


def test_there_are_many_attacks_with_different_names() -> None:
    assert len({name for name, _, _ in ATTACKS}) == len(ATTACKS) >= 40


def test_no_two_lists_of_survivors_are_answered_by_one_client() -> None:
    """Known defect: who is a survivor for some answers and dropped for others loses seed and mask key, hence its vector."""
    s = Scene().uploaded()
    first, second = (s.lie("survivors", survivors=[i for i in EVERYBODY if i != gone]) for gone in (N, N - 2))
    revealed = s.victim.answer(first)
    assert s.victim.answer(first) == revealed
    with pytest.raises(e.ReplayRefusal):
        s.victim.answer(second)


def test_honest_requests_of_every_stage_pass_the_same_door() -> None:
    """The attacks above are refused for what they change: unchanged, the same construction is answered."""
    s = Scene()
    ask(s.victim, s.lie("invite", invited=EVERYBODY))
    s = Scene().invited()
    ask(s.victim, roster(s, s.adverts))
    s = Scene().dealt()
    ask(s.victim, cohort(s, EVERYBODY))
    s = Scene().uploaded()
    ask(s.victim, s.lie("survivors", survivors=EVERYBODY))
    s = Scene(Consistency.STRICT).agreed()
    ask(s.victim, s.lie("agreement", signatures(s, EVERYBODY[:4], EVERYBODY)))


def test_a_second_vector_for_one_ticket_is_refused() -> None:
    s = Scene().dealt()
    ticket = s.victim.open_cohort(s.requests[VICTIM])
    s.victim.seal(ticket, share(s.plan, VICTIM))
    with pytest.raises(e.ReplayRefusal):
        s.victim.seal(ticket, share(s.plan, VICTIM))


def test_a_repeated_request_gets_identical_bytes() -> None:
    """Also where the answer holds fresh randomness or a vector; so a retry is no second event (guarantees.md rule 15)."""
    s = Scene().invited()
    assert s.victim.answer(s.invitation) == s.adverts[VICTIM]
    s = Scene().dealt()
    assert s.victim.answer(s.roster) == s.victim.answer(s.roster)
    sealed = s.upload(s.victim, VICTIM, s.requests[VICTIM])
    assert s.victim.kept(s.requests[VICTIM]) == sealed


def rebuilt_total(s: Scene, requests: dict[int, bytes]) -> tuple[np.ndarray, np.ndarray]:
    """What the adversary gets if it rebuilds all seeds and takes every self pad away under its owner's view; and the sum."""
    total, plain, views = np.zeros(200, dtype=np.uint32), np.zeros(200, dtype=np.uint32), {}
    for i, c in s.people.items():
        ticket, own = c.open_cohort(requests[i]), share(s.plan, i)
        views[i] = view_digest(c._state.rounds[1].roster_digest, ticket.members, ticket.model)
        message, _ = m.opened(c.seal(ticket, own), identity(i).public, "masked", s.plan, 1)
        total += unpack(bytes(message.blob), 200, 32)
        plain += own.value
    revealed = {}
    for i, c in s.people.items():
        head = m.head(s.plan, 1, survivors=list(views), previous=c._state.rounds[1].header)
        _, unmask = divide(c.answer(sign(identity(-1), "survivors", head)), at_most=2)
        message, _ = m.opened(unmask, identity(i).public, "unmask", s.plan, 1)
        revealed[i] = m.revealed(message.blob, EVERYBODY)
    context, some = s.plan.context(1), Interpolation([v + 1 for v in EVERYBODY[:4]])
    seeds = {v: some.secret({u + 1: revealed[u][v] for u in EVERYBODY[:4]}) for v in EVERYBODY}
    add_pads(total, [], [self_pad_key(seed or b"", context, views[v], v) for v, seed in seeds.items()])
    return total, plain


def test_with_one_view_for_all_everything_cancels_and_with_a_split_one_nothing() -> None:
    """A client that is shown another model draws other pads, so that even the sum of all is not to be had."""
    honest = Scene(d=200).dealt()
    total, plain = rebuilt_total(honest, honest.requests)
    np.testing.assert_array_equal(total, plain)
    split = Scene(d=200).dealt()
    total, plain = rebuilt_total(split, {**split.requests, VICTIM: cohort(split, EVERYBODY, b"z" * 32)})
    assert np.mean(total == plain) < 0.05


@pytest.mark.parametrize(
    ("largest", "least", "threshold", "colluders"),
    [(10, 8, 5, 0), (9, 7, 6, 0), (10, 8, 7, 4), (10, 6, 7, 0), (10, 11, 8, 0), (3, 1, 1, 0), (10, 8, 8, 6)],
)
def test_a_plan_with_a_weak_threshold_cannot_be_made(largest: int, least: int, threshold: int, colluders: int) -> None:
    with pytest.raises(ParameterError):
        Cohort(largest, least, threshold, colluders)


def test_a_plan_below_the_clients_own_least_cohort_is_refused() -> None:
    with pytest.raises(e.CohortRefusal):
        client(plan(N), VICTIM, least_cohort=5)
    client(plan(N), VICTIM, least_cohort=4)


def test_a_client_does_not_sign_under_an_identity_that_is_not_pinned() -> None:
    people = Pinned(identity(-1).public, {VICTIM: identity(1).public})
    with pytest.raises(e.CohortRefusal):
        SecAggClient(client=VICTIM, identity=identity(VICTIM), pinned=people, plan=plan(N))


def test_a_message_that_is_not_canonical_is_refused() -> None:
    s = Scene()
    data = sign(identity(-1), "invite", m.head(s.plan, 1, invited=EVERYBODY))
    head = data[9:-64].replace(b'":', b'": ')
    body = data[:5] + len(head).to_bytes(4, "little") + head
    with pytest.raises(e.MalformedMessage):
        s.victim.answer(body + identity(-1).sign(hashlib.sha256(body).digest()))
