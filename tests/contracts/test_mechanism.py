"""Every mechanism: booked as it is, in its own book, once, and never more than the bound."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from privacy.accounting import epsilon
from privacy.clipping import ClippedSum, clip_and_sum
from privacy.errors import MechanismMisuseError
from privacy.events import event_from_json
from privacy.ledger import Ledger, Reservation
from privacy.mechanism import GaussianMechanism, Release
from privacy.rng import SeededNonPrivateRandom
from privacy.sampling import FixedOrderSampling, PoissonSampling, Sampling
from privacy.sealed import Entrusted, LocallyPrivate
from privacy.units import Adversary, Trust
from tests.privacy.books import header

BOUND, DIMENSION, RNG = 2.0, 5, SeededNonPrivateRandom(3)


class MechanismContract(ABC):
    """What a round does under one trust and sampling: a client's message, then the server's release."""

    trust: Trust

    @abstractmethod
    def sampling(self) -> Sampling:
        """How units are drawn."""

    @abstractmethod
    def message(self, total: ClippedSum, reservation: Reservation) -> Entrusted | LocallyPrivate:
        """What a client sends, under its node's reservation."""

    @abstractmethod
    def release(self, message: Entrusted | LocallyPrivate, reservation: Reservation) -> Release:
        """What the server lets go, under the federation's reservation."""

    @pytest.fixture(autouse=True)
    def _books(self, tmp_path: Path) -> Iterator[None]:
        self.mechanism = GaussianMechanism(self.trust, self.sampling(), BOUND, 1.5)
        self.federation = Ledger(tmp_path / "federation.jsonl", header(private_rng=False, trust=self.trust))
        self.node = Ledger(tmp_path / "node.jsonl", header(scope="node:a", private_rng=False, trust=self.trust))
        yield
        self.federation.close()
        self.node.close()

    def total(self, bound: float = BOUND) -> ClippedSum:
        return clip_and_sum(np.full((3, DIMENSION), 1e9), np.zeros(3, dtype=np.int64), 1, bound)[0]

    def booked(self) -> tuple[Reservation, Reservation]:
        node = self.node.reserve(1, self.mechanism.node_events(1))
        return node, self.federation.reserve(1, self.mechanism.events(1))

    def test_every_adversary_has_an_event_that_survives_the_book(self) -> None:
        for events in (self.mechanism.events(1), self.mechanism.node_events(1)):
            assert set(events) == set(Adversary)
            assert all(event_from_json(event.to_json()) == event for event in events.values())

    def test_what_plan_composes_is_what_rounds_write(self) -> None:
        for node, book in ((False, self.mechanism.events), (True, self.mechanism.node_events)):
            composed = self.mechanism.composition(1, 4, node=node)
            for adversary in Adversary:
                one_by_one = [book(number)[adversary] for number in range(1, 5)]
                assert composed[adversary].total() == 4
                assert set(composed[adversary]) == set(one_by_one)
                assert epsilon(composed[adversary], 1e-5) > 0 or self.trust is Trust.CENTRAL

    def test_a_round_releases_once(self) -> None:
        node, federation = self.booked()
        sent = self.message(self.total(), node)
        released = self.release(sent, federation)
        assert released.value.shape == (DIMENSION,)
        assert np.isfinite(released.value).all()
        with pytest.raises(MechanismMisuseError):
            self.message(self.total(), node)
        with pytest.raises(MechanismMisuseError):
            self.release(sent, federation)

    def test_each_party_needs_its_own_book(self) -> None:
        node, federation = self.booked()
        with pytest.raises(MechanismMisuseError):
            self.message(self.total(), federation)
        sent = self.message(self.total(), node)
        with pytest.raises(MechanismMisuseError):
            self.release(sent, node)

    def test_a_reservation_made_by_hand_is_no_leave(self) -> None:
        node, _ = self.booked()
        forged = Reservation(0, 1, self.mechanism.events(1))
        with pytest.raises(MechanismMisuseError):
            self.message(self.total(), Reservation(0, 1, self.mechanism.node_events(1), "node:a"))
        sent = self.message(self.total(), node)
        with pytest.raises(MechanismMisuseError):
            self.release(sent, forged)

    def test_another_bound_is_refused(self) -> None:
        node, _ = self.booked()
        with pytest.raises(MechanismMisuseError):
            self.message(self.total(BOUND * 2), node)


class TestCentral(MechanismContract):
    trust = Trust.CENTRAL

    def sampling(self) -> Sampling:
        return PoissonSampling(0.25)

    def message(self, total: ClippedSum, reservation: Reservation) -> Entrusted:
        return self.mechanism.entrust(total, reservation, 0)

    def release(self, message: Entrusted | LocallyPrivate, reservation: Reservation) -> Release:
        return self.mechanism.release(ClippedSum(message.value, message.l2_bound), reservation, RNG)


class TestCentralInFixedOrder(TestCentral):
    def sampling(self) -> Sampling:
        return FixedOrderSampling(4)


class TestLocal(MechanismContract):
    trust = Trust.LOCAL

    def sampling(self) -> Sampling:
        return PoissonSampling(0.25)

    def message(self, total: ClippedSum, reservation: Reservation) -> LocallyPrivate:
        return self.mechanism.release_locally(total, reservation, 0, RNG)

    def release(self, message: Entrusted | LocallyPrivate, reservation: Reservation) -> Release:
        return self.mechanism.collect([m for m in [message] if isinstance(m, LocallyPrivate)], reservation)
