"""Batches of preference pairs as tokens, for reward models and for DPO."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from reward.tokens import TokenRows

Batch = TypeVar("Batch", bound="TokenBatch")


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """Records as token rows, and whose they are. Every tensor's first dimension is the record.

    Attributes:
        rows: the tokens.
        row_unit: the privacy unit of every record, int64 [n]; added by the collator, never seen by an objective.
        weight: of every record within its unit, [n]; None is 1.
    """

    rows: TokenRows
    row_unit: Tensor
    weight: Tensor | None = None

    @property
    def model_row_unit(self) -> Tensor:
        """The unit of every row that the model is called on, int64 [rows]."""
        return self.rows.model_row_unit(self.row_unit)

    def select(self: Batch, records: Tensor) -> Batch:
        """The batch of the records of a mask (bool [n]) or of a list of numbers, with all their model rows."""
        picked: dict[str, Any] = {f.name: _picked(getattr(self, f.name), records) for f in fields(self)}
        return replace(self, **picked)

    def to(self: Batch, device: torch.device | str) -> Batch:
        """On another device."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {
            name: v.to(device) if isinstance(v, (Tensor, TokenRows)) else v for name, v in values.items()
        }
        return replace(self, **moved)

    def weighted(self, losses: Tensor) -> Tensor:
        """``weight`` times the losses, [n]."""
        return losses if self.weight is None else self.weight.to(losses.dtype) * losses


@dataclass(frozen=True, kw_only=True)
class PairBatch(TokenBatch):
    """Preference pairs: two answers a record, the preferred one first.

    Attributes:
        ref_logps: log-probabilities of both answers under the reference model, [n, 2]; computed once per record and
            cached by the runtime. Needed by DPO.
        margin: by how much the preferred answer is better (TRL's column ``margin``), [n]; None is 0.
        tie: bool [n], true where neither answer was preferred; None is nowhere.
    """

    ref_logps: Tensor | None = None
    margin: Tensor | None = None
    tie: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class SelectorBatch(TokenBatch):
    """Questions which of two answers is better: prompts that show both; the record's only answer is left empty.

    Attributes:
        label: int64 [n], 0 where the answer shown first was preferred, 1 where the second was.
        choice_ids: the tokens that name the first and the second, the same for all records.
    """

    label: Tensor
    choice_ids: tuple[int, int]


def _picked(value: object, records: Tensor) -> object:
    if isinstance(value, TokenRows):
        return value.select(records)
    return value[records] if isinstance(value, Tensor) else value
