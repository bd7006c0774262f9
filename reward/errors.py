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


class RewardModelError(RewardError):
    """A folder that is no released reward model of this version."""

    code = "FP303"
