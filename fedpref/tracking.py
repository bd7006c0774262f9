"""Trackers see released figures only. What may be tracked is a closed list (guarantees.md rule 8)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

from fedpref.errors import DiskError, TrackerError

RELEASED_FIGURES = frozenset(
    {
        "round",  # public
        "num_rounds",  # public
        "expected_cohort",  # sample_rate x num_units, declared; the realised cohort is secret
        "epsilon_reader",  # an upper bound for what is reserved so far, from the books
        "unit",  # public
        "delta",  # public
        "target_epsilon",  # public
        "noise_std",  # public
        "pseudo_gradient_norm",  # of the noised sum
        "next_max_grad_norm",  # under adaptive clipping, from the noised count
        "aggregation_error",  # 0 by construction; or of a run without noise, which protects nobody
        "parameter_norm",  # of the released parameters
    }
)

POLICY_FIGURES = frozenset(  # of the policy loop: computed from public prompts and released models alone
    {
        "step",
        "max_steps",
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "completion_length",
        "clipped_ratio",
        "kl",
        "grad_norm",
        "learning_rate",
        "loss",
    }
)


def is_released(figure: str) -> bool:
    """May this figure of a round be tracked?"""
    return figure in RELEASED_FIGURES


def is_policy_figure(figure: str) -> bool:
    """May this figure of a policy step be tracked? A reward function's mean is logged as ``rewards/NAME``."""
    return figure in POLICY_FIGURES or figure.startswith("rewards/")


class Tracker(Protocol):
    """Somewhere that released figures go."""

    def log(self, figures: Mapping[str, Any]) -> None:
        """One round's figures."""

    def close(self) -> None:
        """No more."""


class Trackers:
    """All trackers of a run; checks every figure against the closed list before any of them sees it. Owns none."""

    def __init__(self, trackers: Sequence[Tracker], allowed: Callable[[str], bool] = is_released) -> None:
        self._trackers, self._allowed = trackers, allowed

    def log(self, figures: Mapping[str, Any]) -> None:
        """Pass on released figures.

        Raises:
            TrackerError: a figure that is not on the list.
        """
        unknown = sorted(name for name in figures if not self._allowed(name))
        if unknown:
            raise TrackerError(
                f"{unknown[0]!r} may not be tracked.",
                "It is not on the list of released figures.",
                "Release it through a booked mechanism first, or do not log it.",
            )
        for tracker in self._trackers:
            tracker.log(figures)


class JsonlTracker:
    """``metrics.jsonl``, one line a round, always written. A resumed round replaces nothing: it appends."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def log(self, figures: Mapping[str, Any]) -> None:
        """Append a line."""
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(dict(figures), sort_keys=True) + "\n")
        except OSError as error:
            raise DiskError(
                f"{self._path.name} could not be written.", f"{error.strerror or error}.", "Free space, then --resume."
            ) from None

    def close(self) -> None:
        """Nothing is held open."""


class WandbTracker:
    """Weights & Biases, offline unless WANDB_MODE says otherwise."""

    def __init__(self, folder: Path, name: str, public_config: Mapping[str, Any]) -> None:
        """Start a run whose files stay under ``folder``."""
        import wandb

        os.environ.setdefault("WANDB_MODE", "offline")
        settings = wandb.Settings(silent=True, console="off", disable_code=True, disable_git=True)
        self._run = wandb.init(
            dir=str(folder), project="fedpref", name=name, config=dict(public_config), settings=settings
        )

    def log(self, figures: Mapping[str, Any]) -> None:
        """One step."""
        self._run.log(dict(figures), step=int(figures["round"] if "round" in figures else figures["step"]))

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


@contextmanager
def open_trackers(
    report_to: Sequence[str], folder: Path, metrics: Path, public_config: Mapping[str, Any]
) -> Iterator[list[Tracker]]:
    """``metrics.jsonl`` and what ``report_to`` names, open while this is entered and closed whatever happens in it."""
    with ExitStack() as opened:
        trackers: list[Tracker] = [opened.enter_context(closing(JsonlTracker(metrics)))]
        if "wandb" in report_to:
            trackers.append(opened.enter_context(closing(WandbTracker(folder, folder.name, public_config))))
        yield trackers
