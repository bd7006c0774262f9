"""Attacks that once worked, each by its story."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedpref.aggregation.optimizers import ServerOptimizer
from fedpref.config import RewardConfig
from fedpref.journal import Checkpoints
from fedpref.server import Server
from privacy.chain import ChainWriter
from privacy.errors import LedgerError
from privacy.ledger import Reservation, read_ledger
from privacy.mechanism import GaussianMechanism
from privacy.report import verify
from privacy.rng import SeededNonPrivateRandom
from privacy.sampling import PoissonSampling
from privacy.sealed import Entrusted
from privacy.units import Trust
from tests.tiny import head_manifest, make_recipe, train


class Stop(Exception):  # noqa: N818 - it stands for a kill
    """The process ends here."""


def stop_at(monkeypatch: pytest.MonkeyPatch, ledger: str, kind: str, number: int) -> None:
    """Raise right after the ``number``-th line of a kind was written to a ledger whose path ends so."""
    append, seen = ChainWriter.append, [0]

    def counting(self: ChainWriter, what: str, body: dict[str, object], *, durable: bool) -> object:
        entry = append(self, what, body, durable=durable)
        if what == kind and str(self._path).endswith(ledger):
            seen[0] += 1
            if seen[0] == number:
                raise Stop
        return entry

    monkeypatch.setattr(ChainWriter, "append", counting)


def test_a_huge_message_cannot_drown_the_noise_in_rounding() -> None:
    mechanism, said = GaussianMechanism(Trust.CENTRAL, PoissonSampling(0.1), 1.0, 2.0), list[str]()
    server = Server(
        manifest=head_manifest(1),
        num_clients=2,
        mechanism=mechanism,
        optimizer=ServerOptimizer(RewardConfig(public_data="none"), 1, 10),
        divisor=1.0,
        largest_norm=100.0,
        rng=SeededNonPrivateRandom(1),
        warn=said.append,
    )
    honest = Entrusted(0, 1, np.array([0.5]), 1.0).to_bytes()
    huge = Entrusted(1, 1, np.array([2.0**64]), 1.0).to_bytes()
    release = server.release([honest, huge], Reservation(1, 1, mechanism.events()).grant())
    assert abs(release.value[0]) < 100
    assert any("Client 1" in line for line in said)


def test_a_release_deleted_after_its_commit_is_booked_again(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, federation__num_rounds=2)
    run = Path(recipe.output_dir)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, "run/ledger.jsonl", "commit", 1)
        with pytest.raises(Stop):
            train(recipe)
    for checkpoint in (run / "checkpoints").iterdir():
        checkpoint.unlink()
    train(recipe, resume=True)
    assert [r.round for r in read_ledger(run / "ledger.jsonl").reservations] == [1, 1, 2]


def test_an_uncommitted_round_has_published_nothing(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, federation__num_rounds=2)
    run = Path(recipe.output_dir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "publish", lambda self, number: number and (_ for _ in ()).throw(Stop()))
        with pytest.raises(Stop):
            train(recipe)
    assert not list((run / "checkpoints").glob("round-*"))
    train(recipe, resume=True)
    assert [r.round for r in read_ledger(run / "ledger.jsonl").reservations] == [1, 2]


@pytest.mark.parametrize("ledger", ["ledger.jsonl", "nodes/local/ledger.jsonl"])
def test_a_lost_ledger_is_not_replaced_by_a_new_one(tmp_path: Path, ledger: str) -> None:
    recipe = make_recipe(tmp_path, federation__num_rounds=4)
    run = Path(recipe.output_dir)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, "run/ledger.jsonl", "reserve", 3)
        with pytest.raises(Stop):
            train(recipe)
    (run / ledger).unlink()
    with pytest.raises(LedgerError, match=r"does not hold its own signed head|does not know round 1"):
        train(recipe, resume=True)


def test_verify_finds_rounds_that_only_one_side_booked(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    short, long = (make_recipe(tmp_path / n, federation__num_rounds=r) for n, r in (("a", 2), ("b", 4)))
    for recipe in (short, long):
        train(recipe)
    federation = Path(short.output_dir) / "ledger.jsonl"
    (Path(long.output_dir) / "ledger.jsonl").write_bytes(federation.read_bytes())
    verdict = verify(Path(long.output_dir))
    assert not verdict.ok
    assert any("round 3 is not booked" in line for line in verdict.failed)
