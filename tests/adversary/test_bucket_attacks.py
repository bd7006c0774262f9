"""A server that bends the rule of the buckets: an honest client answers the bucket that the rule gives, and no other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from privacy.secagg import errors as e
from privacy.secagg import messages as m
from privacy.secagg.buckets import Buckets
from privacy.secagg.keys import RoundKeys
from privacy.secagg.plan import Cohort, Consistency, survivors_digest
from privacy.secagg.server import SecAggServer
from privacy.secagg.wire import MAGIC, join
from tests.adversary.scene import VICTIM, Scene
from tests.privacy.secagg.federation import MODEL, client, identity, pinned, plan

PEOPLE, COUNT = 9, 3
EVERYBODY = list(range(PEOPLE))


class Split(Scene):
    """Nine clients in three buckets; ``server`` is that of the victim's, ``mates`` are in it, ``others`` are not."""

    def __init__(self, mode: Consistency = Consistency.FOLDED, unclosed: int = 2) -> None:
        one = plan(3, least=3, mode=mode, unclosed=unclosed)
        cohort = Cohort(3, 3, 3, 1, mode, unclosed)
        noise = replace(one.noise, honest_shares=cohort.honest_shares)
        self.plan = replace(one, cohort=cohort, noise=noise, buckets=Buckets(COUNT, 3.0))
        self.people = {i: client(self.plan, i, PEOPLE) for i in EVERYBODY}
        self.next_round()

    def next_round(self, number: int = 1, closure: bytes = b"") -> Split:
        self.number, self.closure = number, closure
        cut = self.plan.split(number, EVERYBODY)
        own = next(b for b in range(COUNT) if VICTIM in cut[b])
        self.mates = cut[own]
        self.others = [i for i in EVERYBODY if i not in self.mates]
        self.server = SecAggServer(
            plan=self.plan,
            identity=identity(-1),
            clients=dict(pinned(PEOPLE).clients),
            round_number=number,
            bucket=own,
        )
        return self

    def invited(self) -> Split:
        self.invitation = self.server.invitation(EVERYBODY)
        self.adverts = {i: c.answer(self.invitation) for i, c in self.people.items()}
        for i in self.mates:
            assert self.server.take_keys(i, self.adverts[i])
        return self

    def dealt(self) -> Split:
        self.invited()
        self.roster = self.server.roster()
        for i in self.mates:
            assert self.server.take_shares(i, self.people[i].answer(self.roster))
        self.requests = self.server.cohort(MODEL, self.closure)
        return self

    def uploaded(self) -> Split:
        self.dealt()
        for i in self.mates:
            assert self.server.take_masked(i, self.upload(self.people[i], i, self.requests[i]))
        self.survivors = self.server.survivors()
        return self

    def unmasked(self) -> Split:
        self.uploaded()
        for i in self.mates:
            assert self.server.take_unmask(i, self.people[i].answer(self.survivors))
        self.total = self.server.finish()
        return self

    def lying_roster(self, members: list[int]) -> bytes:
        return self.lie("roster", join(self.adverts[v] for v in sorted(members)), members=sorted(members))


Attack = Callable[[], tuple[Split, bytes]]
ATTACKS: list[tuple[str, type[Exception], Attack]] = []


def attack(refusal: type[Exception]) -> Callable[[Attack], Attack]:
    def add(function: Attack) -> Attack:
        ATTACKS.append((function.__name__, refusal, function))
        return function

    return add


@attack(e.CohortRefusal)
def a_bucket_below_the_least_cohort() -> tuple[Split, bytes]:
    s = Split()
    few = next(
        sorted({VICTIM, *chosen})
        for start in range(1, PEOPLE)
        for chosen in [EVERYBODY[start : start + 6]]
        if any(VICTIM in b and len(b) < 3 for b in s.plan.split(1, {VICTIM, *chosen}))
    )
    return s, s.lie("invite", invited=few)


@attack(e.CohortRefusal)
def a_cohort_that_makes_the_bucket_larger_than_the_noise_counts_on() -> tuple[Split, bytes]:
    s = Split()
    s.people[VICTIM] = client(s.plan, VICTIM, 12)
    return s, s.lie("invite", invited=list(range(12)))


@attack(e.CohortRefusal)
def everybody_in_one_bucket() -> tuple[Split, bytes]:
    s = Split().invited()
    return s, s.lying_roster(EVERYBODY)


@attack(e.CohortRefusal)
def a_bucket_full_of_colluders_of_the_servers_choice() -> tuple[Split, bytes]:
    s = Split().invited()
    return s, s.lying_roster([VICTIM, *s.others[:2]])


@attack(e.CohortRefusal)
def one_mate_exchanged_for_a_client_of_another_bucket() -> tuple[Split, bytes]:
    s = Split().invited()
    mate = next(i for i in s.mates if i != VICTIM)
    return s, s.lying_roster([VICTIM, mate, s.others[0]])


@attack(e.CohortRefusal)
def a_bucket_that_is_not_the_clients_own() -> tuple[Split, bytes]:
    s = Split().invited()
    return s, s.lying_roster(list(s.plan.split(1, EVERYBODY)[(s.server._bucket + 1) % COUNT]))


@attack(e.CohortRefusal)
def a_mate_that_was_shown_another_cohort_and_hence_another_cut() -> tuple[Split, bytes]:
    s = Split().invited()
    mate, keys = next(i for i in s.mates if i != VICTIM), RoundKeys()
    public = m.Advert(mate, keys.channel_public, keys.mask_public)
    s.adverts[mate] = m.advert(identity(mate), s.plan, 1, b"x" * 32, public)
    return s, s.lying_roster(list(s.mates))


@attack(e.PlanRefusal)
def one_sum_instead_of_buckets() -> tuple[Split, bytes]:
    s = Split()
    return s, s.lie("invite", invited=EVERYBODY, plan=replace(s.plan, buckets=Buckets()))


@attack(e.PlanRefusal)
def more_buckets_than_agreed() -> tuple[Split, bytes]:
    s = Split()
    return s, s.lie("invite", invited=EVERYBODY, plan=replace(s.plan, buckets=Buckets(4, 3.0)))


@attack(e.ReplayRefusal)
def a_second_cut_under_the_same_number() -> tuple[Split, bytes]:
    s = Split().invited()
    return s, s.lie("invite", invited=EVERYBODY[:-1])


@attack(e.CohortRefusal)
def a_client_of_another_bucket_in_the_cohort() -> tuple[Split, bytes]:
    s = Split().dealt()
    members = sorted([VICTIM, *s.others[:2]])
    header = s.lie("cohort", members=members, model=MODEL)
    return s, join((header, bytes(m.ENTRY * 2)))


@attack(e.SurvivorsRefusal)
def survivors_of_all_buckets() -> tuple[Split, bytes]:
    s = Split().uploaded()
    return s, s.lie("survivors", survivors=EVERYBODY)


def foreign(s: Split, clients: list[int]) -> bytes:
    """Signatures of other buckets' members on their own survivors."""
    listed = survivors_digest(clients)
    return join(m.agreed(identity(i), s.plan, s.number, i, listed) for i in clients)


@attack(e.ConsistencyRefusal)
def a_closure_signed_by_another_bucket_alone() -> tuple[Split, bytes]:
    s = Split(unclosed=0).unmasked()
    closure = foreign(s, s.others[:3])
    s.next_round(2, closure).dealt()
    return s, s.requests[VICTIM]


@attack(e.ConsistencyRefusal)
def too_few_mates_in_the_closure_among_many_others() -> tuple[Split, bytes]:
    s = Split(unclosed=0).unmasked()
    own = [m.agreed(identity(i), s.plan, 1, i, survivors_digest(s.mates)) for i in s.mates[:2]]
    s.next_round(2, foreign(s, s.others[:3]) + join(own)).dealt()
    return s, s.requests[VICTIM]


@attack(e.ConsistencyRefusal)
def an_agreement_signed_by_another_bucket() -> tuple[Split, bytes]:
    s = Split(Consistency.STRICT).uploaded()
    for i in s.mates:
        assert s.server.take_agreed(i, s.people[i].answer(s.survivors))
    return s, s.lie("agreement", foreign(s, s.others[:3]))


@pytest.mark.parametrize(("refusal", "lie"), [pytest.param(r, f, id=n) for n, r, f in ATTACKS])
def test_the_client_refuses_and_its_state_stays(refusal: type[Exception], lie: Attack) -> None:
    scene, request = lie()
    before = scene.victim.to_bytes()
    ask: Callable[[bytes], object] = scene.victim.answer if request[:4] == MAGIC else scene.victim.open_cohort
    with pytest.raises(refusal) as refused:
        ask(request)
    assert type(refused.value) is refusal
    assert scene.victim.to_bytes() == before


@pytest.mark.parametrize("mode", list(Consistency))
def test_the_same_doors_open_for_what_the_rule_gives(mode: Consistency) -> None:
    """The attacks are refused for what they change; closures of all buckets together are the honest case."""
    s = Split(mode, unclosed=0)
    s.victim.answer(s.lie("invite", invited=EVERYBODY))
    s = Split(mode, unclosed=0).invited()
    s.victim.answer(s.lying_roster(list(s.mates)))
    if mode is Consistency.FOLDED:
        s = Split(mode, unclosed=0).unmasked()
        closure = foreign(s, s.others[:3]) + s.server.closure
        s.next_round(2, closure).uploaded()
        s.victim.answer(s.survivors)
