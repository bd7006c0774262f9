"""A whole run on a tiny federation, through the API."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import fedpref
from fedpref import api, tracking
from fedpref.display import Display
from fedpref.errors import DiskError
from privacy.report import verify
from tests.fedpref.conftest import speak
from tests.tiny import write_recipe


def test_a_run_leaves_a_verified_folder(tmp_path: Path, tiny_model: Path) -> None:
    display = Watched()
    run = fedpref.load_recipe(write_recipe(tmp_path, tiny_model)).run(display=display)
    assert Watched.closed == 0  # it belongs to whoever made it
    verdict = verify(run.path)
    assert verdict.ok, verdict.failed
    assert run.status["status"] == "finished"
    assert len((run.path / "metrics.jsonl").read_text().splitlines()) == 6


class Watched(Display):
    """Counts how often it is closed; stands in for wandb, too."""

    closed = 0

    def __init__(self, *_: object) -> None:
        Watched.closed = 0

    def close(self) -> None:
        Watched.closed += 1


@pytest.mark.parametrize("fails", [True, False])
def test_trackers_are_closed_once_by_whoever_opened_them_also_when_training_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    monkeypatch.setattr(tracking, "WandbTracker", Watched)
    with (
        pytest.raises(DiskError) if fails else nullcontext(),
        tracking.open_trackers(["wandb"], tmp_path, tmp_path / "metrics.jsonl", {}) as trackers,
    ):
        assert [type(t) for t in trackers] == [tracking.JsonlTracker, Watched]
        assert Watched.closed == 0
        if fails:
            raise DiskError("what", "why", "fix")
    assert Watched.closed == 1


@pytest.mark.parametrize("given", [True, False])
def test_without_a_display_the_python_door_shows_progress_and_closes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    seen: list[Display] = []
    Watched.closed = 0
    monkeypatch.setattr(api, "run", lambda *_, display, **__: seen.append(display))
    monkeypatch.setattr(api, "make_display", Watched)
    silent = fedpref.Display()
    fedpref.load_recipe(write_recipe(tmp_path, Path("m"))).run(display=silent if given else None)
    assert (seen[0] is silent) == given
    assert Watched.closed == (not given)


@pytest.mark.parametrize("ends", [DiskError("what", "why", "fix"), KeyboardInterrupt()])
def test_the_command_closes_its_display_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: BaseException
) -> None:
    def fail(*_: object, **given: Any) -> None:
        raise ends

    monkeypatch.setattr(api, "run", fail)
    monkeypatch.setattr("fedpref.terminal.make_display", Watched)
    assert speak("run", str(write_recipe(tmp_path, Path("m")))).code == (130 if "Key" in repr(ends) else 1)
    assert Watched.closed == 1
