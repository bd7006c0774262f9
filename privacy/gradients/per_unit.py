"""One backward pass -> one gradient per privacy unit, for any objective ``(model, batch) -> loss per record``.

All rows of a unit (both answers of a pair, all completions of a prompt, all pairs of a user over all micro-batches) are
summed before any norm is taken, so that clipping bounds the unit and not a row (guarantees.md rules 1 and 2).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from privacy.gradients.errors import GradientBackendError, UnusedParameterError
from privacy.gradients.independence import check_units_independent
from privacy.gradients.linear import LinearPart, check_called, linear_parts, recording, uncovered
from privacy.gradients.loop import add_by_loop
from privacy.gradients.objective import Objective, Task
from privacy.gradients.opacus_hooks import add_by_opacus
from privacy.gradients.result import UnitGradients, check_thawed
from privacy.gradients.rows import RowMap, UnitBatch

log = logging.getLogger(__name__)
Backend = Literal["book_keeping", "loop", "opacus"]


class UnitGradientEngine:
    """Forms the gradient of every privacy unit's summed loss.

    Args:
        model: what the objective is called with; its class and state stay as they are.
        objective: ``(model, batch) -> loss per record``, shape [n]; records of different units must not interact.
        trainable: name -> tensor, from ``select_trainable`` with a written list of names. Tensors of linear layers take one
            backward pass together; any other among them (soft prompts, IA3, norms, embeddings) makes the engine go unit by
            unit, which the log says once, and needs a batch with ``select``.
        backend: ``book_keeping`` (own), ``opacus`` (linear layers only), or ``loop`` (one backward pass per unit).

    Guarantees: equal to a loop of single-unit backward passes (fp64 to 1e-12, fp32 to 1e-6 of the largest entry), with and
    without gradient checkpointing (``use_reentrant=False``) and however records fall into micro-batches; sums in fp32 also
    for bf16 models; the tensors' own ``.grad`` is left alone. On the first batch with two units the engine checks that
    units do not interact (``check_units_independent``).

    | case | result |
    |---|---|
    | no records | nothing is added; the model does not run |
    | a row with NaN or inf | non-finite entries in its unit only, which ``clip_and_sum`` drops |
    | a listed tensor is frozen | FrozenParameterError |
    | a layer sees other rows than the batch names | RowMapError |
    | a listed layer is not used, or used as a bare matrix | UnusedParameterError |

    Raises:
        UncoveredParameterError: a listed tensor is not the model's.
        FrozenParameterError: a listed tensor is frozen.
        GradientBackendError: ``opacus`` for tensors outside linear layers.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        trainable: Mapping[str, nn.Parameter],
        *,
        backend: Backend = "book_keeping",
    ) -> None:
        check_thawed(trainable)
        self._task, self._backend = Task(model, objective, dict(trainable)), backend
        self._parts, others = linear_parts(model, trainable)
        self._independent = False
        if others and backend == "opacus":
            raise GradientBackendError(
                f"The backend `opacus` is offered for linear layers, not for {', '.join(others[:3])}.",
                "Soft prompts and scales broadcast over rows; its hooks do not see that.",
                'Use the backend "book_keeping", which takes the exact loop for them.',
            )
        if others and backend == "book_keeping":
            self._backend = "loop"
            log.warning(
                "%s%s: no linear layer. Gradients are formed by the exact loop, one backward pass per privacy unit.",
                ", ".join(others[:3]),
                " and others" * (len(others) > 3),
            )

    def zeros(self, num_units: int) -> UnitGradients:
        """Where the gradients of ``num_units`` units are added up."""
        return UnitGradients(self._task.trainable, num_units)

    def accumulate(self, batch: UnitBatch, into: UnitGradients) -> None:
        """Add the gradients of one (micro-)batch; a unit's records may be spread over any number of them.

        Raises:
            RowMapError, RecordsInteractError, FrozenParameterError, UnusedParameterError, ObjectiveError,
            IndivisibleBatchError, GradientBackendError: see the class.
        """
        check_thawed(self._task.trainable)
        rows = RowMap.of(batch, into.num_units)
        if not len(batch.row_unit):
            return
        if not self._independent:
            check_units_independent(self._task, batch, into.num_units)
            self._independent = len(batch.row_unit.unique()) > 1
        if self._backend == "loop":
            add_by_loop(self._task, batch, into)
        elif self._backend == "opacus":
            add_by_opacus(self._task, self._parts, batch, into)
        else:
            _add_in_one_pass(self._task, self._parts, batch, rows, into)

    def __call__(self, batch: UnitBatch, num_units: int) -> UnitGradients:
        """The gradients of one batch that holds all records of its units."""
        gradients = self.zeros(num_units)
        self.accumulate(batch, gradients)
        return gradients


def per_unit_gradients(
    model: nn.Module,
    objective: Objective,
    batch: UnitBatch,
    num_units: int,
    trainable: Mapping[str, nn.Parameter],
) -> Tensor:
    """The gradient of every unit's summed loss, flat, [num_units, d], for small trainable parts such as a reward head.

    As ``UnitGradientEngine`` with linear layers, in one call and without its check that units do not interact: for
    objectives whose own tests show that.

    Raises:
        UncoveredParameterError: a tensor is not the weight or bias of a linear layer of the model, or not that alone.
        FrozenParameterError, RowMapError, UnusedParameterError, ObjectiveError: as there.
    """
    check_thawed(trainable)
    parts, others = linear_parts(model, trainable)
    if others:
        raise uncovered(others)
    gradients = UnitGradients(trainable, num_units)
    rows = RowMap.of(batch, num_units)
    if len(batch.row_unit):
        _add_in_one_pass(Task(model, objective, trainable), parts, batch, rows, gradients)
    return gradients.flat()


def _add_in_one_pass(task: Task, parts: list[LinearPart], batch: UnitBatch, rows: RowMap, into: UnitGradients) -> None:
    with recording(parts, rows, into) as called:
        losses = task.losses(batch)
        check_called(parts, called)
        # The tensors only say where the backward pass must go: their layers form no gradient of them.
        strays = task.differentiate(losses)
    bare = [name for name, stray in zip(task.trainable, strays, strict=True) if stray is not None]
    if bare:
        raise UnusedParameterError(
            f"{', '.join(bare[:3])}{' and others' * (len(bare) > 3)} is used outside of its linear layer.",
            "The model multiplies by the bare matrix (DoRA, fused attention), which hides a part of the gradient.",
            'Use UnitGradientEngine(..., backend="loop").',
        )
