"""Keeps the feedback of a run's training users out of figures that no mechanism books (guarantees.md rule 18)."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from fedpref.config import Recipe
from fedpref.data.digests import content_digests
from fedpref.data.loading import FederatedData, load_federated
from fedpref.data.people import is_named
from fedpref.data.preferences import Preferences
from fedpref.data.spec import find_dataset
from fedpref.errors import RunFolderError
from fedpref.journal import write_durably
from reward.pairs import Conversation

DIGESTS = "data.json"


def keep_data_digests(recipe: Recipe, node: Path, *, begun: bool) -> None:
    """Keep, in the node's own folder, what the data files are before the run is trained on them; for good.

    Args:
        begun: a book was opened: somebody may have been trained on, and the files must be what they were.

    Raises:
        RunFolderError: they are not.
    """
    if begun:
        check_data_unchanged(recipe, node)
    else:
        write_durably(node / DIGESTS, json.dumps(_data_digests(recipe)).encode(), mode=0o600)


def _data_digests(recipe: Recipe) -> dict[str, list[str]]:
    return {name: sorted(content_digests(find_dataset(name))) for name in recipe.datasets}


def check_data_unchanged(recipe: Recipe, node: Path) -> None:
    """Who was trained on is read off the run's data files: they must be those of the run.

    Raises:
        RunFolderError: a data file changed since, or nobody knows what it was.
    """
    try:
        kept = json.loads((node / DIGESTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        kept = None
    if kept != _data_digests(recipe):
        raise RunFolderError(
            "Nobody can tell any more whom this run was trained on.",
            "A data file of the run changed since, or the node's folder does not say what it was.",
            "Restore the run's data files; figures are never computed from a training user's feedback (rule 18).",
        )


def load_all_feedback(recipe: Recipe) -> FederatedData:
    """A run's own data, with the training users' votes on unseen topics, too.

    Under federated evaluation everybody counts as a training user: no figure is computed from anybody's raw votes.

    Raises:
        CodedError: a file is gone or broken.
    """
    changes: dict[str, object] = {"unseen_topics": ()}
    if recipe.evaluation.federated:
        changes["user_fraction"] = 0.0
    whole = recipe.evaluation.model_copy(update=changes)
    return load_federated(recipe.model_copy(update={"evaluation": whole}), lambda _: None)


def without_training_feedback(
    data: Preferences, run: FederatedData, withheld: Preferences | None = None, people: Collection[str] = ()
) -> tuple[Preferences, int]:
    """The records of ``data`` that are no training user's of ``run``, and how many others there were.

    ``withheld`` and ``people``: evaluation users who count like training users, because their client's terms say so.

    Judged by who gave the feedback, not by the file: a filtered, re-ordered or re-exported copy is seen through. Limit: people
    are told apart by ``user_id`` alone, so a copy under other ids is taken for other people's.

    | record | kept |
    |---|---|
    | of a training user of the run | no |
    | of an evaluation user of the run, or of somebody unknown to it | yes |
    | without a user_id | unless a training user of the run compared the same two answers, whichever won |
    """
    members = {name for name in (*run.roster.users, *people) if is_named(name)}
    parts = [*run.clients.values(), *([] if withheld is None else [withheld])]
    compared = {pair for part in parts for pair in _pairs(part)}
    theirs = np.array(
        [
            user in members if is_named(user) else pair in compared
            for user, pair in zip(data.user.tolist(), _pairs(data), strict=True)
        ],
        dtype=np.bool_,
    )
    return data.select(~theirs), int(theirs.sum())


def _pairs(data: Preferences) -> Iterator[frozenset[Conversation]]:
    for chosen, rejected in zip(data.chosen, data.rejected, strict=True):
        yield frozenset((data.texts[chosen], data.texts[rejected]))
