"""Keeps the feedback of a run's training users out of figures that no mechanism books (guarantees.md rule 18)."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from fedpref.config import Recipe
from fedpref.data.loading import FederatedData, load_federated
from fedpref.data.preferences import Preferences
from reward.pairs import Conversation

_NOBODY = re.compile(r"#\d+")  # what a record without a user_id is called: the number of its row


def load_all_feedback(recipe: Recipe) -> FederatedData:
    """A run's own data, with the training users' votes on unseen topics, too.

    Raises:
        CodedError: a file is gone or broken.
    """
    every_topic = recipe.evaluation.model_copy(update={"unseen_topics": ()})
    return load_federated(recipe.model_copy(update={"evaluation": every_topic}), lambda _: None)


def without_training_feedback(data: Preferences, run: FederatedData) -> tuple[Preferences, int]:
    """The records of ``data`` that are no training user's of ``run``, and how many others there were.

    Judged by who gave the feedback, not by the file: a filtered, re-ordered or re-exported copy is seen through. Limit: people
    are told apart by ``user_id`` alone, so a copy under other ids is taken for other people's.

    | record | kept |
    |---|---|
    | of a training user of the run | no |
    | of an evaluation user of the run, or of somebody unknown to it | yes |
    | without a user_id | unless a training user of the run compared the same two answers, whichever won |
    """
    members = {name for name in run.roster.users if not _NOBODY.fullmatch(name)}
    compared = {pair for client in run.clients.values() for pair in _pairs(client)}
    theirs = np.array(
        [
            pair in compared if _NOBODY.fullmatch(user) else user in members
            for user, pair in zip(data.user.tolist(), _pairs(data), strict=True)
        ],
        dtype=np.bool_,
    )
    return data.select(~theirs), int(theirs.sum())


def _pairs(data: Preferences) -> Iterator[frozenset[Conversation]]:
    for chosen, rejected in zip(data.chosen, data.rejected, strict=True):
        yield frozenset((data.texts[chosen], data.texts[rejected]))
