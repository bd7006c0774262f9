"""A malicious server against a whole node: other parameters, second vectors, open shares, worn-out clients, other plans;
and what clients send, message by message."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedpref import training
from fedpref.channel.base import Failure, RoundRequest
from fedpref.channel.secure import SecureChannel, SimulatedChannel
from fedpref.client.secure import SecureNode
from fedpref.errors import RunFolderError, TooFewClientsError
from fedpref.folder import RunFolder
from fedpref.training import train_reward_head
from privacy.distributed import DistributedMechanism
from privacy.errors import MechanismMisuseError
from privacy.ledger import read_ledger
from privacy.secagg.errors import ReplayRefusal
from privacy.secagg.shares import NoisedShare
from privacy.secagg.sizing import ShareNoise
from tests.fedpref.secure_messages import messages, watch
from tests.tiny import make_recipe, train, training_input

SECURE: dict[str, Any] = {
    "privacy__trust": "distributed",
    "federation__partition__num_clients": 4,
    "federation__min_clients_per_round": 3,
    "federation__num_rounds": 2,
}
Asked = Callable[[SecureNode, Mapping[int, bytes], RoundRequest | None], Mapping[int, bytes | Failure]]


def hostile(patch: pytest.MonkeyPatch, server: Callable[[Asked], Asked]) -> None:
    """``server`` stands between the honest server's bundles and the nodes."""
    patch.setattr(SecureNode, "trip", server(SecureNode.trip))


def kinds(reply: bytes | Failure) -> list[str]:
    return [one.kind for one in messages(reply)] if isinstance(reply, bytes) else []


@pytest.mark.slow
@pytest.mark.parametrize("part", ["parameters", "clipping_norm"])
def test_other_parameters_than_those_that_masks_are_bound_to_get_no_vector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def server(trip: Asked) -> Asked:
        def ask(self: SecureNode, bundles: Mapping[int, bytes], request: RoundRequest | None) -> Any:
            if request is None:
                return trip(self, bundles, None)
            lie: Any = request.parameters + 1e-9 if part == "parameters" else 7.0
            replies = trip(self, bundles, replace(request, **{part: lie}))
            assert not any("masked" in kinds(reply) for reply in replies.values())
            return replies

        return ask

    hostile(monkeypatch, server)
    changes = {} if part == "parameters" else {"privacy__clipping": "adaptive"}
    recipe = make_recipe(tmp_path, **SECURE, **changes)
    train(recipe)
    view = read_ledger(Path(recipe.output_dir) / "ledger.jsonl")
    assert (len(view.committed), len(view.aborted)) == (0, 2)
    assert not read_ledger(Path(recipe.output_dir) / "nodes/local/ledger.jsonl").reservations  # no data were touched


def test_the_same_trip_again_gets_the_same_bytes_and_no_second_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, int]] = []
    share = DistributedMechanism.share

    def spy(self: Any, rows: Any, bound: float, reservation: Any, client: int, *rest: Any, **more: Any) -> NoisedShare:
        made.append((reservation.round, client))
        return share(self, rows, bound, reservation, client, *rest, **more)

    def server(trip: Asked) -> Asked:
        def ask(self: SecureNode, bundles: Mapping[int, bytes], request: RoundRequest | None) -> Any:
            replies = trip(self, bundles, request)
            assert trip(self, bundles, request) == replies
            return replies

        return ask

    monkeypatch.setattr(DistributedMechanism, "share", spy)
    hostile(monkeypatch, server)
    train(make_recipe(tmp_path, **SECURE))
    assert sorted(made) == [(number, client) for number in (1, 2) for client in range(4)]


def test_a_second_exchange_for_a_round_that_was_answered_gets_no_vector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server asks for round 1 once more, at other parameters, under fresh keys and a larger number."""
    asked: list[int] = []

    def server(trip: Asked) -> Asked:
        def ask(self: SecureNode, bundles: Mapping[int, bytes], request: RoundRequest | None) -> Any:
            if request is not None:
                asked.append(request.round)
            return trip(self, bundles, request)

        return ask

    request_of = training.Server.request

    def again(self: Any, number: int) -> RoundRequest:
        return replace(request_of(self, number), round=1)

    hostile(monkeypatch, server)
    seen = watch(monkeypatch)
    monkeypatch.setattr(training.Server, "request", again)
    recipe = make_recipe(tmp_path, **SECURE)
    train(recipe)
    assert asked == [1, 1]
    assert set(seen.vectors) == {(1, client) for client in range(4)}
    assert all(len(contents) == 1 for contents in seen.vectors.values())
    view = read_ledger(Path(recipe.output_dir) / "ledger.jsonl")
    assert (len(view.committed), len(view.aborted)) == (1, 1)


def node_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> SecureNode:
    """The node of a run that stops at its first trip; its books are closed."""
    caught: list[SecureNode] = []

    def stop(self: Any, *_: Any) -> Any:
        caught.append(self)
        raise KeyboardInterrupt

    name = "trip" if changes.get("privacy__secure_aggregation") != "simulated" else "shares"
    with monkeypatch.context() as patch:
        patch.setattr(SecureNode, name, stop)
        with pytest.raises(KeyboardInterrupt):
            train(make_recipe(tmp_path, **{**SECURE, **changes}))
    return caught[0]


def test_a_masked_run_gives_no_open_integers_and_no_sealed_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = node_of(tmp_path, monkeypatch)
    request = RoundRequest(1, node._manifest.digest, np.zeros(8))
    with pytest.raises(ReplayRefusal):
        node.shares(request, 1, (0, 1, 2, 3))
    with pytest.raises(RunFolderError):
        node.contribute(request)
    with pytest.raises(RunFolderError):
        node.trip({}, replace(request, manifest_digest="another"))


def test_a_simulated_run_makes_no_masked_vector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = node_of(tmp_path, monkeypatch, privacy__secure_aggregation="simulated")
    reply = node._answer(0, b"", None, lambda: None)  # type: ignore[arg-type]
    assert isinstance(reply, Failure)
    assert reply.code == "FP473"


def test_a_share_is_not_made_without_its_booking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = node_of(tmp_path, monkeypatch)
    view = read_ledger(tmp_path / "run/ledger.jsonl")  # the federation's, not the node's
    with pytest.raises(MechanismMisuseError):
        node._distributed.share([np.zeros((1, 8))], 0.5, view.reservations[0], 0, node._rng, number=1)


def test_a_server_that_plans_less_noise_gets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    init = SecureChannel.__init__

    def other(self: SecureChannel, *, plan: Any, **rest: Any) -> None:
        noise: ShareNoise = replace(plan.noise, sigma=plan.noise.sigma / 2)
        init(self, plan=replace(plan, noise=noise), **rest)

    monkeypatch.setattr(SecureChannel, "__init__", other)
    seen = watch(monkeypatch)
    recipe = make_recipe(tmp_path, **SECURE)
    with pytest.raises(TooFewClientsError):
        train(recipe)
    assert seen.sent == {}


def test_a_client_counts_its_own_rounds_whatever_the_server_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init = SimulatedChannel.__init__

    def favourites(self: SimulatedChannel, *, invited: Any, **rest: Any) -> None:
        first = invited(1)
        init(self, invited=lambda _: first, **rest)

    monkeypatch.setattr(SimulatedChannel, "__init__", favourites)
    recipe = make_recipe(
        tmp_path,
        privacy__trust="distributed",
        privacy__sampling="capped",
        privacy__max_participations=2,
        privacy__secure_aggregation="simulated",
        privacy__sample_rate=0.25,
        federation__partition={"by": "natural"},
        federation__num_units=40,
        federation__num_rounds=4,
    )
    given, folder, said = training_input(recipe), RunFolder(Path(recipe.output_dir)), list[str]()
    folder.begin(recipe, given.plan.digest, resume=False)
    train_reward_head(given, folder, [], said.append)
    view = read_ledger(folder.ledger)
    assert (len(view.committed), len(view.aborted)) == (2, 2)
    assert any("max_participations" in line for line in said)


ALLOWED = {
    "keys": {"kind", "run", "round", "plan", "client", "answers", "channel", "mask"},
    "shares": {"kind", "run", "round", "plan", "client", "answers", "seed"},
    "masked": {"kind", "run", "round", "plan", "client", "answers"},
    "agreed": {"kind", "run", "round", "plan", "client", "survivors"},
    "unmask": {"kind", "run", "round", "plan", "client", "answers"},
}


def test_clients_send_these_messages_in_these_sizes_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every field of every message, and its length: no count, loss, norm or time, and nothing that depends on the data."""
    sizes: dict[str, set[int]] = {}
    for name, change in (("full", {}), ("rare", {"privacy__sample_rate": 1e-6}), ("strict", {})):
        with monkeypatch.context() as patch:
            seen = watch(patch)
            (tmp_path / name).mkdir()
            strict = {"privacy__consistency": "strict"} if name == "strict" else {}
            train(make_recipe(tmp_path / name, **{**SECURE, **change, **strict}))
        assert set(seen.sent) == {0, 1, 2, 3}
        for sent in seen.sent.values():
            for one in sent:
                assert set(one.head) == ALLOWED[one.kind]
                sizes.setdefault(one.kind, set()).add(len(one.data))
    assert set(sizes) == set(ALLOWED)
    vectors = sizes.pop("masked")
    assert max(vectors) - min(vectors) <= 16  # the ring's bits may follow the planned sample rate, never the sample
    assert {kind: len(of) for kind, of in sizes.items()} == dict.fromkeys(sizes, 1)
