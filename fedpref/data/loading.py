"""A recipe's data sets -> the clients' training records, and the evaluation users' records."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedpref.config import EvaluationConfig, Recipe
from fedpref.data.copies import without_copies
from fedpref.data.digests import content_digests, file_digest
from fedpref.data.formats import USES, Use, require
from fedpref.data.partition import one_client_each, partition
from fedpref.data.preferences import Preferences, check_records, problems_of
from fedpref.data.publicity import refuse_private_as_public
from fedpref.data.reading import Reading, as_dataset, files_of, read_dataset
from fedpref.data.single import check_single
from fedpref.data.spec import DatasetSpec, find_dataset
from fedpref.data.split import Split, is_evaluation_user, split_preferences
from fedpref.errors import CODED_ERRORS, NoDataError, UnsupportedPlanError
from policy.registry import BatchKind
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
    values: dict[str, dict[str, str]] = field(default_factory=dict)
    """`topic` and `client` -> member -> the value that most of the member's rows have: what partitions go by."""
    evaluation_users: tuple[str, ...] = ()

    @classmethod
    def of(cls, rows: Counter[tuple[str, str, str]], evaluation: EvaluationConfig) -> Roster:
        """Members other than evaluation users; ``rows`` counts (user, client, topic) over the rows of the files."""
        users = np.array(sorted({user for user, _, _ in rows}), dtype=np.str_)
        train = set(users[~is_evaluation_user(users, evaluation)].tolist())
        kept = {key: n for key, n in rows.items() if key[0] in train}
        values = {"client": _most(kept, 1), "topic": _most(kept, 2)}
        clients = tuple(sorted({client for _, client, _ in kept}))
        held = tuple(sorted(set(users.tolist()) - train))
        return cls(tuple(sorted(train)), clients, sum(kept.values()), values, held)


def _most(rows: dict[tuple[str, str, str], int], place: int) -> dict[str, str]:
    """User -> most frequent client (place 1) or topic (2), by that user's own rows; the first by name if several are."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for key, n in rows.items():
        counts[key[0]][key[place]] += n
    return {user: min(of, key=lambda value: (-of[value], value)) for user, of in counts.items()}


@dataclass(frozen=True)
class FederatedData:
    """Client name -> training records (perhaps none); what is held out; who is a member."""

    clients: dict[str, Preferences]
    split: Split
    roster: Roster

    def num_units(self, unit: PrivacyUnit) -> int:
        """Members: people, records as filed, or clients. Zeroing out somebody's records does not change it."""
        if unit is PrivacyUnit.CLIENT:
            return len(self.clients)
        return len(self.roster.users) if unit is PrivacyUnit.USER else self.roster.num_records


def load_federated(recipe: Recipe, warn: Warn) -> FederatedData:
    """Read, check, split (users first, then topics), partition.

    ``warn`` is told, on the machine that holds the data, which records and clients contribute nothing and why.

    Raises:
        CodedError: a shared file is unreadable, or nothing is left to train on. With `partition.by: file`, a broken
            file only silences its own client.
    """
    specs = [find_dataset(name) for name in recipe.datasets]
    for spec in specs:
        check_use(spec, recipe)
        _one_record_one_pair(spec, recipe)
    _no_file_twice(specs, recipe)
    rows: Counter[tuple[str, str, str]] = Counter()
    if recipe.federation.partition.by == "file":
        holdings = _one_client_per_file(specs, recipe, warn, rows)
        parts = _each_once(list(holdings), list(holdings.values()), specs, recipe, warn)
        holdings = dict(zip(holdings, parts, strict=True))
        data = Preferences.concat(list(holdings.values()))
    else:
        holdings = {}
        files = [(spec, file) for spec in specs for file in _files(spec)]
        names = [spec.name if file is None else file.name for spec, file in files]
        parts = [_read(spec, file, recipe, warn, rows) for spec, file in files]
        data = Preferences.concat(_each_once(names, parts, specs, recipe, warn))
    split = split_preferences(data, _without_lost_topics(recipe.evaluation, holdings, data, warn))
    if not len(split.train):
        raise NoDataError(
            "No training records are left.",
            "All records were left out, or belong to evaluation users or unseen topics.",
            "Check evaluation.user_fraction and evaluation.unseen_topics, and the warnings above.",
        )
    roster = Roster.of(rows, recipe.evaluation)
    if holdings:
        if recipe.privacy.unit is PrivacyUnit.USER:
            one_client_each(data)
        clients = {name: split_preferences_of(part, recipe) for name, part in holdings.items()}
    else:
        clients = partition(
            split.train, recipe.federation.partition, roster.users, roster.clients, values=roster.values
        )
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


def check_use(spec: DatasetSpec, recipe: Recipe) -> None:
    """Refuse a data set that does not carry what the recipe's objective learns from.

    Pairs serve every objective of completions: KTO takes each answer by itself, SFT the better one.

    Raises:
        WrongFormatError: with the formats that would do.
    """
    fit = _FITS["pairs" if recipe.training is None else recipe.training.spec.batch]
    given = USES[spec.format]
    require(spec, given if given in fit else fit[0])


_FITS: dict[BatchKind, tuple[Use, ...]] = {
    "pairs": ("pairs",),
    "choices": ("pairs",),
    "unpaired": ("labels", "pairs"),
    "completions": ("public text", "pairs"),
    "groups": ("prompts",),
}


def _files(spec: DatasetSpec) -> list[Path | None]:
    """The files of a data set; one None if it lies in none."""
    return [*files_of(spec)] if spec.is_local else [None]


def _one_record_one_pair(spec: DatasetSpec, recipe: Recipe) -> None:
    """A ranked list or a rating makes several pairs: bounding each pair would not bound the record."""
    if recipe.privacy.unit is PrivacyUnit.EXAMPLE and spec.format in {"ranked", "rated"}:
        raise UnsupportedPlanError(
            f"{spec.name}: records of the format {spec.format} make several pairs each.",
            "Under privacy.unit: example every pair is clipped by itself, so a record would count several times.",
            "Set privacy.unit: user, or turn the records into pairs of the format preference first.",
        )


def _no_file_twice(specs: list[DatasetSpec], recipe: Recipe) -> None:
    """One content, one place: not twice among the private files (a copy counts), and never private and public at once.

    By their bytes, before anything is read; by their records afterwards, see ``_each_once``.
    """
    files = [name for spec in specs for name in _contents(spec)]
    twice = sorted(name for digest, name in files if [d for d, _ in files].count(digest) > 1)
    if twice:
        raise UnsupportedPlanError(
            f"{twice[0]} is named twice, or is a copy of another data file.",
            "Each of its records would count twice, and its bound only once.",
            "Name each data file once under `datasets`.",
        )
    declared = {digest for spec in _public(recipe) for digest, _ in _contents(spec)}
    both = sorted(name for digest, name in files if digest in declared)
    if both:
        raise UnsupportedPlanError(
            f"{both[0]} is private feedback, and named as public data as well.",
            "Whatever shapes the model as public text is protected by nothing (guarantees.md rule 19).",
            "Name public data that hold nobody's feedback.",
        )


def _public(recipe: Recipe) -> list[DatasetSpec]:
    policy = recipe.policy
    prompts = (*policy.prompts, *(policy.test_prompts or ())) if policy else ()
    return [find_dataset(name) for name in (*recipe.public_text, *prompts)]


def _each_once(
    names: list[str], parts: list[Preferences], specs: list[DatasetSpec], recipe: Recipe, warn: Warn
) -> list[Preferences]:
    """The records of every file, each record in one place."""
    refuse_private_as_public(specs, parts, _public(recipe))
    kept, told = without_copies(names, parts, recipe)
    for line in told:
        warn(line)
    return kept


def _contents(spec: DatasetSpec) -> list[tuple[str, str]]:
    """(digest of the content, name to show) of every file; a data set on the hub by its source and revision."""
    if not spec.is_local:
        return [(digest, digest) for digest in sorted(content_digests(spec))]
    return [(file_digest(file), file.name) for file in files_of(spec)]


def _one_client_per_file(
    specs: list[DatasetSpec], recipe: Recipe, warn: Warn, rows: Counter[tuple[str, str, str]]
) -> dict[str, Preferences]:
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


def _read(
    spec: DatasetSpec, path: Path | None, recipe: Recipe, warn: Warn, rows: Counter[tuple[str, str, str]]
) -> Preferences:
    reading = Reading(spec, need_user=recipe.privacy.unit is PrivacyUnit.USER, path=path)
    tables = list(reading.tables())
    rows.update(reading.members)
    numbers = np.concatenate([table.column("row").to_numpy() for table in tables])
    randomized = recipe.privacy.labels == "randomized_response"
    if USES[spec.format] == "pairs":
        data, problems = check_records(as_dataset(tables), numbers, whichever_won=randomized)
    else:
        data, problems = check_single(as_dataset(tables), numbers)
    for problem in (*problems_of(reading.problems), *problems):
        warn(f"{reading.name}: {problem.describe()}")
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
