"""Which evaluation users' votes un-noised figures may be computed from: the clients' own terms decide, not the recipe.

| client | its evaluation users |
|---|---|
| without terms | take part in the figures, as the recipe says |
| its terms refused the run, now or before it was resumed | left out |
| its terms do not say `unnoised_evaluation: true`, or have ended | left out |
| none (by file, column: no training member), where there are terms | left out: nobody answers for them |

Looks at who is a member, at files of terms, and at no vote. Under `evaluation.federated` there are no un-noised figures, and
it asks for itself (``evaluation_stage``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedpref.client.guard import client_configs
from fedpref.config import Recipe
from fedpref.data.loading import FederatedData
from fedpref.data.partition import hashed_client
from fedpref.data.preferences import Preferences
from fedpref.data.split import Split
from fedpref.errors import RunFolderError
from fedpref.journal import write_durably

REFUSED = "refused.json"


def keep_refusals(node: Path, names: Iterable[str]) -> None:
    """Note, in the node's own folder and for good, who refused the run as a whole; before any data are touched."""
    known = _refusals(node) if (node / REFUSED).exists() else set()
    write_durably(node / REFUSED, json.dumps(sorted(known | set(names))).encode(), mode=0o600)


def _refusals(node: Path) -> set[str]:
    try:
        return set(json.loads((node / REFUSED).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise RunFolderError(
            "Nobody can tell any more which clients refused this run.",
            f"The node's folder has no readable {REFUSED}, and the recipe names clients' terms.",
            "Restore the node's folder; no figure is computed from the votes of somebody who refused.",
        ) from None


@dataclass(frozen=True)
class Consent:
    """The evaluation users' records that un-noised figures may be computed from, and those that they may not."""

    split: Split
    withheld: Preferences
    people: frozenset[str]
    """Names of evaluation users that are left out, also of those without a usable record."""


def ask_for_figures(
    recipe: Recipe, digest: str, data: FederatedData, node: Path, say: Callable[[str], None]
) -> Consent:
    """Ask the clients' terms, as they are today.

    Args:
        digest: of the run's plan.
        node: the folder in which ``keep_refusals`` wrote.

    Raises:
        ParameterError: the terms cannot be read.
        RunFolderError: nobody can tell who refused the run.
    """
    split, names = data.split, list(data.clients)
    if recipe.federation.terms is None or recipe.evaluation.federated:
        return Consent(split, Preferences.concat([]), frozenset())
    willing = _willing(recipe, digest, names, node)
    if len(willing) < len(names):
        left_out = len(names) - len(willing)
        say(
            f"{left_out} of {len(names)} clients' terms allow no un-noised figures: their evaluation users are left out"
        )
    everybody = recipe.federation.partition.by == "natural" and _nobody_speaks_for_them(recipe, willing)
    masks = [_held_by(part, recipe, names, willing, everybody=everybody) for part in (split.seen, split.unseen)]
    kept = Split(split.train, split.seen.select(masks[0]), split.unseen.select(masks[1]))
    withheld = Preferences.concat([split.seen.select(~masks[0]), split.unseen.select(~masks[1])])
    return Consent(kept, withheld, _people(data, kept, withheld))


def _willing(recipe: Recipe, digest: str, names: list[str], node: Path) -> frozenset[str]:
    configs = client_configs(Path(recipe.federation.terms or ""), names)
    answers = {id(c): c.terms.check_figures(digest, date.today()) for c in configs.values()}
    no = {names[i] for i, config in configs.items() if answers[id(config)] is not None}
    return frozenset(set(names) - no - _refusals(node))


def _nobody_speaks_for_them(recipe: Recipe, willing: frozenset[str]) -> bool:
    """Under `natural` an evaluation user is a client without a file in a folder of terms; one file is everybody's."""
    return Path(recipe.federation.terms or "").is_dir() or bool(willing)


def _held_by(
    part: Preferences, recipe: Recipe, names: list[str], willing: frozenset[str], *, everybody: bool
) -> npt.NDArray[np.bool_]:
    """True for each record of an evaluation user whose client is willing, shape [n]."""
    by = recipe.federation.partition.by
    if by == "natural":
        return np.full(len(part), everybody)
    if by in {"file", "column"}:
        return np.isin(part.client, sorted(willing))
    users, inverse = np.unique(part.user, return_inverse=True)
    ok = np.array([names[hashed_client(str(user), len(names))] in willing for user in users], dtype=np.bool_)
    return ok[inverse] if len(users) else np.zeros(0, dtype=np.bool_)


def _people(data: FederatedData, kept: Split, withheld: Preferences) -> frozenset[str]:
    """Evaluation users with a withheld record, or with none at all: nobody knows whose client they are."""
    known = set(kept.seen.user.tolist()) | set(kept.unseen.user.tolist())
    return frozenset((set(data.roster.evaluation_users) - known) | set(withheld.user.tolist()))
