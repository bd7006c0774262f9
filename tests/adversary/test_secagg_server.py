"""A server that lies gets a coded refusal, the client's state stays as it was, and nothing is unmasked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from privacy.errors import ParameterError
from privacy.secagg import errors as e
from privacy.secagg import messages as m
from privacy.secagg.client import SecAggClient
from privacy.secagg.keys import Identity, Pinned, RoundKeys, self_pad_key
from privacy.secagg.masks import add_pads
from privacy.secagg.packing import unpack
from privacy.secagg.plan import Cohort, Consistency, survivors_digest, view_digest
from privacy.secagg.shamir import Interpolation
from privacy.secagg.wire import divide, join, sign
from tests.adversary.scene import VICTIM, N, Scene
from tests.privacy.secagg.federation import MODEL, client, identity, plan, share

EVERYBODY = list(range(N))
Attack = Callable[[], tuple[Scene, bytes]]
ATTACKS: list[tuple[str, type[Exception], Attack]] = []


def attack(refusal: type[Exception]) -> Callable[[Attack], Attack]:
    def add(function: Attack) -> Attack:
        ATTACKS.append((function.__name__, refusal, function))
        return function

    return add


# ---- bytes


@attack(e.ForgedMessage)
def an_invitation_signed_by_a_client() -> tuple[Scene, bytes]:
    s = Scene()
    return s, s.lie("invite", invited=EVERYBODY, signer=identity(1))


@attack(e.ForgedMessage)
def an_invitation_with_one_bit_changed() -> tuple[Scene, bytes]:
    s = Scene()
    data = bytearray(s.lie("invite", invited=EVERYBODY))
    data[40] ^= 1
    return s, bytes(data)


@attack(e.MalformedMessage)
def a_truncated_invitation() -> tuple[Scene, bytes]:
    s = Scene()
    return s, s.lie("invite", invited=EVERYBODY)[:-1]


@attack(e.MalformedMessage)
def a_stump_of_a_message() -> tuple[Scene, bytes]:
    s = Scene()
    return s, s.lie("invite", invited=EVERYBODY)[:30]


@attack(e.MalformedMessage)
def an_invitation_with_a_field_of_its_own() -> tuple[Scene, bytes]:
    s = Scene()
    return s, s.lie("invite", invited=EVERYBODY, no_noise=True)


@attack(e.MalformedMessage)
def a_cohort_whose_shares_are_cut_off() -> tuple[Scene, bytes]:
    s = Scene().dealt()
    header, shares = divide(s.requests[VICTIM], at_most=2)
    return s, join((header, shares[:-1]))


# ---- run, round, plan


@attack(e.ReplayRefusal)
def an_invitation_of_another_run() -> tuple[Scene, bytes]:
    s = Scene()
    return s, s.lie("invite", invited=EVERYBODY, run="another")


@attack(e.ReplayRefusal)
def an_old_round_again() -> tuple[Scene, bytes]:
    s = Scene().unmasked().next_round(2).invited()
    return s, s.lie("invite", invited=EVERYBODY, number=1)


@attack(e.ReplayRefusal)
def the_same_round_under_another_invitation() -> tuple[Scene, bytes]:
    s = Scene().invited()
    return s, s.lie("invite", invited=EVERYBODY[:-1])


@attack(e.ReplayRefusal)
def survivors_of_the_last_round_in_this_one() -> tuple[Scene, bytes]:
    s = Scene().unmasked()
    old = s.survivors
    s.next_round(2, s.server.closure).uploaded()
    return s, old


@attack(e.PlanRefusal)
def another_clipping_norm() -> tuple[Scene, bytes]:
    s = Scene()
    return s, s.lie("invite", invited=EVERYBODY, plan=plan(N, max_grad_norm=1000.0))


@attack(e.PlanRefusal)
def another_codec() -> tuple[Scene, bytes]:
    s = Scene()
    return s, s.lie("invite", invited=EVERYBODY, plan=plan(N, steps=65.0))


@attack(e.PlanRefusal)
def less_noise() -> tuple[Scene, bytes]:
    s = Scene(sigma=50)
    quiet = replace(s.plan, noise=replace(s.plan.noise, sigma=Fraction(3)))
    return s, s.lie("invite", invited=EVERYBODY, plan=quiet)


@attack(e.PlanRefusal)
def a_lower_threshold() -> tuple[Scene, bytes]:
    s = Scene(least=5)
    return s, s.lie("invite", invited=EVERYBODY, plan=replace(s.plan, cohort=Cohort(5, 5, 4)))


# ---- cohorts and keys


@attack(e.CohortRefusal)
def a_small_cohort() -> tuple[Scene, bytes]:
    s = Scene()
    return s, s.lie("invite", invited=EVERYBODY[:3])


@attack(e.CohortRefusal)
def a_cohort_of_invented_clients() -> tuple[Scene, bytes]:
    s = Scene()
    return s, s.lie("invite", invited=[0, 1, 2, 3, 99])


@attack(e.CohortRefusal)
def a_cohort_without_the_one_that_is_asked() -> tuple[Scene, bytes]:
    s = Scene()
    return s, s.lie("invite", invited=[1, 2, 3, 4])


def roster(s: Scene, adverts: dict[int, bytes]) -> bytes:
    return s.lie("roster", join(adverts[v] for v in sorted(adverts)), members=sorted(adverts))


def own_advert(s: Scene, who: int, keys: RoundKeys, signer: Identity, answers: bytes | None = None) -> bytes:
    public = m.Advert(who, keys.channel_public, keys.mask_public)
    header = answers or s.victim._state.rounds[1].header
    return m.advert(signer, s.plan, 1, header, public)


@attack(e.ForgedMessage)
def keys_swapped_for_the_servers_own() -> tuple[Scene, bytes]:
    s = Scene().invited()
    return s, roster(s, {**s.adverts, 1: own_advert(s, 1, RoundKeys(), identity(-1))})


@attack(e.ForgedMessage)
def one_clients_keys_under_anothers_name() -> tuple[Scene, bytes]:
    s = Scene().invited()
    return s, roster(s, {**s.adverts, 1: s.adverts[2]})


@attack(e.CohortRefusal)
def the_victims_own_keys_replaced() -> tuple[Scene, bytes]:
    """Even with the victim's signature, for example out of a second copy of its identity."""
    s = Scene().invited()
    return s, roster(s, {**s.adverts, VICTIM: own_advert(s, VICTIM, RoundKeys(), identity(VICTIM))})


@attack(e.CohortRefusal)
def two_colluders_with_one_key() -> tuple[Scene, bytes]:
    s, keys = Scene().invited(), RoundKeys()
    twins = {v: own_advert(s, v, keys, identity(v)) for v in (3, 4)}
    return s, roster(s, {**s.adverts, **twins})


@attack(e.CohortRefusal)
def a_colluder_whose_key_makes_every_secret_zero() -> tuple[Scene, bytes]:
    s, keys = Scene().invited(), RoundKeys()
    keys.mask_public = bytes(32)
    return s, roster(s, {**s.adverts, 4: own_advert(s, 4, keys, identity(4))})


@attack(e.CohortRefusal)
def keys_that_answer_another_invitation() -> tuple[Scene, bytes]:
    """A split view: client 4 was invited with others."""
    s = Scene().invited()
    return s, roster(s, {**s.adverts, 4: own_advert(s, 4, RoundKeys(), identity(4), answers=b"x" * 32)})


@attack(e.ReplayRefusal)
def keys_of_an_older_round() -> tuple[Scene, bytes]:
    s = Scene().unmasked()
    old = s.adverts[4]
    s.next_round(2, s.server.closure).invited()
    return s, roster(s, {**s.adverts, 4: old})


@attack(e.CohortRefusal)
def a_roster_below_the_least() -> tuple[Scene, bytes]:
    s = Scene().invited()
    return s, roster(s, {v: s.adverts[v] for v in (0, 1, 2)})


@attack(e.ReplayRefusal)
def a_second_roster() -> tuple[Scene, bytes]:
    s = Scene().dealt()
    return s, roster(s, {v: s.adverts[v] for v in (0, 1, 2, 3)})


def cohort(s: Scene, members: list[int], model: bytes = MODEL, closure: bytes = b"") -> bytes:
    header = s.lie("cohort", closure, members=members, model=model)
    entries = b"".join(s.server._dealt[v][VICTIM] for v in members if v in s.server._dealt and v != VICTIM)
    return join((header, entries))


@attack(e.CohortRefusal)
def a_cohort_below_the_least() -> tuple[Scene, bytes]:
    s = Scene().dealt()
    return s, cohort(s, [0, 1, 2])


@attack(e.CohortRefusal)
def a_cohort_with_a_stranger_to_the_roster() -> tuple[Scene, bytes]:
    s = Scene().dealt()
    return s, cohort(s, [0, 1, 2, 3, 9])


@attack(e.CohortRefusal)
def a_cohort_without_the_victim() -> tuple[Scene, bytes]:
    s = Scene().dealt()
    return s, cohort(s, [1, 2, 3, 4])


@attack(e.ReplayRefusal)
def a_second_model_for_one_round() -> tuple[Scene, bytes]:
    s = Scene().uploaded()
    return s, cohort(s, EVERYBODY, b"z" * 32)


# ---- survivors


@attack(e.ReplayRefusal)
def unmasking_before_there_is_a_vector() -> tuple[Scene, bytes]:
    s = Scene().dealt()
    return s, s.lie("survivors", survivors=EVERYBODY)


@attack(e.ReplayRefusal)
def a_double_unmask_with_a_survivor_as_dropped() -> tuple[Scene, bytes]:
    s = Scene().unmasked()
    return s, s.lie("survivors", survivors=EVERYBODY[:-1])


@attack(e.MalformedMessage)
def an_overlapping_list_of_the_dropped() -> tuple[Scene, bytes]:
    s = Scene().uploaded()
    return s, s.lie("survivors", survivors=EVERYBODY, dropped=[3, 4])


@attack(e.MalformedMessage)
def a_survivor_twice() -> tuple[Scene, bytes]:
    s = Scene().uploaded()
    return s, s.lie("survivors", survivors=[0, 1, 2, 3, 3, 4])


@attack(e.SurvivorsRefusal)
def survivors_without_the_victim() -> tuple[Scene, bytes]:
    s = Scene().uploaded()
    return s, s.lie("survivors", survivors=[1, 2, 3, 4])


@attack(e.SurvivorsRefusal)
def survivors_below_the_least() -> tuple[Scene, bytes]:
    s = Scene().uploaded()
    return s, s.lie("survivors", survivors=[0, 1, 2])


@attack(e.SurvivorsRefusal)
def survivors_from_outside_the_cohort() -> tuple[Scene, bytes]:
    s = Scene().uploaded()
    return s, s.lie("survivors", survivors=[0, 1, 2, 3, 4, 7])


@attack(e.ReplayRefusal)
def survivors_that_follow_another_cohort() -> tuple[Scene, bytes]:
    s = Scene().uploaded()
    return s, s.lie("survivors", survivors=EVERYBODY, follow=False, previous=b"x" * 32)


# ---- agreement and closure


def signatures(s: Scene, signers: list[int], survivors: list[int]) -> bytes:
    return join(m.agreed(identity(v), s.plan, s.number, v, survivors_digest(survivors)) for v in signers)


@attack(e.ReplayRefusal)
def a_second_list_of_survivors_to_sign() -> tuple[Scene, bytes]:
    s = Scene(Consistency.STRICT).agreed()
    return s, s.lie("survivors", survivors=EVERYBODY[:-1])


@attack(e.ReplayRefusal)
def an_agreement_before_the_victim_signed() -> tuple[Scene, bytes]:
    s = Scene(Consistency.STRICT).uploaded()
    return s, s.lie("agreement", signatures(s, EVERYBODY, EVERYBODY))


@attack(e.ConsistencyRefusal)
def an_agreement_of_too_few() -> tuple[Scene, bytes]:
    s = Scene(Consistency.STRICT).agreed()
    return s, s.lie("agreement", signatures(s, [0, 1, 2], EVERYBODY))


@attack(e.ConsistencyRefusal)
def an_agreement_filled_up_with_one_signature_twice() -> tuple[Scene, bytes]:
    s = Scene(Consistency.STRICT).agreed()
    return s, s.lie("agreement", signatures(s, [0, 1, 2, 2], EVERYBODY))


@attack(e.ConsistencyRefusal)
def an_agreement_on_another_list() -> tuple[Scene, bytes]:
    s = Scene(Consistency.STRICT).agreed()
    return s, s.lie("agreement", signatures(s, [1, 2, 3, 4], [0, 1, 2, 3]))


@attack(e.ForgedMessage)
def an_agreement_that_the_server_signed_itself() -> tuple[Scene, bytes]:
    s = Scene(Consistency.STRICT).agreed()
    forged = [m.agreed(identity(-1), s.plan, 1, v, survivors_digest(EVERYBODY)) for v in EVERYBODY]
    return s, s.lie("agreement", join(forged))


@attack(e.ConsistencyRefusal)
def a_closure_of_another_list() -> tuple[Scene, bytes]:
    s = Scene().unmasked()
    other = signatures(s, [1, 2, 3, 4], [0, 1, 2, 3])
    s.next_round(2).dealt()
    return s, cohort(s, EVERYBODY, closure=other)


@attack(e.ConsistencyRefusal)
def rounds_that_never_close() -> tuple[Scene, bytes]:
    s = Scene(unclosed=1).unmasked()
    s.next_round(2).unmasked()  # no closure of round 1: one is allowed
    s.next_round(3).dealt()
    return s, s.requests[VICTIM]


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
