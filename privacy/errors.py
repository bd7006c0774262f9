"""Coded errors of the privacy room: what happened, why, and what to do about it."""

from __future__ import annotations

from typing import ClassVar


class CodedError(Exception):
    """An error that a person can act on.

    Args:
        what: what happened, one sentence.
        why: the cause as far as it is known.
        fix: what to do next.
    """

    code: ClassVar[str] = "FP000"

    def __init__(self, what: str, why: str, fix: str) -> None:
        super().__init__(f"{self.code}: {what} {why} {fix}")
        self.what, self.why, self.fix = what, why, fix

    def __reduce__(self) -> tuple[type[CodedError], tuple[str, str, str]]:
        """Errors cross process borders whole."""
        return type(self), (self.what, self.why, self.fix)

    def diagnostics(self) -> str:
        """Three lines for a terminal: what, why, what to do."""
        return f"error[{self.code}] {self.what}\n  why: {self.why}\n  fix: {self.fix}"

    def to_json(self) -> dict[str, str]:
        """The same as a flat object for scripts."""
        return {"code": self.code, "what": self.what, "why": self.why, "fix": self.fix}


class ParameterError(CodedError):
    """A number that no mechanism can work with (a rate above 1, a negative bound, NaN)."""

    code = "FP401"


class UnsupportedEventError(CodedError):
    """An event outside the closed vocabulary, or one that the accountant does not cover."""

    code = "FP402"


class AccountantDisputeError(CodedError):
    """PLD and RDP disagree in the direction that must not happen."""

    code = "FP403"


class BudgetError(CodedError):
    """The round would spend more than the budget allows; refused before it runs."""

    code = "FP410"


class CalibrationError(CodedError):
    """No noise multiplier in range reaches the target."""

    code = "FP411"


class MechanismMisuseError(CodedError):
    """A release was asked for that the reservation does not cover."""

    code = "FP412"


class TermsRefusal(CodedError):  # noqa: N818 - a refusal is an answer, not a fault
    """The client's own terms do not allow what the server asks for; ``term`` names the one that says no."""

    code = "FP413"

    def __init__(self, what: str, why: str, fix: str, *, term: str = "") -> None:
        super().__init__(what, why, fix)
        self.term = term

    def to_json(self) -> dict[str, str]:
        """The flat object, with the term."""
        return {**super().to_json(), "term": self.term}


class LabelsError(CodedError):
    """Randomised labels that were drawn and kept cannot be used as they are."""

    code = "FP414"


class LedgerError(CodedError):
    """The ledger cannot be read as an intact chain."""

    code = "FP420"


class LedgerWriteError(CodedError):
    """The ledger could not be made durable, so the round must not run."""

    code = "FP421"


class SigningError(CodedError):
    """A signing key that cannot be used, or a signature that is not its key's."""

    code = "FP422"


class SealedMessageError(CodedError):
    """Bytes that are not a well-formed sealed message."""

    code = "FP430"
