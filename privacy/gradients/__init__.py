"""Exact gradients per privacy unit. The one place in this room that imports torch."""

from privacy.gradients.per_unit import UncoveredParameterError, per_unit_gradients

__all__ = ["UncoveredParameterError", "per_unit_gradients"]
