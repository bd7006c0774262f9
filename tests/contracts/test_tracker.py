"""Every tracker takes every released figure, keeps what it was told, and writes nothing else."""

from __future__ import annotations

import io
import json
from abc import ABC, abstractmethod
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedpref.display import Display
from fedpref.errors import DiskError
from fedpref.terminal import LiveDisplay, PlainDisplay
from fedpref.tracking import RELEASED_FIGURES, JsonlTracker, Tracker, Trackers, WandbTracker

ROUNDS = 3


def figures(number: int) -> dict[str, Any]:
    every: dict[str, Any] = dict.fromkeys(RELEASED_FIGURES, 0.25 * number)
    return {**every, "round": number, "num_rounds": ROUNDS, "expected_cohort": 15.0}


class TrackerContract(ABC):
    """What holds for everything that released figures go to."""

    @abstractmethod
    def make(self, folder: Path) -> Tracker:
        """A tracker that may write under ``folder`` only."""

    def check(self, folder: Path) -> None:  # noqa: B027 - a tracker that leaves nothing has nothing to check
        """What it left under ``folder``."""

    def test_it_takes_every_released_figure_of_every_round(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "cwd").mkdir()
        monkeypatch.chdir(tmp_path / "cwd")
        with closing(self.make(tmp_path)) as tracker:
            for number in range(1, ROUNDS + 1):
                Trackers([tracker]).log(figures(number))
        self.check(tmp_path)
        assert list((tmp_path / "cwd").iterdir()) == []

    def test_a_round_without_a_finite_epsilon_is_fine(self, tmp_path: Path) -> None:
        some = {k: v for k, v in figures(1).items() if k not in {"epsilon_reader", "target_epsilon"}}
        with closing(self.make(tmp_path)) as tracker:
            Trackers([tracker]).log(some)

    def test_it_does_not_change_what_it_is_given(self, tmp_path: Path) -> None:
        given = figures(1)
        with closing(self.make(tmp_path)) as tracker:
            Trackers([tracker]).log(given)
        assert given == figures(1)


class TestJsonl(TrackerContract):
    def make(self, folder: Path) -> Tracker:
        return JsonlTracker(folder / "metrics.jsonl")

    def check(self, folder: Path) -> None:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert lines == [figures(n) for n in range(1, ROUNDS + 1)]

    def test_it_appends_to_what_an_interrupted_run_left(self, tmp_path: Path) -> None:
        for number in (1, 2):
            JsonlTracker(tmp_path / "metrics.jsonl").log(figures(number))
        assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2

    def test_a_disk_that_refuses_is_coded(self, tmp_path: Path) -> None:
        with pytest.raises(DiskError) as caught:
            JsonlTracker(tmp_path).log(figures(1))
        assert caught.value.code == "FP502"


class TestSilent(TrackerContract):
    def make(self, folder: Path) -> Tracker:
        return Display()


class TestPlain(TrackerContract):
    def make(self, folder: Path) -> Tracker:
        return PlainDisplay()


class TestLive(TrackerContract):
    def make(self, folder: Path) -> Tracker:
        return LiveDisplay(Console(file=io.StringIO(), force_terminal=True, width=80))


class TestWandb(TrackerContract):
    """Offline, under the folder it is given, and nothing but the figures and the public recipe."""

    @pytest.fixture(autouse=True)
    def _no_network_no_home(self, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
        home = tmp_path_factory.mktemp("home")
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.delenv("WANDB_MODE", raising=False)
        for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
            monkeypatch.setenv(name, str(home / name))

    def make(self, folder: Path) -> Tracker:
        return WandbTracker(folder, "tiny", {"seed": 3})

    def check(self, folder: Path) -> None:
        import wandb

        wandb.teardown()  # waits for wandb's own process, which otherwise writes until this one ends
        (run,) = (folder / "wandb").glob("offline-run-*")
        (record,) = run.glob("*.wandb")
        data = record.read_bytes()
        for name in RELEASED_FIGURES:
            assert name.encode() in data
