"""Files -> records in TRL's conversational formats, batch by batch, or as an in-memory ``datasets.Dataset``."""

from __future__ import annotations

import secrets
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow

from fedpref.data.files import Columns, Table, files_of, open_table
from fedpref.data.formats import REQUIRED, Record, UnusableRow, map_columns, records_of
from fedpref.data.pairing import pair_rated
from fedpref.data.people import is_nobody, person_of, row_name, text_of
from fedpref.data.remote import open_source
from fedpref.data.schema import DatasetSpec
from fedpref.errors import DatasetError, MissingUserError
from reward.pairs import ConversationError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Reading", "files_of", "read_dataset"]

_MESSAGES = pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())]))
_TYPES = {
    **dict.fromkeys(("prompt", "chosen", "rejected", "completion"), _MESSAGES),
    "label": pyarrow.bool_(),
    "rating": pyarrow.float64(),
    "row": pyarrow.int64(),
}


class Reading:
    """One pass over one file (or hub set, or plug-in) of a data set."""

    def __init__(self, spec: DatasetSpec, *, need_user: bool, path: Path | None = None) -> None:
        """``need_user``: records without a user are an error (privacy unit ``user``). ``path``: default the spec's own."""
        self.spec, self.need_user = spec, need_user
        self._path = path or (spec.path if spec.is_local else None)
        self.name = self._path.name if self._path else spec.name
        self.num_rows = 0
        self.members: Counter[tuple[str, str, str]] = Counter()
        """(user, client, topic) -> rows; also of people whose rows carry no preference. Complete after the pass."""
        self.problems: dict[str, list[int]] = defaultdict(list)
        """Code -> row numbers, from 1, of rows that carry no preference. Complete after the pass."""
        self._mapped: dict[str, str] = {}
        self._nobody: list[int] = []

    def tables(self) -> Iterator[pyarrow.Table]:
        """Records as Arrow tables, at most one batch of rows each (`rated`: all at once), with their row number.

        Columns: ``prompt`` (messages), the format's own, ``user_id`` (the row's number if the map names none and none is
        needed), ``topic`` and ``client`` (empty if none), ``row``.

        Raises:
            DatasetError, DigestError, BrokenFileError, MixedSchemaError, MissingUserError, NoNetworkError: coded, naming
                the file and the first bad row, never a value.
        """
        opened = open_table(self.spec, self._path) if self._path else open_source(self.spec)
        with opened as table:
            if self.spec.format == "rated":
                ratings = list(self._batches(table))
                yield pair_rated(pyarrow.concat_tables(ratings or [self._pack([])]), self.problems)
            else:
                yield from self._batches(table)
        if self._nobody and self.need_user:
            row = self._nobody[0]
            raise _no_user(self.name, f"{len(self._nobody)} of {self.num_rows} rows, first row {row}, have none")

    def _batches(self, table: Table) -> Iterator[pyarrow.Table]:
        if not table.columns:
            yield self._pack([])  # an empty file
            return
        self._mapped = map_columns(self.spec, table.columns, self.name)
        if self.need_user and "user_id" not in self._mapped:
            raise _no_user(self.name, "no column is mapped to user_id")
        first = 1
        for columns in table.batches(sorted({*self._mapped.values(), *self.spec.where})):
            n = len(next(iter(columns.values())))
            yield self._pack([r for i in range(n) if self._kept(columns, i) for r in self._row(columns, i, first + i)])
            first += n

    def _kept(self, columns: Columns, i: int) -> bool:
        return all(text_of(columns[column][i]) == value for column, value in self.spec.where.items())

    def _row(self, columns: Columns, i: int, number: int) -> list[Record]:
        row = {field: columns[column][i] for field, column in self._mapped.items()}
        user, self.num_rows = row.get("user_id"), self.num_rows + 1
        if is_nobody(user):
            self._nobody.append(number)
        name = row_name(number) if is_nobody(user) else person_of(user)
        topic, client = text_of(row.get("topic")), text_of(row.get("client"))
        self.members[name, client, topic] += 1
        owner = {"user_id": name, "topic": topic, "client": client, "row": number}
        records: list[Record] = []
        try:
            for record in records_of(self.spec, row):
                records.append(record | owner)
        except ConversationError as error:
            raise DatasetError(
                f"{self.name}: row {number} is no record.",
                error.why,
                "Mend or remove the row; TRL's formats are expected.",
            ) from None
        except UnusableRow as problem:
            self.problems[str(problem)].append(number)
        return records

    def _pack(self, records: list[Record]) -> pyarrow.Table:
        return pyarrow.table(
            {c: pyarrow.array([r[c] for r in records], _TYPES.get(c, pyarrow.string())) for c in self._names()}
        )

    def _names(self) -> list[str]:
        own = {"preference": ("prompt", "chosen", "rejected"), "ranked": ("prompt", "chosen", "rejected")}
        answer = ("answer",) if "answer" in self._mapped else ()
        return [*own.get(self.spec.format, REQUIRED[self.spec.format]), *answer, "user_id", "topic", "client", "row"]


def read_dataset(spec: DatasetSpec, *, need_user: bool, path: Path | None = None) -> Dataset:
    """Read one file of a data set whole, into memory, as Arrow; see ``Reading.tables`` for columns and errors.

    Args:
        spec: the description.
        need_user: records without a user are an error (privacy unit ``user``).
        path: the file; default: the description's own.
    """
    return as_dataset(list(Reading(spec, need_user=need_user, path=path).tables()))


def as_dataset(tables: list[pyarrow.Table]) -> Dataset:
    """Arrow tables of records -> a data set in memory, without the row numbers."""
    from datasets import Dataset
    from datasets.table import InMemoryTable

    table = pyarrow.concat_tables(tables).drop_columns(["row"])
    # The fingerprint only names caches, which there are none of: random, so that it tells nothing of private text.
    return Dataset(InMemoryTable(table), fingerprint=secrets.token_hex(8))


def _no_user(name: str, why: str) -> MissingUserError:
    return MissingUserError(
        f"{name}: records without a user_id.",
        f"The privacy unit is the user, and {why}: nobody's contribution can be bounded.",
        "Map the column that names the person under `fields.user_id`, and fill or remove the rows without.",
    )
