"""The server: sums what it can use, noises the sum, divides by a public constant; the optimiser is torch's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fedpref.aggregation.optimizers import ServerOptimizer
from fedpref.channel.base import Failure
from fedpref.config import RewardConfig
from fedpref.errors import NoDataError
from fedpref.manifest import Manifest
from fedpref.plan import make_plan
from fedpref.server import Server
from privacy.ledger import Reservation
from privacy.mechanism import GaussianMechanism
from privacy.rng import SeededNonPrivateRandom
from privacy.sampling import PoissonSampling
from privacy.sealed import Entrusted, LocallyPrivate
from privacy.units import Trust
from tests.privacy.oracles import grid_noise
from tests.tiny import head_manifest, make_recipe, votes, write_dataset

D, CLIP, DIVISOR = 3, 0.5, 10.0
RNG = SeededNonPrivateRandom(3)
Vector = npt.NDArray[np.float64]
REWARD = RewardConfig(public_data="none", learning_rate=0.5, momentum=0.9, average_from=0.5)


def server(said: list[str] | None = None, trust: Trust = Trust.CENTRAL, num_clients: int = 3) -> Server:
    return Server(
        manifest=head_manifest(D),
        num_clients=num_clients,
        mechanism=GaussianMechanism(trust, PoissonSampling(0.1), CLIP, 2.0),
        optimizer=ServerOptimizer(REWARD, D, 10),
        divisor=DIVISOR,
        largest_norm=1000.0,
        rng=RNG,
        warn=(said if said is not None else []).append,
    )


def reservation(trust: Trust = Trust.CENTRAL, number: int = 1) -> Reservation:
    return Reservation(1, number, GaussianMechanism(trust, PoissonSampling(0.1), CLIP, 2.0).events()).grant()


def entrusted(client: int, value: float = 0.125, number: int = 1, bound: float = CLIP) -> bytes:
    return Entrusted(client, number, np.full(D, value), bound).to_bytes()


def test_the_release_is_the_sum_plus_one_draw_of_the_planned_noise() -> None:
    released = server().release([entrusted(0, 0.125), entrusted(1, 0.25), entrusted(2, -0.0625)], reservation())
    noise = grid_noise(RNG.stream("noise", round=1), 2.0 * CLIP, CLIP, D)
    np.testing.assert_allclose(released.value, 0.3125 + noise, rtol=1e-12)
    assert released.noise_std == 2.0 * CLIP


def test_under_local_trust_the_server_adds_nothing() -> None:
    messages = [LocallyPrivate(i, 1, np.full(D, float(i)), CLIP).to_bytes() for i in range(3)]
    released = server(trust=Trust.LOCAL).release(list(messages), reservation(Trust.LOCAL))
    assert released.value.tolist() == [3.0] * D
    assert released.noise_std == pytest.approx(2.0 * CLIP * 3**0.5)


MALFORMED = {
    "cut off": entrusted(1)[:-1],
    "too long": entrusted(1) + b"\0",
    "empty": b"",
    "another type": LocallyPrivate(1, 1, np.zeros(D), CLIP).to_bytes(),
    "another sender": entrusted(2),
    "another round": entrusted(1, number=2),
    "another dimension": Entrusted(1, 1, np.zeros(D + 1), CLIP).to_bytes(),
    "NaN": entrusted(1, float("nan")),
    "infinity": entrusted(1, float("inf")),
    "off the grid": entrusted(1, 0.1),
    "another bound": entrusted(1, bound=2 * CLIP),
    "a bound that is no number": entrusted(1, bound=float("nan")),
    "no answer": Failure("deadline passed"),
}


@pytest.mark.parametrize("reply", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_message_is_left_out_and_named_and_the_round_goes_on(reply: bytes | Failure) -> None:
    said: list[str] = []
    released = server(said).release([entrusted(0, 0.125), reply, entrusted(2, 0.25)], reservation())
    noise = grid_noise(RNG.stream("noise", round=1), 2.0 * CLIP, CLIP, D)
    np.testing.assert_allclose(released.value, 0.375 + noise, rtol=1e-12)
    assert released.noise_std == 2.0 * CLIP  # the noise does not depend on who answered
    assert len(said) == 1
    assert "client 1 " in said[0].lower()
    assert "1" in said[0]


def test_a_round_without_a_usable_message_stops_coded() -> None:
    said: list[str] = []
    with pytest.raises(NoDataError, match="no client sent a usable message") as caught:
        server(said).release([b"", Failure("gone"), entrusted(0)], reservation())
    assert caught.value.code == "FP205"
    assert len(said) == 3


def test_a_surplus_reply_is_left_out() -> None:
    said: list[str] = []
    released = server(said, num_clients=2).release([entrusted(0), entrusted(1), entrusted(2, 100.0)], reservation())
    noise = grid_noise(RNG.stream("noise", round=1), 2.0 * CLIP, CLIP, D)
    np.testing.assert_allclose(released.value, 0.25 + noise, rtol=1e-12)
    assert len(said) == 1


def test_the_divisor_is_the_declared_constant_whoever_is_there(tmp_path: Path) -> None:
    """Rule 4: adding or removing people changes neither the divisor nor anything else in the plan."""
    plans = []
    for people in (60, 59, 10):
        folder = tmp_path / str(people)
        folder.mkdir()
        source = write_dataset(folder, votes(people))
        (tmp_path / "votes.yaml").write_bytes(source.read_bytes())
        (tmp_path / "votes.jsonl").write_bytes((folder / "votes.jsonl").read_bytes())
        plans.append(make_plan(make_recipe(tmp_path, datasets=[str(tmp_path / "votes.yaml")])))
    assert {plan.divisor for plan in plans} == {0.3 * 50}
    assert len({plan.digest for plan in plans}) == 1


def test_the_step_divides_by_the_constant_also_when_clients_are_missing() -> None:
    for replies in ([entrusted(0)], [entrusted(0), b"", b""], [entrusted(0), entrusted(1), entrusted(2)]):
        this = server()
        released = this.release(list(replies), reservation())
        assert np.array_equal(this.step(released), released.value / DIVISOR)


def test_a_request_names_round_manifest_and_the_current_parameters() -> None:
    this = server()
    this.step(this.release([entrusted(0)], reservation()))
    request = this.request(2)
    assert (request.round, request.manifest_digest) == (2, head_manifest(D).digest)
    assert np.array_equal(request.parameters, this.optimizer.parameters)
    request.parameters[:] = 9.0
    assert this.optimizer.parameters.max() < 9.0, "a client's copy is not the server's state"


def test_the_manifest_digest_tells_names_shapes_and_order_apart() -> None:
    one = Manifest((("a", (2, 3)), ("b", (4,))))
    assert one.dimension == 10
    others = [
        Manifest((("b", (4,)), ("a", (2, 3)))),
        Manifest((("a", (3, 2)), ("b", (4,)))),
        Manifest((("a", (2, 3)), ("c", (4,)))),
    ]
    assert len({m.digest for m in (one, *others)}) == 4
    assert Manifest((("a", (2, 3)), ("b", (4,)))).digest == one.digest


@pytest.mark.parametrize("average_from", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("rounds", [1, 3, 10])
def test_the_released_head_is_the_mean_of_the_late_iterates(average_from: float, rounds: int) -> None:
    optimizer = ServerOptimizer(REWARD.model_copy(update={"average_from": average_from}), D, rounds)
    gradients = np.random.default_rng(0).normal(size=(rounds, D))
    iterates = []
    for gradient in gradients:
        optimizer.step(gradient)
        iterates.append(optimizer.parameters)
    late = iterates[int(average_from * rounds) :]
    np.testing.assert_allclose(optimizer.averaged, sum(late) / len(late), rtol=1e-12)


def test_before_averaging_begins_the_last_iterate_is_released() -> None:
    optimizer = ServerOptimizer(REWARD, D, 100)
    optimizer.step(np.ones(D))
    assert np.array_equal(optimizer.averaged, optimizer.parameters)


def test_an_adversarial_optimizer_state_is_not_shared_between_two_runs() -> None:
    one, two = ServerOptimizer(REWARD, D, 10), ServerOptimizer(REWARD, D, 10)
    one.step(np.ones(D))
    state = one.state()
    two.restore(state)
    two.step(np.ones(D))
    assert np.array_equal(state["parameters"], one.parameters)
    assert np.array_equal(one.state()["optim.momentum_buffer"], state["optim.momentum_buffer"])


def test_sgd_with_momentum_by_hand() -> None:
    """v = 0.9 v + g; w = w - 0.5 v, from zero; torch's own convention (no dampening on the first step)."""
    optimizer = ServerOptimizer(REWARD, D, 10)
    velocity, weight = np.zeros(D), np.zeros(D)
    for gradient in np.random.default_rng(1).normal(size=(5, D)):
        optimizer.step(gradient)
        velocity = 0.9 * velocity + gradient
        weight = weight - 0.5 * velocity
        np.testing.assert_allclose(optimizer.parameters, weight, rtol=1e-12)
    assert optimizer.parameters.dtype == np.float64
    assert torch.get_default_dtype() == torch.float32
