"""Who is held out: evaluation users by hash first, then topics (guarantees.md rule 18)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedpref.config import EvaluationConfig
from fedpref.data.preferences import Preferences
from fedpref.errors import NoDataError


@dataclass(frozen=True)
class Split:
    """Training records; and the evaluation users' records on training topics and on unseen ones."""

    train: Preferences
    seen: Preferences
    unseen: Preferences

    @property
    def num_evaluation_users(self) -> int:
        """People whose votes are used un-noised, for evaluation only."""
        return len(np.unique(np.concatenate([self.seen.user, self.unseen.user])))

    def public_count(self, *, federated: bool) -> dict[str, int]:
        """For the books: that number, or nothing where evaluation users are protected, too."""
        return {} if federated else {"num_evaluation_users": self.num_evaluation_users}


def hash_fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2.0**64


def is_evaluation_user(users: npt.NDArray[np.str_], config: EvaluationConfig) -> npt.NDArray[np.bool_]:
    """True for every record of an evaluation user, shape [n]."""
    names, inverse = np.unique(users, return_inverse=True)
    told = [str(name).strip() for name in names]  # without the blank of `row_name`: rows fall as they always did
    held = np.array([hash_fraction(f"{config.salt}:{name}") < config.user_fraction for name in told], dtype=np.bool_)
    return held[inverse] if len(names) else np.zeros(0, dtype=np.bool_)


def split_preferences(data: Preferences, config: EvaluationConfig) -> Split:
    """Split users first, then topics.

    Raises:
        NoDataError: an unseen topic that the data do not have.
    """
    missing = sorted(set(config.unseen_topics) - set(np.unique(data.topic).tolist()))
    if missing:
        raise NoDataError(
            f"No records of the unseen topic {missing[0]!r}.",  # a word of the recipe; those of the data are private
            "evaluation.unseen_topics must be values of the data's topic column.",
            f"It has {len(np.unique(data.topic))} other values; `fedpref data check` lists them on the holder's terminal.",
        )
    evaluation, unseen = is_evaluation_user(data.user, config), np.isin(data.topic, config.unseen_topics)
    return Split(
        data.select(~evaluation & ~unseen), data.select(evaluation & ~unseen), data.select(evaluation & unseen)
    )
