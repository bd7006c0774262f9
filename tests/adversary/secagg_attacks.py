"""Named attacks of a server on one honest client: each returns the scene and the bytes that the client is asked with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

from privacy.secagg import errors as e
from privacy.secagg import messages as m
from privacy.secagg.keys import Identity, RoundKeys
from privacy.secagg.plan import Cohort, Consistency, survivors_digest
from privacy.secagg.wire import divide, join
from tests.adversary.scene import VICTIM, N, Scene
from tests.privacy.secagg.federation import MODEL, identity, plan

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
