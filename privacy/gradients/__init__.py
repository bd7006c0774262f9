"""Exact gradients per privacy unit. The one place in this room that imports torch."""

from privacy.gradients.errors import (
    FrozenParameterError,
    GradientBackendError,
    IndivisibleBatchError,
    ObjectiveError,
    RecordsInteractError,
    RowMapError,
    UncoveredParameterError,
    UnusedParameterError,
)
from privacy.gradients.per_unit import UnitGradientEngine, per_unit_gradients
from privacy.gradients.result import UnitGradients, select_trainable

__all__ = [
    "FrozenParameterError",
    "GradientBackendError",
    "IndivisibleBatchError",
    "ObjectiveError",
    "RecordsInteractError",
    "RowMapError",
    "UncoveredParameterError",
    "UnitGradientEngine",
    "UnitGradients",
    "UnusedParameterError",
    "per_unit_gradients",
    "select_trainable",
]
