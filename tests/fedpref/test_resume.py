"""A kill at any write point, then ``resume``: the same head as the unbroken run, and never a smaller epsilon.

Training alone is killed at every append to a ledger and every durable file, before, in the middle of and after the
write; a whole run at every durable file. A ``Killed`` is no ``Exception``: like a signal, nothing catches it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest

import fedpref
import fedpref.api
import fedpref.channel.secure
import fedpref.client.members
import fedpref.client.work
import fedpref.folder
import fedpref.journal
import fedpref.keyring
import fedpref.release
from fedpref.config import Recipe
from fedpref.journal import Checkpoints, SealedJournal
from fedpref.plan import make_plan
from fedpref.tracking import JsonlTracker
from privacy.accounting import epsilon
from privacy.chain import ChainWriter, Entry
from privacy.ledger import LedgerView, Reservation, read_ledger
from privacy.report import verify
from privacy.units import Adversary
from tests.tiny import make_recipe, train, write_recipe

ROUNDS = 3
WHEN = ("before", "torn", "after")
SEEDED: dict[str, Any] = {"privacy__rng": "seeded", "federation__num_rounds": ROUNDS}


class Killed(BaseException):
    """The process is gone."""


@dataclass
class Killer:
    """Counts write points; dies at the one with number ``at``."""

    at: int = -1
    when: str = "before"
    names: list[str] = field(default_factory=list)
    writers: list[ChainWriter] = field(default_factory=list)

    def point(self, name: str, write: Callable[[], Any], half: Callable[[], None]) -> Any:
        number = len(self.names)
        self.names.append(name)
        if number == self.at and self.when == "before":
            raise Killed
        if number == self.at and self.when == "torn":
            half()
            raise Killed
        result = write()
        if number == self.at:
            raise Killed
        return result

    @contextmanager
    def lurking(self) -> Iterator[Killer]:
        """Every durable write of the program passes through ``point`` while this is entered."""
        whole, append, opened = fedpref.journal.write_durably, ChainWriter.append, ChainWriter.__init__

        def remember(writer: ChainWriter, path: Path) -> None:
            self.writers.append(writer)
            opened(writer, path)

        def write_durably(path: Path, data: bytes, mode: int = 0o644) -> None:
            def half() -> None:
                path.with_name(f".{path.name}.part").write_bytes(data[: len(data) // 2])

            self.point(path.name, lambda: whole(path, data, mode), half)

        def append_line(writer: ChainWriter, kind: str, body: dict[str, Any], *, durable: bool) -> Entry:
            def half() -> None:
                os.write(writer._fd, b'{"body":{"re')

            name = f"{writer._path.parent.name}/{kind}"
            entry: Entry = self.point(name, lambda: append(writer, kind, body, durable=durable), half)
            return entry

        rename = Checkpoints.publish

        def publish(checkpoints: Checkpoints, number: int) -> bool:
            if not checkpoints._prepared(number).exists():
                return False
            done: bool = self.point("publish", lambda: rename(checkpoints, number), lambda: None)
            return done

        modules = (
            *(fedpref.journal, fedpref.folder, fedpref.client.work, fedpref.release),
            *(fedpref.channel.secure, fedpref.client.members, fedpref.keyring),
        )
        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(ChainWriter, "__init__", remember))
            stack.enter_context(mock.patch.object(ChainWriter, "append", append_line))
            stack.enter_context(mock.patch.object(Checkpoints, "publish", publish))
            for module in modules:
                stack.enter_context(mock.patch.object(module, "write_durably", write_durably))
            try:
                yield self
            finally:  # locks go with the process
                for writer in self.writers:
                    writer.close()


def nominal(view: LedgerView) -> float:
    """Epsilon against readers, as if the seeded numbers were private."""
    return epsilon(view.nominal(Adversary.READER), view.header.target_delta)


@dataclass
class Unbroken:
    """What a run gives that nobody kills."""

    weight: npt.NDArray[np.float64]
    names: list[str]
    federation: LedgerView
    node: LedgerView


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    folder = tmp_path_factory.mktemp("unbroken")
    recipe = make_recipe(folder, **SEEDED)
    with Killer().lurking() as counter:
        weight = train(recipe)
    run = Path(recipe.output_dir)
    return Unbroken(
        weight, counter.names, read_ledger(run / "ledger.jsonl"), read_ledger(run / "nodes/local/ledger.jsonl")
    )


def check(recipe: Recipe, weight: npt.NDArray[np.float64], unbroken: Unbroken) -> None:
    run = Path(recipe.output_dir)
    assert weight.tobytes() == unbroken.weight.tobytes()
    for name, expected in (("ledger.jsonl", unbroken.federation), ("nodes/local/ledger.jsonl", unbroken.node)):
        view = read_ledger(run / name)
        assert [r.round for r in view.reservations] == list(range(1, ROUNDS + 1)), "a round was booked twice, or lost"
        assert view.open_reservation is None
        assert not view.given_back
        assert nominal(view) >= nominal(expected)
    done, state = Checkpoints(run / "checkpoints").last()
    assert state is not None
    assert (done, state["counters"][1]) == (ROUNDS, ROUNDS), "a round was applied twice, or lost"
    verdict = verify(run)
    assert verdict.ok, verdict.failed


A_ROUND = 7  # writes
NUM_POINTS = 2 + 2 + A_ROUND * ROUNDS  # recipe.yaml, run.json; two `open` lines


def test_the_write_points_are_the_known_ones(unbroken: Unbroken) -> None:
    a_round = ["run/reserve", "local/reserve", "sealed.bin", "local/commit"]
    expected = ["recipe.yaml", "run.json", "run/open", "local/open"]
    for number in range(1, ROUNDS + 1):
        expected += [*a_round, f".prepared-{number:06d}.safetensors", "run/commit", "publish"]
    assert unbroken.names == expected
    assert len(expected) == NUM_POINTS


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("point", range(NUM_POINTS))
def test_killed_at_any_point_a_resumed_training_ends_as_the_unbroken_one(
    tmp_path: Path, unbroken: Unbroken, point: int, when: str
) -> None:
    recipe = make_recipe(tmp_path, **SEEDED)
    with pytest.raises(Killed), Killer(point, when).lurking():
        train(recipe)
    check(recipe, train(recipe, resume=True), unbroken)


@pytest.mark.parametrize("seed", range(8))
def test_killed_again_and_again_it_still_ends_as_the_unbroken_one(
    tmp_path: Path, unbroken: Unbroken, seed: int
) -> None:
    recipe, rng = make_recipe(tmp_path, **SEEDED), np.random.default_rng(seed)
    for _ in range(200):
        killer = Killer(int(rng.integers(0, 9)), WHEN[int(rng.integers(3))])
        try:
            with killer.lurking():
                weight = train(recipe, resume=True)
        except Killed:
            continue
        break
    else:
        weight = train(recipe, resume=True)
    check(recipe, weight, unbroken)


def test_with_private_random_numbers_a_kill_costs_no_second_event(tmp_path: Path) -> None:
    """The bytes of an interrupted round are kept or were never sent: never two noisy answers under one booking."""
    for point in range(4 + A_ROUND, 4 + 2 * A_ROUND):
        folder = tmp_path / str(point)
        folder.mkdir()
        recipe = make_recipe(folder, federation__num_rounds=ROUNDS)
        with pytest.raises(Killed), Killer(point, "after").lurking():
            train(recipe)
        journal = SealedJournal(Path(recipe.output_dir) / "nodes/local/sealed.bin", make_plan(recipe).digest)
        rounds = range(1, ROUNDS + 1)
        kept = {n: sent for n in rounds if (sent := journal.load(n, lambda seq, digest: True)) is not None}
        exchanged: dict[int, list[bytes]] = {}
        save = SealedJournal.save

        def spy(
            self: SealedJournal, of: Reservation, messages: list[bytes], into: Any = exchanged, to: Any = save
        ) -> str:
            into[of.round] = messages
            digest: str = to(self, of, messages)
            return digest

        with mock.patch.object(SealedJournal, "save", spy):
            train(recipe, resume=True)
        assert not kept.keys() & exchanged.keys(), "a round whose bytes were kept was computed a second time"
        view = read_ledger(Path(recipe.output_dir) / "ledger.jsonl")
        assert len(view.reservations) == ROUNDS


def test_a_lost_checkpoint_repeats_its_round_and_books_it_again(tmp_path: Path, unbroken: Unbroken) -> None:
    """Deleting a checkpoint is no way to get a round for nothing."""
    recipe = make_recipe(tmp_path, **SEEDED)
    with pytest.raises(Killed), Killer(4 + A_ROUND * 2, "before").lurking():  # before the reservation of round 3
        train(recipe)
    run = Path(recipe.output_dir)
    (run / "checkpoints/round-000002.safetensors").unlink()
    train(recipe, resume=True)
    view = read_ledger(run / "ledger.jsonl")
    assert [r.round for r in view.reservations] == [1, 2, 2, 3]
    assert nominal(view) > nominal(unbroken.federation)
    assert verify(run).ok


def test_a_broken_checkpoint_stops_with_what_to_do(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, **SEEDED)
    with pytest.raises(Killed), Killer(4 + A_ROUND * 2, "before").lurking():
        train(recipe)
    path = Path(recipe.output_dir) / "checkpoints/round-000002.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(fedpref.errors.RunFolderError, match="checkpoint of round 2 is broken") as caught:
        train(recipe, resume=True)
    assert caught.value.code == "FP501"


def test_every_round_has_one_line_of_metrics_also_after_a_kill(tmp_path: Path) -> None:
    """A kill between checkpoint and metrics may lose a line of public figures, never repeat or tear one."""
    for point in range(4 + A_ROUND, 4 + 2 * A_ROUND):
        folder = tmp_path / str(point)
        folder.mkdir()
        recipe = make_recipe(folder, **SEEDED)
        metrics_file = Path(recipe.output_dir) / "metrics.jsonl"
        metrics = JsonlTracker(metrics_file)
        with pytest.raises(Killed), Killer(point, "after").lurking():
            train(recipe, trackers=[metrics])
        train(recipe, resume=True, trackers=[metrics])
        rounds = [json.loads(line)["round"] for line in metrics_file.read_text().splitlines()]
        assert rounds == sorted(set(rounds))
        assert len(rounds) >= ROUNDS - 1


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[dict[str, bytes], list[str]]:
    """Released files and write points of a whole run that nobody kills."""
    folder = tmp_path_factory.mktemp("whole")
    with Killer().lurking() as counter:
        run = fedpref.load_recipe(write_recipe(folder, tiny_model, **SEEDED)).run()
    return released(run.path), counter.names


def released(run: Path) -> dict[str, bytes]:
    return {
        name: (run / name).read_bytes()
        for name in ("release/reward/reward_head.safetensors", "evaluation.json", "ledger.jsonl")
    }


@pytest.mark.slow  # seconds
@pytest.mark.parametrize("thorough", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_whole_run_killed_at_any_file_it_writes_can_be_resumed(
    tmp_path: Path, tiny_model: Path, whole_run: tuple[dict[str, bytes], list[str]], thorough: bool
) -> None:
    expected, names = whole_run
    files = [
        i for i, name in enumerate(names) if "/" not in name and not name.startswith((".prepared", "publish", "sealed"))
    ]
    assert len(files) >= 10
    for number, point in enumerate(files):
        for when in WHEN if thorough else WHEN[number % 3 :][:1]:
            folder = tmp_path / f"{point}-{when}"
            folder.mkdir()
            recipe = fedpref.load_recipe(write_recipe(folder, tiny_model, **SEEDED))
            with pytest.raises(Killed), Killer(point, when).lurking():
                recipe.run()
            if names[point] == "run.json" and point == files[-1] and when == "after":
                assert fedpref.Run(folder / "run").status["status"] == "finished"
                continue
            run = recipe.run(resume=True)
            got = released(run.path)
            assert got["release/reward/reward_head.safetensors"] == expected["release/reward/reward_head.safetensors"]
            assert got["evaluation.json"] == expected["evaluation.json"]
            assert verify(run.path).ok
