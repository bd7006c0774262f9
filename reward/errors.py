"""Coded errors of the reward and policy rooms (they cannot import those of the privacy room)."""

from __future__ import annotations

from typing import ClassVar


class RewardError(Exception):
    """An error that a person can act on: what happened, why, and what to do."""

    code: ClassVar[str] = "FP300"

    def __init__(self, what: str, why: str, fix: str) -> None:
        super().__init__(f"{self.code}: {what} {why} {fix}")
        self.what, self.why, self.fix = what, why, fix

    def __reduce__(self) -> tuple[type[RewardError], tuple[str, str, str]]:
        """Errors cross process borders whole."""
        return type(self), (self.what, self.why, self.fix)

    def diagnostics(self) -> str:
        """Three lines for a terminal: what, why, what to do."""
        return f"error[{self.code}] {self.what}\n  why: {self.why}\n  fix: {self.fix}"

    def to_json(self) -> dict[str, str]:
        """The same as a flat object for scripts."""
        return {"code": self.code, "what": self.what, "why": self.why, "fix": self.fix}


class ModelNotFoundError(RewardError):
    """No model under that path or hub name, or no network to fetch it."""

    code = "FP301"


class ModelFetchError(RewardError):
    """The embedded model could not be fetched or converted."""

    code = "FP302"


class ConversationError(RewardError):
    """A prompt or completion that is neither a string nor a list of messages."""

    code = "FP310"


class PublicDataError(RewardError):
    """Too little public text for the projection that the recipe asks for."""

    code = "FP311"


class RewardModelError(RewardError):
    """A folder that is no released reward model of this version."""

    code = "FP303"


class RewardFunctionError(RewardError):
    """A reward function that raised, or did not return one finite number (or None) per completion."""

    code = "FP304"


class PromptError(RewardError):
    """A prompt that the model cannot answer: empty, or longer than its context leaves room for."""

    code = "FP305"


class AdapterError(RewardError):
    """An adapter that does not fit the base model, or whose trainable parameters are not those that were named."""

    code = "FP306"


class PolicyTrainingError(RewardError):
    """Policy training cannot go on: nothing to learn from, or a state that this version does not read."""

    code = "FP307"


class TokenBatchError(RewardError):
    """Token records that do not make the batch an objective needs."""

    code = "FP312"


class ObjectiveNameError(RewardError):
    """An objective that is unknown, or whose loss couples the records of a batch."""

    code = "FP313"


class UnsupportedModelError(RewardError):
    """A model or adapter whose log-probabilities or scores cannot be computed by this version."""

    code = "FP314"
