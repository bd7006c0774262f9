"""An objective from elsewhere, tried on made-up records before anything is booked: does one record move another's loss?

Clipping a person's gradient bounds their influence only if it is a function of their own records (guarantees.md rule 13).
The objectives of this version have tests that show it; another package's is tried here, at random parameters (at the first
ones policy and reference agree, and much that couples records would not show). No proof: what couples only other records
than these, or fainter than 1 part in 1,000, stays unseen.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedpref.client.groups import make_material
from fedpref.client.material import Runtime
from fedpref.client.records import NodeRecords, prepare_records
from fedpref.config_training import TrainingConfig
from fedpref.data.preferences import Preferences
from policy.rewards import WeightedRewards
from privacy.gradients.errors import ObjectiveError, RecordsInteractError
from privacy.gradients.independence import check_units_independent
from privacy.gradients.objective import Objective, Task
from privacy.units import PrivacyUnit
from reward.pairs import Conversation

N = 5
_SPREAD = 0.05  # of the random parameters
_FAINTEST = {torch.bfloat16: 5e-2}  # of 1 + |loss|; what padding and neighbours do to rounding is less
_WORDS = ("Bread", "is baked in an oven", "early", "and sold warm", "in the village", "by people who like it")


def check_objective(config: TrainingConfig, runtime: Runtime) -> None:
    """Permute and drop neighbours, ask twice, double the weights, and look for gradients in other records' rows.

    Raises:
        RecordsInteractError: one record moves another's loss or gradient.
        ObjectiveError: it raises, keeps a state, or does not return one finite, weighted loss per record.
    """
    objective = _guarded(config)
    with _random_parameters(runtime):
        batch = _batch(config, runtime)
        losses = _losses(config, runtime, objective, batch)
        _check_values(config, runtime, objective, batch, losses)
        task = Task(runtime.part.model, objective, runtime.part.parameters)
        try:
            check_units_independent(task, batch, N)
        except RecordsInteractError:
            raise _couples(config.objective) from None


def _check_values(config: TrainingConfig, runtime: Runtime, objective: Objective, batch: Any, losses: Tensor) -> None:
    def again(other: Any) -> Tensor:
        return _losses(config, runtime, objective, other)

    if not _close(again(batch), losses):
        raise _wrong(config.objective, "says something else of the same records when it is asked again")
    if not _close(again(replace(batch, weight=2 * batch.weight)), 2 * losses):
        raise _wrong(config.objective, "leaves out batch.weight; return batch.weighted(losses)")
    order = torch.arange(len(losses), device=losses.device).flip(0)
    if not _close(again(batch.select(order)), losses[order]):
        raise _couples(config.objective)
    for record in order:
        if not _close(again(batch.select(record[None])), losses[record[None]]):
            raise _couples(config.objective)


def _losses(config: TrainingConfig, runtime: Runtime, objective: Objective, batch: Any) -> Tensor:
    with torch.no_grad():
        losses = objective(runtime.part.model, batch)
    if not isinstance(losses, Tensor) or losses.shape != batch.row_unit.shape:
        raise _wrong(config.objective, "does not return one loss per record, shape [n]")
    if not bool(losses.isfinite().all()):
        raise _wrong(config.objective, "returns NaN or infinity for ordinary text")
    return losses


def _close(found: Tensor, expected: Tensor) -> bool:
    faintest = _FAINTEST.get(expected.dtype, 1e-3)
    return bool(((found - expected).abs() <= faintest * (1 + expected.abs())).all())


def _guarded(config: TrainingConfig) -> Objective:
    """The objective, made once; whatever it raises is named."""

    def named(call: Callable[..., Any], *given: Any) -> Any:
        try:
            return call(*given)
        except Exception as error:  # another package's code may raise anything; the records are made up
            raise _wrong(config.objective, f"raises {type(error).__name__}: {str(error)[:160]}") from error

    objective = named(config.spec, config.settings)
    return lambda model, batch: named(objective, model, batch)


def _batch(config: TrainingConfig, runtime: Runtime) -> Any:
    every, seeds = np.arange(N), itertools.count()
    rewards = WeightedRewards({"made up": _made_up}, (1.0,)) if config.samples else None
    material = make_material(config, runtime, _records(), rewards, lambda: next(seeds))
    material.prepare(every)
    runtime.part.thaw()
    return material.batch(every, torch.arange(N), torch.linspace(0.5, 1.0, N))


def _made_up(completions: Any, **columns: Any) -> list[float]:
    del columns
    return [float(i * i) for i in range(len(completions))]


def _records() -> NodeRecords:
    """N people of one vote each, of unequal lengths."""
    texts = tuple(
        Conversation((("user", " ".join(_WORDS[: 1 + i])),), " ".join(_WORDS[i % 3 : 3 + i % 4 + side]))
        for i in range(N)
        for side in (0, 1)
    )
    users, blank = np.array([f"person {i}" for i in range(N)], dtype=np.str_), np.full(N, "", dtype=np.str_)
    votes = Preferences(texts, np.arange(0, 2 * N, 2), np.arange(1, 2 * N, 2), users, blank, blank)
    return prepare_records({"made up": votes}, PrivacyUnit.USER, 1)


@contextmanager
def _random_parameters(runtime: Runtime) -> Iterator[None]:
    part = runtime.part
    noise = torch.randn(part.start.shape, generator=torch.Generator().manual_seed(0))
    part.load(part.start + _SPREAD * noise)
    try:
        yield
    finally:
        part.load(part.start)
        part.thaw()


def _couples(name: str) -> RecordsInteractError:
    return RecordsInteractError(
        f"The objective {name!r} couples the records of a batch.",
        "On made-up records, one record's loss or gradient changes with its neighbours: clipping a person's gradient would "
        "bound nothing (guarantees.md rule 13).",
        "Let every loss be a function of its own record; no means, ranks or normalisers over the batch.",
    )


def _wrong(name: str, why: str) -> ObjectiveError:
    return ObjectiveError(
        f"The objective {name!r} {why}.",
        "It was tried on made-up records, before anything was booked.",
        "Mend it: (model, batch) -> one loss per record, a pure function of that record and the parameters.",
    )
