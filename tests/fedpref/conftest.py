"""One whole seeded run through the command line, shared by the tests that only look at what it left behind."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest

from fedpref.channel.base import Failure, RoundRequest
from fedpref.channel.local import LocalChannel
from fedpref.cli import main
from fedpref.config import Recipe
from fedpref.recipes import read_recipe
from privacy.rng import Stream
from privacy.sampling import PoissonSampling, Units
from tests.tiny import write_recipe

PLANTED_TEXT, PLANTED_USER = "Zebrafinch", "wintermute"


@dataclass(frozen=True)
class Spoken:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str


def speak(*arguments: str) -> Spoken:
    """``fedpref ARGUMENTS`` in this process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", ["fedpref", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return Spoken(code, out.getvalue(), err.getvalue())


@dataclass(frozen=True)
class FinishedRun:
    """A finished run, and what only the node ever knew."""

    path: Path
    recipe: Recipe
    spoken: Spoken
    messages: list[list[bytes]]
    cohorts: list[int]
    """Units of the node, all its clients together, whose coins said so, per round."""


def planted_votes() -> list[dict[str, str]]:
    """The tiny federation's votes with words in them that must not appear anywhere outside `nodes/`."""
    from tests.tiny import votes

    return [
        {
            **row,
            "chosen": f"{row['chosen']} {PLANTED_TEXT}",
            "rejected": f"{row['rejected']} {PLANTED_TEXT}",
            "user_id": f"{PLANTED_USER}-{row['user_id']}",
        }
        for row in votes(90, 4, seed=1)
    ]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> FinishedRun:
    """A seeded run with planted texts and people; every message and realised cohort is recorded on the side."""
    from tests.tiny import write_dataset

    folder = tmp_path_factory.mktemp("finished")
    data = write_dataset(folder, planted_votes())
    path = write_recipe(folder, tiny_model, privacy__rng="seeded", datasets=[str(data)])
    messages: list[list[bytes]] = []
    drawn: list[npt.NDArray[np.bool_]] = []
    exchange, select = LocalChannel.exchange, PoissonSampling.select

    def spy_exchange(self: LocalChannel, request: RoundRequest) -> list[bytes | Failure]:
        replies = exchange(self, request)
        messages.append([reply for reply in replies if isinstance(reply, bytes)])
        return replies

    def spy_select(self: PoissonSampling, stream: Stream, units: Units, number: int) -> npt.NDArray[np.bool_]:
        drawn.append(select(self, stream, units, number))
        return drawn[-1]

    with (
        mock.patch.object(LocalChannel, "exchange", spy_exchange),
        mock.patch.object(PoissonSampling, "select", spy_select),
    ):
        spoken = speak("run", str(path))
    assert spoken.code == 0, spoken.err
    recipe = read_recipe(path)
    return FinishedRun(Path(recipe.output_dir), recipe, spoken, messages, [int(mask.sum()) for mask in drawn])
