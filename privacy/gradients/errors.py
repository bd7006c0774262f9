"""Coded errors of per-unit gradients. They name tensors and layers, never how many rows or units a batch had."""

from __future__ import annotations

from privacy.errors import CodedError


class UncoveredParameterError(CodedError):
    """A listed tensor that is not part of the model."""

    code = "FP440"


class RowMapError(CodedError):
    """The rows that the model saw are not the rows whose units the batch names."""

    code = "FP441"


class RecordsInteractError(CodedError):
    """The loss of one unit depends on the rows of another, so that no clipping of units bounds anything."""

    code = "FP442"


class FrozenParameterError(CodedError):
    """A listed tensor that does not require a gradient; its contribution would be zeros, silently."""

    code = "FP443"


class UnusedParameterError(CodedError):
    """A listed tensor that no layer used, or that was used behind its layer's back."""

    code = "FP444"


class GradientBackendError(CodedError):
    """The chosen backend is missing, or cannot form these gradients."""

    code = "FP445"


class ObjectiveError(CodedError):
    """An objective that does not return one loss per record."""

    code = "FP446"


class IndivisibleBatchError(CodedError):
    """The exact loop needs a batch that can be cut into units, and this one cannot."""

    code = "FP447"
