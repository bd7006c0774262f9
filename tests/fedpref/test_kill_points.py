"""kill -9 at every system call by which books, journal, signed heads, keys and checkpoints reach the disk.

A call either happens whole, or, if it writes, in half, or not at all; from then on the process does nothing more. Then
the run is resumed: epsilon is never under-reported, no round is applied twice, the parameters are those of the unbroken
run. ``test_resume.py`` does the same with whole files and lines as the points.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from fedpref.config import Recipe
from fedpref.journal import Checkpoints
from privacy.chain import ChainWriter
from privacy.ledger import read_ledger
from privacy.project import read_project
from privacy.report import verify
from privacy.units import Adversary, PrivacyUnit
from tests.fedpref.test_resume import ROUNDS, SEEDED, Killed, Unbroken, check, unbroken
from tests.privacy.oracles import discrete
from tests.tiny import make_recipe, train

__all__ = ["unbroken"]  # the fixture

CALLS = ("write", "fsync", "replace", "link", "unlink", "ftruncate", "open")


class Kernel:
    """Counts the calls that change the disk; at number ``at`` the process dies."""

    def __init__(self, at: int = -1, *, torn: bool = False, die: Callable[[], None] | None = None) -> None:
        self.at, self.torn, self.names, self.dead = at, torn, list[str](), False
        self._die = die

    def _stop(self) -> None:
        self.dead = True
        if self._die:
            self._die()
        raise Killed

    def _call(self, name: str, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if name == "open" and not args[1] & os.O_CREAT:
            return real(*args, **kwargs)
        if self.dead:
            raise Killed
        number = len(self.names)
        self.names.append(name)
        if number == self.at:
            if self.torn and name == "write":
                real(args[0], args[1][: len(args[1]) // 2])
            self._stop()
        return real(*args, **kwargs)

    @contextmanager
    def running(self) -> Iterator[Kernel]:
        """Everything that happens in here goes through this kernel; locks go with the process."""
        writers: list[ChainWriter] = []
        opened = ChainWriter.__init__

        def remember(writer: ChainWriter, path: Path) -> None:
            writers.append(writer)
            opened(writer, path)

        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(ChainWriter, "__init__", remember))
            for name in CALLS:
                real = getattr(os, name)

                def call(*args: Any, name: str = name, real: Any = real, **kwargs: Any) -> Any:
                    return self._call(name, real, *args, **kwargs)

                stack.enter_context(mock.patch.object(os, name, call))
            try:
                yield self
            finally:
                for writer in writers:
                    writer.close()


def count(recipe: Recipe) -> list[str]:
    """The calls of a run that nobody kills."""
    with Kernel().running() as kernel:
        train(recipe)
    return kernel.names


def killed(recipe: Recipe, at: int, *, torn: bool) -> None:
    with pytest.raises(Killed), Kernel(at, torn=torn).running():
        train(recipe)


def points(names: list[str]) -> list[tuple[int, bool]]:
    """Every call, not made; and every write, made in half."""
    return [(i, False) for i in range(len(names))] + [(i, True) for i, name in enumerate(names) if name == "write"]


def fresh(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


def kill_and_resume(folder: Path, chosen: Callable[[list[Any]], list[Any]], whole: Unbroken) -> int:
    names = count(make_recipe(fresh(folder, "counted"), **SEEDED))
    every = chosen(points(names))
    for at, torn in every:
        recipe = make_recipe(fresh(folder, f"{at}-{torn}"), **SEEDED)
        killed(recipe, at, torn=torn)
        check(recipe, train(recipe, resume=True), whole)
    return len(every)


def project_recipe(folder: Path) -> Recipe:
    ledger = str(folder / "project.jsonl")
    return make_recipe(folder, privacy__ledger=ledger, privacy__project_cap=9.0, federation__num_rounds=ROUNDS)


def check_project(recipe: Recipe) -> None:
    """Every round is booked in all three books, in the project's perhaps once more; none was applied twice."""
    run, event = Path(recipe.output_dir), discrete(1.5, 0.3)
    for name in ("ledger.jsonl", "nodes/local/ledger.jsonl"):
        view = read_ledger(run / name)
        assert [r.round for r in view.booked] == list(range(1, ROUNDS + 1))
        assert view.open_reservation is None
    project = read_project(Path(str(recipe.privacy.ledger)))
    booked = Counter(number for of in project.runs for number, _ in of.rounds)
    assert set(booked) == set(range(1, ROUNDS + 1))
    assert ROUNDS <= sum(booked.values()) <= ROUNDS + 1
    assert project.spent(PrivacyUnit.USER, Adversary.READER) >= Counter({event: ROUNDS})
    done, state = Checkpoints(run / "checkpoints").last()
    assert state is not None
    assert (done, state["counters"][1]) == (ROUNDS, ROUNDS)
    assert verify(run).ok
    assert verify(Path(str(recipe.privacy.ledger))).ok


def kill_and_resume_in_a_project(folder: Path, chosen: Callable[[list[Any]], list[Any]]) -> int:
    names = count(project_recipe(fresh(folder, "counted")))
    every = chosen(points(names))
    for at, torn in every:
        recipe = project_recipe(fresh(folder, f"{at}-{torn}"))
        killed(recipe, at, torn=torn)
        train(recipe, resume=True)
        check_project(recipe)
    return len(every)


@pytest.mark.slow
def test_killed_at_some_calls_a_resumed_run_ends_as_the_unbroken_one(tmp_path: Path, unbroken: Unbroken) -> None:
    assert kill_and_resume(fresh(tmp_path, "alone"), lambda every: every[3::11], unbroken) > 8
    assert kill_and_resume_in_a_project(fresh(tmp_path, "project"), lambda every: every[5::17]) > 8


@pytest.mark.slow
def test_killed_at_every_call_a_resumed_run_ends_as_the_unbroken_one(tmp_path: Path, unbroken: Unbroken) -> None:
    alone = kill_and_resume(fresh(tmp_path, "alone"), lambda every: every, unbroken)
    shared = kill_and_resume_in_a_project(fresh(tmp_path, "project"), lambda every: every)
    assert alone + shared >= 200


DIE = """
import os, signal, sys
from pathlib import Path
from tests.fedpref.test_kill_points import Kernel, project_recipe
from tests.tiny import train

with Kernel(int(sys.argv[2]), torn=True, die=lambda: os.kill(os.getpid(), signal.SIGKILL)).running():
    train(project_recipe(Path(sys.argv[1])))
"""


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.35, 0.5, 0.65, 0.8, 0.97])
def test_a_process_that_is_really_killed_leaves_books_that_go_on(tmp_path: Path, share: float) -> None:
    total = len(count(project_recipe(fresh(tmp_path, "counted"))))
    folder = fresh(tmp_path, "killed")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", DIE, str(folder), str(int(share * total))], cwd=root, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    recipe = project_recipe(folder)
    train(recipe, resume=True)
    check_project(recipe)
