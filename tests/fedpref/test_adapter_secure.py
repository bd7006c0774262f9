"""Adapters under trust distributed: masked sums, bit for bit; rows block by block; books, costs, kills, refusals."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import privacy.distributed
from fedpref import adapter_size
from fedpref.api import run
from fedpref.client.adapter import GradientWork, LocalWork
from fedpref.client.secure import SecureNode
from fedpref.config import Recipe
from fedpref.data.preferences import Preferences
from fedpref.errors import UnsupportedPlanError
from fedpref.plan import make_plan
from privacy.clipping import clip_and_sum, grid_step
from privacy.distributed import DistributedMechanism
from privacy.gradients import GradientBackendError
from privacy.ledger import read_ledger
from privacy.report import build_report, verify
from privacy.secagg.packing import centred
from privacy.secagg.shares import NoisedShare
from tests.fedpref.adapters import adapter_recipe, sums, train_adapter, work_of
from tests.fedpref.secure_messages import messages, watch
from tests.fedpref.test_adapter_objectives import GRPO, prompts
from tests.fedpref.test_resume import Killed, Killer
from tests.fedpref.test_secure_resume import check
from tests.fedpref.test_secure_run import sums as released_sums
from tests.tiny import preferences

ROUNDS = 3
FOUR: dict[str, Any] = {
    "privacy__trust": "distributed",
    "privacy__rng": "seeded",
    "federation__partition": {"by": "hash", "num_clients": 4},
    "federation__min_clients_per_round": 3,
    "federation__num_rounds": ROUNDS,
}
CLIENT: dict[str, Any] = {
    "privacy__unit": "client",
    "federation__num_units": 4,
    "privacy__sample_rate": 0.7,
    "training__local": {"learning_rate": 0.01, "max_steps": 2},
}
PEOPLE: dict[str, Any] = {
    "privacy__sampling": "capped",
    "privacy__max_participations": 2,
    "privacy__sample_rate": 0.2,
    "federation__partition": {"by": "natural"},
    "federation__num_units": 40,
    "federation__min_clients_per_round": None,
}
KINDS: dict[str, dict[str, Any]] = {
    "dpo, frozen A, user": {},
    "dpo, A and B, example": {"training__adapter": "lora", "privacy__unit": "example"},
    "dpo, core, capped": {"training__adapter": "lora_core", **PEOPLE},
    "dpo, frozen A, adaptive, strict": {"privacy__clipping": "adaptive", "privacy__consistency": "strict"},
    "dpo against the broadcast model, client": {"training__ref_model": "global", **CLIENT},
    "bradley_terry, core, user": {"training__objective": "bradley_terry", "training__adapter": "lora_core"},
    "kto, core, client": {"training__objective": "kto", "training__adapter": "lora_core", **CLIENT},
    "sft, soft prompt, user": {"training__objective": "sft", "training__adapter": "prompt_tuning"},
    "selector, frozen A, user": {"training__objective": "binary_selector"},
    "grpo, core, user": {"training__objective": "grpo", "training__adapter": "lora_core", **GRPO},
    "grpo, core, example": {"training__objective": "grpo", "privacy__unit": "example", **GRPO},
}
QUICK = {"dpo, frozen A, user", "kto, core, client"}
ROWS = [
    ("ann", "yes! good", "no"), ("ann", "more! words", "less"), ("bob", "hello there", "a"),
    ("cat", "b! c", "d d d"), ("cat", "e", "f! g"), ("cat", "h i j", "k"), ("dan", "l! m", "n o"),
]  # fmt: skip
CLIENTS = {"one": preferences(ROWS[:3]), "none": Preferences.concat([]), "two": preferences(ROWS[3:])}


def recipe(folder: Path, model: Path, name: str = "a", **changes: Any) -> Recipe:
    (folder / name).mkdir()
    if changes.get("training__objective") == "grpo":
        changes["datasets"] = [prompts(folder / name)]
    return adapter_recipe(folder / name, model, **{**FOUR, **changes})


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[] if k in QUICK else [pytest.mark.slow]) for k in KINDS])
def test_masked_and_open_sums_give_the_same_adapter_bit_for_bit(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    seen, adapters, took = released_sums(monkeypatch), {}, {}
    for mode in ("full", "simulated"):
        r = recipe(tmp_path, tiny_model, mode, privacy__secure_aggregation=mode, **KINDS[kind])
        adapters[mode] = train_adapter(r)
        took[mode] = [total.integers.tolist() for total in seen]
        seen.clear()
        assert verify(Path(r.output_dir)).ok
    assert adapters["full"].tobytes() == adapters["simulated"].tobytes()
    assert took["full"] == took["simulated"]
    assert len(took["full"]) == r.federation.num_rounds
    assert np.isfinite(adapters["full"]).all()
    assert np.abs(adapters["full"]).max() > 0


@pytest.mark.parametrize("changes", [{}, CLIENT], ids=["user", "client"])
def test_without_noise_the_unmasked_sum_is_that_of_the_clients_integers_and_close_to_the_central_one(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    shares: list[NoisedShare] = []
    make_share, kept = privacy.distributed.make_share, {}

    def spy(*arguments: Any) -> NoisedShare:
        share = make_share(*arguments)
        shares.append(NoisedShare(share.value.copy(), share.round, share.plan))
        return share

    monkeypatch.setattr(privacy.distributed, "make_share", spy)
    seen = released_sums(monkeypatch)
    quiet = {"privacy__noise_multiplier": 0.0, "federation__num_rounds": 1, **changes}
    r = recipe(tmp_path, tiny_model, **quiet)
    train_adapter(r)
    mechanism = make_plan(r).mechanism()
    assert isinstance(mechanism, DistributedMechanism)
    codec, (total,) = mechanism.secagg.codec, seen
    assert len(shares) == len(total.survivors) == 4
    plain = centred(np.sum([s.value for s in shares], axis=0, dtype=shares[0].value.dtype), codec.bits)
    assert total.integers.tolist() == plain.tolist()

    def keep(self: Any, release: Any) -> Any:
        kept["sum"] = release.value
        raise Killed

    monkeypatch.setattr("fedpref.server.Server.step", keep)
    central = {"privacy__trust": "central", "federation__min_clients_per_round": None}
    with pytest.raises(Killed):
        train_adapter(recipe(tmp_path, tiny_model, "b", **{**quiet, **central}))  # the same seeded coins
    off = np.linalg.norm(total.value - kept["sum"])
    rounding = 4 * codec.max_grad_norm / codec.steps * codec.coordinates**0.5
    assert off < rounding < 0.5 * np.linalg.norm(kept["sum"])


@pytest.mark.parametrize("changes", [{}, CLIENT], ids=["user", "client"])
@pytest.mark.parametrize("at_once", [1, 2**26])
def test_single_rows_are_those_that_clipped_sums_are_made_of(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], at_once: int
) -> None:
    monkeypatch.setattr("fedpref.client.adapter.NUMBERS_AT_ONCE", at_once)
    runtime, work = work_of(adapter_recipe(tmp_path, tiny_model, **changes), CLIENTS)
    parameters = runtime.part.start.double().numpy() + 0.2 * np.random.default_rng(0).normal(
        size=len(runtime.part.start)
    )
    mask = np.ones(len(work.units), dtype=np.bool_)
    mask[1] = False
    rows_of, bound = work.rows_by_client(parameters, mask), 0.003
    found = []
    for client in (2, 0, 1):  # in any order: nothing is left from one client to the next
        blocks = list(rows_of(client))
        assert isinstance(work, LocalWork) or at_once > 1 or all(len(block) == 1 for block in blocks)
        rows = np.concatenate([np.zeros((0, len(parameters))), *blocks])
        drawn = int(mask[work.units.client == client].sum())
        assert len(rows) == (drawn if isinstance(work, GradientWork) or client != 1 else 0)
        found.append((client, clip_and_sum(rows, np.zeros(len(rows), np.int64), 1, bound)[0].value))
    central = sums(work, parameters, bound, mask)
    together = np.stack([value for _, value in sorted(found, key=lambda pair: pair[0])])
    np.testing.assert_allclose(together, central, atol=1e-4 * bound + 8 * grid_step(bound, len(parameters)))
    assert np.linalg.norm(central[2]) > 0.5 * bound


def test_a_clients_rows_do_not_move_by_a_bit_with_other_clients_records(tmp_path: Path, tiny_model: Path) -> None:
    made = []
    for other in (CLIENTS["two"], preferences([("eve", "a much longer answer than all others!", "short")])):
        runtime, work = work_of(adapter_recipe(tmp_path, tiny_model), {"one": CLIENTS["one"], "two": other})
        everybody = np.ones(len(work.units), dtype=np.bool_)
        (rows,) = work.rows_by_client(runtime.part.start.double().numpy(), everybody)(0)
        made.append(rows)
    assert made[0].tobytes() == made[1].tobytes()
    assert np.abs(made[0]).max() > 0


def test_an_error_of_a_computation_is_the_nodes_not_a_clients_and_nothing_leaves(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that fails alone would tell whose record or coin it was."""
    calls = []

    def broken(self: GradientWork, units: Any) -> Any:
        calls.append(1)
        raise GradientBackendError("It broke.", "Somehow.", "Look.")

    for mode in ("full", "simulated"):
        r = recipe(tmp_path, tiny_model, mode, privacy__secure_aggregation=mode)
        with monkeypatch.context() as patch:
            seen = watch(patch)
            patch.setattr(GradientWork, "_gradients", broken)
            with pytest.raises(GradientBackendError):
                train_adapter(r)
        assert not seen.vectors
        assert np.isfinite(train_adapter(r, resume=True)).all()  # under the same booking: nothing left for it
        view = read_ledger(Path(r.output_dir) / "nodes/local/ledger.jsonl")
        assert [x.round for x in view.reservations] == [1, 2, 3]
    assert len(calls) == 2


def test_what_was_sealed_before_an_error_is_not_sent_when_the_node_is_asked_again(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, trip, calls, again = GradientWork._gradients, SecureNode.trip, list[int](), dict[int, Any]()

    def second_breaks(self: GradientWork, units: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise GradientBackendError("It broke.", "Somehow.", "Look.")
        return real(self, units)

    def asks_again(self: SecureNode, bundles: Any, request: Any) -> Any:
        try:
            return trip(self, bundles, request)
        except GradientBackendError:
            assert not self._members.load(lambda *_: True, -1).round
            again.update(trip(self, bundles, request))
            raise

    monkeypatch.setattr(GradientWork, "_gradients", second_breaks)
    monkeypatch.setattr(SecureNode, "trip", asks_again)
    with pytest.raises(GradientBackendError):
        train_adapter(recipe(tmp_path, tiny_model, privacy__sample_rate=0.9))  # somebody in every client
    sent = {client for client, reply in again.items() if any(m.kind == "masked" for m in messages(reply))}
    assert sent == {2, 3}  # of the clients before, noise was drawn once: no second draw under this booking


def test_one_block_of_rows_is_in_memory_whatever_the_number_of_clients(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, alive, most = GradientWork._blocks, list[Any](), list[int]()

    def watched(self: GradientWork, *arguments: Any) -> Any:
        for block in real(self, *arguments):
            assert len(block) == 1
            alive.append(weakref.ref(block))
            most.append(sum(one() is not None for one in alive))
            yield block

    monkeypatch.setattr("fedpref.client.adapter.NUMBERS_AT_ONCE", 1)
    monkeypatch.setattr(GradientWork, "_blocks", watched)
    train_adapter(recipe(tmp_path, tiny_model, federation__num_rounds=1, privacy__secure_aggregation="simulated"))
    assert len(most) > 5
    assert max(most) <= 2  # this one, and the one before it


def killed_at(folder: Path, model: Path, at: int, when: str) -> None:
    r = recipe(folder, model, f"{at}-{when}", training__adapter="lora_core")
    with pytest.MonkeyPatch.context() as patch:
        seen = watch(patch)
        with pytest.raises(Killed), Killer(at, when).lurking():
            train_adapter(r)
        train_adapter(r, resume=True)
        check(r, seen, lost=1)


def points(folder: Path, model: Path) -> list[str]:
    with Killer().lurking() as counter:
        train_adapter(recipe(folder, model, "counted", training__adapter="lora_core"))
    return counter.names


def test_killed_once_vectors_are_kept_a_run_goes_on_and_makes_no_second_one(tmp_path: Path, tiny_model: Path) -> None:
    names = points(tmp_path, tiny_model)
    second = [i for i, name in enumerate(names) if name == "members.bin"][4]  # set-up twice, then rounds by two
    killed_at(tmp_path, tiny_model, second, "before")


@pytest.mark.slow
@pytest.mark.parametrize("when", ["torn", "after"])
def test_killed_at_many_writes_a_run_goes_on_and_repeats_nothing(tmp_path: Path, tiny_model: Path, when: str) -> None:
    """Every one is covered with a head, whose rounds are the same code and take milliseconds."""
    for at in range(0, len(points(tmp_path, tiny_model)), 4):
        killed_at(tmp_path, tiny_model, at, when)


def test_plan_books_and_report_say_the_same(tmp_path: Path, tiny_model: Path) -> None:
    """Private random numbers, a whole run: figures, release, report, verify."""
    r = recipe(tmp_path, tiny_model, privacy__rng="os", training__adapter="lora_core", federation__num_rounds=2)
    plan, finished = make_plan(r), run(r)
    costs, size = plan.secure_costs, adapter_size.trainable_dimension(r)
    assert size == 16
    assert costs is not None
    assert costs.trips == 6
    assert plan.to_json()["secure_aggregation"]["bytes_down"] > 2 * 8 * size
    claim = build_report(finished.path).fields["claim"]
    assert [row.epsilon_total for row in plan.rows] == [row["epsilon"] for row in claim]
    assert not any(row["trusted"] for row in claim)
    assert verify(finished.path).ok
    card = (finished.path / "release/policy/README.md").read_text()
    assert "honest-but-curious server" in card
    assert "none: trusted" not in card
    assert not (finished.path / "nodes/local/sealed.bin").exists()


def test_a_model_whose_size_nobody_knows_beforehand_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(UnsupportedPlanError, match="before the model is loaded"):
        make_plan(recipe(tmp_path, Path("somebody/some-model")))
    with pytest.raises(UnsupportedPlanError, match="before the model is loaded"):
        make_plan(recipe(tmp_path, tiny_model, "b", training__lora_target_modules=["c_attn"]))


def test_a_model_that_trains_another_number_than_was_planned_is_refused_before_a_book_is_opened(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedpref.plan.secure_dimension", lambda _: 17)
    r = recipe(tmp_path, tiny_model)
    with pytest.raises(UnsupportedPlanError, match="trains 192 values; the plan counted 17"):
        train_adapter(r)
    assert not (Path(r.output_dir) / "ledger.jsonl").exists()
