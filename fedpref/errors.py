"""Coded errors of the federation room, and the tuple of all coded errors for whoever prints them."""

from __future__ import annotations

from privacy.errors import CodedError
from reward.errors import RewardError

CODED_ERRORS = (CodedError, RewardError)

WARNINGS = {
    "FP211": "an empty prompt or answer",
    "FP212": "chosen and rejected are the same text",
    "FP213": "the same person gave the same vote again",
    "FP214": "the same person voted both ways on one pair",
    "FP215": "a client without training records",
    "FP216": "an unseen topic that no readable client has records of",
    "FP217": "a tie, or an answer with nothing to compare it with",
    "FP218": "chosen and rejected part before the last answer",
    "FP219": "a record that another data file holds too",
    "FP220": "a record whose prompt the model's chat template refuses",
}
"""Codes of what is told to the holder of the data and stops nothing."""


class RecipeError(CodedError):
    """A recipe that cannot be read: unknown key, wrong type, impossible combination."""

    code = "FP101"


class RecipeNotFoundError(CodedError):
    """No recipe of that name or path."""

    code = "FP102"


class UnsupportedPlanError(CodedError):
    """A recipe that is well-formed but that this version cannot hold to."""

    code = "FP103"


class DatasetError(CodedError):
    """A data set that cannot be found, read or mapped."""

    code = "FP201"


class DigestError(CodedError):
    """A data file is not the file that its description names."""

    code = "FP202"


class BrokenFileError(CodedError):
    """A truncated or otherwise unreadable data file."""

    code = "FP203"


class MissingUserError(CodedError):
    """Records without a user_id, where the privacy unit is the user."""

    code = "FP204"


class NoDataError(CodedError):
    """Nothing is left to train on or to evaluate."""

    code = "FP205"


class MixedSchemaError(CodedError):
    """Rows of one data file that do not have the same columns of the same kind."""

    code = "FP206"


class WrongFormatError(CodedError):
    """A data set used for something that its format does not carry."""

    code = "FP207"


class NoNetworkError(CodedError):
    """A data set on the hub, and no way to it."""

    code = "FP208"


class TooFewClientsError(CodedError):
    """Rounds of secure aggregation that do not come about: too few clients answer."""

    code = "FP505"


class RunFolderError(CodedError):
    """A run folder that is finished, half-finished, foreign, or of another version; or a round for another model."""

    code = "FP501"


class DiskError(CodedError):
    """The disk refused; nothing half-written is taken for whole."""

    code = "FP502"


class TrackerError(CodedError):
    """A tracker was asked for something that is not a released figure."""

    code = "FP503"


class DestinationError(CodedError):
    """Something is already where a file shall be written, and would be lost."""

    code = "FP504"


class PythonVersionError(CodedError):
    """A Python that this package does not run on."""

    code = "FP601"
