"""Coded errors of secure aggregation: why a client refuses a server, and why a server aborts a round."""

from __future__ import annotations

from privacy.errors import CodedError


class MalformedMessage(CodedError):  # noqa: N818 - named after what arrived
    """Bytes that are not a message of this protocol: truncated, wrong length, unknown or missing field."""

    code = "FP471"


class ForgedMessage(CodedError):  # noqa: N818
    """A signature that the pinned key of the claimed sender did not make."""

    code = "FP472"


class ReplayRefusal(CodedError):  # noqa: N818 - a refusal is an answer, not a fault
    """Another run, an old round, a stage out of order, or a second request for a stage that was answered."""

    code = "FP473"


class PlanRefusal(CodedError):  # noqa: N818
    """The server runs another plan than the client agreed to: codec, clipping, noise, threshold or cohort bounds."""

    code = "FP474"


class CohortRefusal(CodedError):  # noqa: N818
    """A cohort that the client does not join: too small, without itself, a stranger in it, keys swapped or repeated."""

    code = "FP475"


class SurvivorsRefusal(CodedError):  # noqa: N818
    """A list of survivors that no honest server would send: too short, a stranger in it, or without the client."""

    code = "FP476"


class ConsistencyRefusal(CodedError):  # noqa: N818
    """The others did not sign the list of survivors that this client was shown."""

    code = "FP477"


class RoundAborted(CodedError):  # noqa: N818 - the outcome of a round
    """Too few clients are left; nothing was unmasked."""

    code = "FP479"


class KeyFileError(CodedError):
    """An identity key or a file of trusted keys that cannot be read or must not be overwritten."""

    code = "FP480"
