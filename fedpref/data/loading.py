"""A recipe's data sets -> the clients' training records, and the evaluation users' records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedpref.config import EvaluationConfig, Recipe
from fedpref.data.partition import one_client_each, partition
from fedpref.data.preferences import Preferences, check_records
from fedpref.data.reading import files_of, read_dataset
from fedpref.data.spec import DatasetSpec, find_dataset
from fedpref.data.split import Split, is_evaluation_user, split_preferences
from fedpref.errors import CODED_ERRORS, NoDataError, UnsupportedPlanError
from privacy.errors import CodedError
from privacy.units import PrivacyUnit
from reward.errors import RewardError
from reward.pairs import Conversation, as_conversation

Warn = Callable[[str], None]


@dataclass(frozen=True)
class Roster:
    """Who is a member, by the files' rows alone: public under zero-out, whatever becomes of anybody's records later."""

    users: tuple[str, ...]
    clients: tuple[str, ...]
    num_records: int

    @classmethod
    def of(cls, users: npt.NDArray[np.str_], clients: npt.NDArray[np.str_], evaluation: EvaluationConfig) -> Roster:
        """Members other than evaluation users; one entry per row of the files."""
        train = ~is_evaluation_user(users, evaluation)
        names = np.unique(clients[train]).tolist()
        return cls(tuple(np.unique(users[train]).tolist()), tuple(names), int(train.sum()))


@dataclass(frozen=True)
class FederatedData:
    """Client name -> training records (perhaps none); what is held out; who is a member."""

    clients: dict[str, Preferences]
    split: Split
    roster: Roster

    def num_units(self, unit: PrivacyUnit) -> int:
        """Members: people, or records as filed. Zeroing out somebody's records does not change it."""
        return len(self.roster.users) if unit is PrivacyUnit.USER else self.roster.num_records


def load_federated(recipe: Recipe, warn: Warn) -> FederatedData:
    """Read, check, split (users first, then topics), partition.

    ``warn`` is told, on the machine that holds the data, which records and clients contribute nothing and why.

    Raises:
        CodedError: a shared file is unreadable, or nothing is left to train on. With `partition.by: file`, a broken
            file only silences its own client.
    """
    specs = [find_dataset(name) for name in recipe.datasets]
    _no_file_twice(specs)
    rows = _Rows([], [])
    if recipe.federation.partition.by == "file":
        holdings = _one_client_per_file(specs, recipe, warn, rows)
        data = Preferences.concat(list(holdings.values()))
    else:
        holdings = {}
        data = Preferences.concat([_read(spec, file, recipe, warn, rows) for spec in specs for file in files_of(spec)])
    split = split_preferences(data, _without_lost_topics(recipe.evaluation, holdings, data, warn))
    if not len(split.train):
        raise NoDataError(
            "No training records are left.",
            "All records were left out, or belong to evaluation users or unseen topics.",
            "Check evaluation.user_fraction and evaluation.unseen_topics, and the warnings above.",
        )
    roster = Roster.of(np.array(rows.users, dtype=np.str_), np.array(rows.clients, dtype=np.str_), recipe.evaluation)
    if holdings:
        if recipe.privacy.unit is PrivacyUnit.USER:
            one_client_each(data)
        clients = {name: split_preferences_of(part, recipe) for name, part in holdings.items()}
    else:
        clients = partition(split.train, recipe.federation.partition, roster.users, roster.clients)
    for name, part in clients.items():
        if not len(part):
            warn(f"warning[FP215] client {name} has no training records: it contributes zero in every round")
    return FederatedData(clients, split, roster)


def _without_lost_topics(
    evaluation: EvaluationConfig, holdings: dict[str, Preferences], data: Preferences, warn: Warn
) -> EvaluationConfig:
    """A client that is silenced may take an unseen topic with it; that is no reason to stop the others."""
    if all(len(part) for part in holdings.values()):
        return evaluation
    lost = [topic for topic in evaluation.unseen_topics if topic not in data.topic]
    for topic in lost:
        warn(f"warning[FP216] no client that can be read has records of the unseen topic {topic!r}: not evaluated")
    kept = tuple(topic for topic in evaluation.unseen_topics if topic not in lost)
    return evaluation.model_copy(update={"unseen_topics": kept})


def split_preferences_of(part: Preferences, recipe: Recipe) -> Preferences:
    """A client's own training records; topics that it does not have are no error for it."""
    present = tuple(t for t in recipe.evaluation.unseen_topics if t in part.topic)
    return split_preferences(part, recipe.evaluation.model_copy(update={"unseen_topics": present})).train


@dataclass(frozen=True)
class _Rows:
    """User and client of every row read so far, usable or not."""

    users: list[str]
    clients: list[str]


def _no_file_twice(specs: list[DatasetSpec]) -> None:
    files = [file.resolve() for spec in specs for file in files_of(spec)]
    twice = sorted({file.name for file in files if files.count(file) > 1})
    if twice:
        raise UnsupportedPlanError(
            f"{twice[0]} is named twice.",
            "Each of its records would count twice, and its bound only once.",
            "Name each data file once under `datasets`.",
        )


def _one_client_per_file(specs: list[DatasetSpec], recipe: Recipe, warn: Warn, rows: _Rows) -> dict[str, Preferences]:
    holdings: dict[str, Preferences] = {}
    for spec in specs:
        for file in files_of(spec):
            client = file.stem if file.stem not in holdings else f"{spec.name}/{file.name}"
            try:
                holdings[client] = _marked(_read(spec, file, recipe, warn, rows), client)
            except CODED_ERRORS as error:
                warn(_silenced(client, error))
                holdings[client] = Preferences.concat([])
    return holdings


def _silenced(client: str, error: CodedError | RewardError) -> str:
    return f"warning[{error.code}] client {client} contributes zero in every round: {error.what} {error.why} fix: {error.fix}"


def _marked(data: Preferences, client: str) -> Preferences:
    names = np.full(len(data), client)
    return Preferences(data.texts, data.chosen, data.rejected, data.user, data.topic, names)


def _read(spec: DatasetSpec, path: Path, recipe: Recipe, warn: Warn, rows: _Rows) -> Preferences:
    dataset = read_dataset(spec, need_user=recipe.privacy.unit is PrivacyUnit.USER, path=path)
    rows.users.extend(dataset["user_id"])
    rows.clients.extend(dataset["client"])
    data, problems = check_records(dataset)
    for problem in problems:
        warn(f"{path.name}: {problem.describe()}")
    return data


def load_public(name: str, leave_out_topics: tuple[str, ...]) -> list[Conversation]:
    """Public (prompt, completion) texts, without those of unseen topics.

    Raises:
        DatasetError: not declared public, or not of the format `prompt_completion`.
    """
    from fedpref.errors import DatasetError

    spec = find_dataset(name)
    if not spec.public or spec.format != "prompt_completion":
        raise DatasetError(
            f"{spec.name}: is not declared as public (prompt, completion) text.",
            "Standardisation and projection may only see public text (guarantees.md rule 19).",
            "Set `public: true`, `format: prompt_completion`, sha256, license and reason in its YAML, if that is true.",
        )
    rows = read_dataset(spec, need_user=False)
    return [as_conversation(r["prompt"], r["completion"]) for r in rows if r["topic"] not in leave_out_topics]
