"""Data files, hub sets and plug-ins -> batches of columns. Streams: no more than one batch is ever held as Python objects.

Nothing is cached on disk (guarantees.md rule 16), and no message quotes a value.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pyarrow
import pyarrow.parquet

from fedpref.data.schema import DatasetSpec
from fedpref.data.spec import SUFFIXES
from fedpref.errors import BrokenFileError, DatasetError, DigestError, MixedSchemaError

BATCH = 2048  # rows
_BLOCK = 1 << 20  # bytes
_SEPARATORS = re.compile(r"[\s,]*")
Columns = dict[str, list[Any]]


class Table(Protocol):
    """An open source: its columns, and their values batch by batch, once."""

    columns: list[str]

    def batches(self, wanted: list[str]) -> Iterator[Columns]:
        """Batches of at most ``BATCH`` rows with the wanted columns only; a value is None where a row has none."""


def files_of(spec: DatasetSpec) -> list[Path]:
    """The data files of a description: its file, or the files of its folder, by name.

    Raises:
        DatasetError: nothing there, or the data are no files.
    """
    if not spec.is_local:
        raise DatasetError(f"{spec.name}: lies in no file.", f"Its source is {spec.source}.", "Name a file or folder.")
    path = spec.path
    files = [path] if not path.is_dir() else sorted(p for p in path.iterdir() if p.suffix in SUFFIXES)
    if not files or not files[0].is_file():
        raise DatasetError(
            f"{spec.name}: no data at {spec.source}.", "The file or folder is missing or empty.", "Check `source`."
        )
    return files


@contextlib.contextmanager
def open_table(spec: DatasetSpec, path: Path) -> Iterator[Table]:
    """Open a data file, whatever its ending says it is; its digest, if the description has one, is checked first.

    Raises:
        DatasetError, DigestError, BrokenFileError, MixedSchemaError: here, or while batches are drawn inside the block.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise DatasetError(
            f"{path.name}: cannot be read.", f"{error.strerror}.", "Check the path and its rights."
        ) from None
    with file, contextlib.ExitStack() as texts:
        if spec.sha256 or spec.public:
            _check_digest(file, spec, path.name)
        try:
            yield _table(file, path, texts)
        except (pyarrow.ArrowException, OSError, ValueError, csv.Error) as error:  # also UnicodeDecodeError, JSON
            raise BrokenFileError(
                f"{path.name}: is truncated or not what its ending says.",
                reason_of(error),
                f"Copy the file again; JSON and CSV must be UTF-8{_encoding_hint(file)}.",
            ) from None


def _check_digest(file: io.BufferedReader, spec: DatasetSpec, name: str) -> None:
    if spec.path.is_dir() or not spec.sha256:
        raise DigestError(
            f"{name}: cannot be checked.",
            f"The description of {spec.name} has no SHA-256 of this one file, and public data are never read unchecked.",
            "Describe one file, with its sha256; leave sha256 and public out for a folder.",
        )
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)  # the same open file is read next: what was verified is what is parsed
    if digest != spec.sha256:
        raise DigestError(
            f"{name}: is not the file that the description of {spec.name} names.",
            "Its SHA-256 differs.",
            "Restore the file, or describe the new one with its own digest.",
        )


def _table(file: io.BufferedReader, path: Path, texts: contextlib.ExitStack) -> Table:
    if path.suffix == ".parquet":
        return _Parquet(file)
    if path.suffix == ".csv":
        return _Csv(texts.enter_context(io.TextIOWrapper(file, encoding="utf-8-sig", newline="")), path.name)
    text = texts.enter_context(io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n"))
    return JsonRows(_json_array(text) if _starts_with_bracket(text) else _json_lines(text), path.name)


def reason_of(error: Exception) -> str:
    """Why a file cannot be read; pyarrow quotes the offending row or value, which is private."""
    told = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, pyarrow.ArrowException):
        told = re.split("[:'\"]", told)[0].strip()
    return f"{type(error).__name__}: {told[:160]}"


def _encoding_hint(file: io.BufferedReader) -> str:
    """For a file that starts like UTF-16: the command that converts it."""
    with contextlib.suppress(OSError, ValueError):
        file.seek(0)
        if file.read(2) in {b"\xff\xfe", b"\xfe\xff"}:
            return " (this one starts like UTF-16: iconv -f UTF-16 -t UTF-8 OLD > NEW)"
    return ""


class _Parquet:
    def __init__(self, file: io.BufferedReader) -> None:
        self._file = pyarrow.parquet.ParquetFile(file, pre_buffer=False)
        self.columns: list[str] = self._file.schema_arrow.names

    def batches(self, wanted: list[str]) -> Iterator[Columns]:
        for batch in self._file.iter_batches(batch_size=BATCH, columns=wanted):
            yield {name: batch.column(name).to_pylist() for name in wanted}


class _Csv:
    """Every value is text, as it stands: `007` is no number, and a text may have several lines."""

    def __init__(self, text: io.TextIOWrapper, name: str) -> None:
        csv.field_size_limit(sys.maxsize)  # the default refuses texts above 131,072 characters
        self._reader = csv.reader(text, strict=True)
        self.columns = next(self._reader, [])
        if len(set(self.columns)) < len(self.columns):
            raise MixedSchemaError(
                f"{name}: two columns have one name.", "The header line repeats a name.", "Rename one of them."
            )

    def batches(self, wanted: list[str]) -> Iterator[Columns]:
        places = {name: self.columns.index(name) for name in wanted}
        for rows in _chunks(self._whole_rows()):
            yield {name: [row[place] for row in rows] for name, place in places.items()}

    def _whole_rows(self) -> Iterator[list[str]]:
        for number, row in enumerate((row for row in self._reader if row), 1):
            if len(row) != len(self.columns):
                raise ValueError(f"row {number} has {len(row)} columns, the header line {len(self.columns)}")
            yield row


class JsonRows:
    """Objects, one a row. All must have the required columns, and one kind of value in each."""

    def __init__(self, rows: Iterator[dict[str, Any]], name: str) -> None:
        self._rows, self._name = rows, name
        self._first = next(rows, None)
        self.columns = sorted(self._first) if self._first is not None else []

    def batches(self, wanted: list[str]) -> Iterator[Columns]:
        """As ``Table`` says.

        Raises:
            MixedSchemaError: a row without a column that the first one has, or with a value of another kind.
        """
        kinds: dict[str, str] = {}
        number = 0
        for rows in _chunks(self._all_rows()):
            for row in rows:
                number += 1
                self._check(row, wanted, kinds, number)
            yield {name: [row.get(name) for row in rows] for name in wanted}

    def _all_rows(self) -> Iterator[dict[str, Any]]:
        if self._first is not None:
            yield self._first
        yield from self._rows

    def _check(self, row: dict[str, Any], wanted: list[str], kinds: dict[str, str], number: int) -> None:
        if ("user_id" in row) != ("user_id" in self.columns):
            wanted = [*wanted, "user_id"]
        for name in wanted:
            if (name in row) != (name in self.columns):
                raise self._mixed(number, f"has {'a' if name in row else 'no'} column {name!r}, unlike the first row")
            kind = kind_of(row.get(name))
            if kind and kinds.setdefault(name, kind) != kind:
                raise self._mixed(number, f"has a {kind} in column {name!r}, rows before it have a {kinds[name]}")

    def _mixed(self, number: int, why: str) -> MixedSchemaError:
        return MixedSchemaError(
            f"{self._name}: mixes two schemas.",
            f"Row {number} {why}.",
            "Split the file by schema and describe each part, or make its rows alike.",
        )


def kind_of(value: Any) -> str:
    """What a value is, for messages; empty for null, which goes with every kind."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "truth value"
    if isinstance(value, (int, float)):
        return "number"
    names: dict[type, str] = {str: "string", list: "list", dict: "object"}
    return names.get(type(value), type(value).__name__)


def _chunks(rows: Iterator[Any]) -> Iterator[list[Any]]:
    chunk = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == BATCH:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _json_lines(text: io.TextIOWrapper) -> Iterator[dict[str, Any]]:
    """Lines end at a line feed only: a text may hold other separators, e.g. U+2028."""
    for number, line in enumerate(text, 1):
        if line.strip():
            try:
                yield _object(json.loads(line), f"line {number}")
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}: {error}") from None


def _starts_with_bracket(text: io.TextIOWrapper) -> bool:
    start = text.read(64)
    text.seek(0)
    return start.lstrip("\ufeff \t\r\n").startswith("[")


def _json_array(text: io.TextIOWrapper) -> Iterator[dict[str, Any]]:
    """The objects of one JSON array, as they come; the array is never held whole."""
    decoder, buffer, at, number = json.JSONDecoder(), text.read(_BLOCK).lstrip()[1:], 0, 0
    while True:
        at = _SEPARATORS.match(buffer, at).end()  # type: ignore[union-attr]  # it matches the empty string too
        if buffer.startswith("]", at):
            if (buffer[at + 1 :] + text.read(_BLOCK)).strip():
                raise ValueError("something follows the array's end")
            return
        try:
            value, at = decoder.raw_decode(buffer, at)
        except json.JSONDecodeError as error:
            more = text.read(max(_BLOCK, len(buffer)))
            if not more:
                raise ValueError(f"the array breaks off or is broken in element {number + 1}: {error.msg}") from None
            buffer, at = buffer[at:] + more, 0
            continue
        number += 1
        yield _object(value, f"element {number}")


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not an object")
    return value
