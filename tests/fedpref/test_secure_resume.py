"""A kill at any write of a run under secure aggregation, then ``resume``: each round is booked once in both books, applied
once or lost, and no client ever lets go two vectors for one round of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedpref.config import Recipe
from fedpref.errors import RunFolderError
from fedpref.journal import Checkpoints
from privacy.ledger import read_ledger
from privacy.report import verify
from tests.fedpref.secure_messages import Watch, watch
from tests.fedpref.test_resume import Killed, Killer
from tests.tiny import make_recipe, train

ROUNDS, CLIENTS = 3, 4
SECURE: dict[str, Any] = {
    "privacy__trust": "distributed",
    "privacy__rng": "seeded",
    "federation__partition__num_clients": CLIENTS,
    "federation__min_clients_per_round": 3,
    "federation__num_rounds": ROUNDS,
}
PEOPLE: dict[str, Any] = {
    "privacy__trust": "distributed",
    "privacy__rng": "seeded",
    "privacy__secure_aggregation": "simulated",
    "privacy__sampling": "capped",
    "privacy__max_participations": 2,
    "privacy__sample_rate": 0.5,
    "federation__partition": {"by": "natural"},
    "federation__num_units": 40,
    "federation__num_rounds": ROUNDS,
}


def points(folder: Path, changes: dict[str, Any]) -> list[str]:
    folder.mkdir()
    with Killer().lurking() as counter:
        train(make_recipe(folder, **changes))
    return counter.names


def check(recipe: Recipe, seen: Watch, *, lost: int) -> None:
    """Nothing twice; at most ``lost`` rounds without a step."""
    run = Path(recipe.output_dir)
    for name in ("ledger.jsonl", "nodes/local/ledger.jsonl"):
        view = read_ledger(run / name)
        assert [r.round for r in view.reservations] == list(range(1, ROUNDS + 1)), "a round was booked twice, or lost"
        assert view.open_reservation is None
        assert not view.given_back
    done, state = Checkpoints(run / "checkpoints").last()
    assert state is not None
    assert done == ROUNDS
    assert ROUNDS - lost <= state["counters"][1] <= ROUNDS
    assert all(len(contents) == 1 for contents in seen.vectors.values()), "two vectors for one round"
    assert verify(run).ok, verify(run).failed


def kill_and_resume(folder: Path, changes: dict[str, Any], at: int, when: str, *, lost: int) -> None:
    folder.mkdir()
    recipe = make_recipe(folder, **changes)
    with pytest.MonkeyPatch.context() as patch:
        seen = watch(patch)
        with pytest.raises(Killed), Killer(at, when).lurking():
            train(recipe)
        train(recipe, resume=True)
        check(recipe, seen, lost=lost)


@pytest.mark.parametrize("share", [0.55, 0.8])
def test_killed_at_some_writes_a_masked_run_goes_on_and_repeats_nothing(tmp_path: Path, share: float) -> None:
    names = points(tmp_path / "counted", SECURE)
    kill_and_resume(tmp_path / "killed", SECURE, int(share * len(names)), "after", lost=1)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "torn", "after"])
def test_killed_at_every_write_a_masked_run_goes_on_and_repeats_nothing(tmp_path: Path, when: str) -> None:
    names = points(tmp_path / "counted", SECURE)
    assert names.count("members.bin") == 2 * ROUNDS + 3  # at last without their secrets
    for at in range(len(names)):
        kill_and_resume(tmp_path / str(at), SECURE, at, when, lost=1)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "torn", "after"])
def test_killed_at_every_write_a_simulated_run_loses_no_round(tmp_path: Path, when: str) -> None:
    for at in range(len(points(tmp_path / "counted", PEOPLE))):
        kill_and_resume(tmp_path / str(at), PEOPLE, at, when, lost=0)


@pytest.mark.parametrize("changes", [SECURE, PEOPLE], ids=["masked", "simulated"])
def test_clients_states_that_were_lost_or_rolled_back_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    """They know which vectors were sent and how often; begun anew, they would make a second one under the same masks."""
    names = points(tmp_path / "counted", changes)
    second = [i for i, name in enumerate(names) if name == "members.bin"][1]
    (tmp_path / "killed").mkdir()
    recipe = make_recipe(tmp_path / "killed", **changes)
    kept = Path(recipe.output_dir) / "nodes/local/members.bin"
    with pytest.raises(Killed), Killer(second, "after").lurking():
        train(recipe)
    old = kept.read_bytes()
    train(recipe, resume=True)
    train(recipe, resume=True)  # done: nothing is asked, and nothing amiss
    for content in (old, None):
        kept.unlink() if content is None else kept.write_bytes(content)
        with pytest.raises(RunFolderError, match="knows nothing"):
            train(recipe, resume=True)


def test_killed_once_a_round_was_kept_the_round_is_lost_and_stays_booked(tmp_path: Path) -> None:
    """Right after the clients' states are on disk: the vectors may have been sent, so there are no others."""
    names = points(tmp_path / "counted", SECURE)
    at = [i for i, name in enumerate(names) if name == "members.bin"][2]  # S1, S2, then the vectors of round 1
    (tmp_path / "killed").mkdir()
    recipe = make_recipe(tmp_path / "killed", **SECURE)
    with pytest.MonkeyPatch.context() as patch:
        seen = watch(patch)
        with pytest.raises(Killed), Killer(at, "after").lurking():
            train(recipe)
        train(recipe, resume=True)
        check(recipe, seen, lost=1)
    view = read_ledger(Path(recipe.output_dir) / "ledger.jsonl")
    assert view.reservations[0].seq in view.aborted
    assert {number for number, _ in seen.vectors} == {2, 3}
