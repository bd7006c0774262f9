"""Files -> in-memory ``datasets.Dataset`` in TRL's conversational formats. Nothing is cached on disk."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow
import pyarrow.csv
import pyarrow.parquet

from fedpref.data.spec import DatasetSpec
from fedpref.errors import BrokenFileError, DatasetError, DigestError, MissingUserError
from reward.pairs import ConversationError, as_conversation

if TYPE_CHECKING:
    from datasets import Dataset

_ANSWERS = {"preference": ("chosen", "rejected"), "prompt_completion": ("completion",), "prompt_only": ()}
SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")


def read_dataset(spec: DatasetSpec, *, need_user: bool, path: Path | None = None) -> Dataset:
    """Read one file of a data set.

    Columns of the result: ``prompt`` (messages), ``chosen`` and ``rejected`` (or ``completion``; one message each),
    ``user_id`` (a string; the row's number if the map names none and none is needed), ``topic`` and ``client`` (strings,
    empty if none).

    Args:
        spec: the description.
        need_user: records without a user are an error (privacy unit ``user``).
        path: the file; default: the description's own.

    Raises:
        DatasetError, DigestError, BrokenFileError, MissingUserError: coded, naming the file and the first bad row.
    """
    from datasets import Dataset

    file = path or spec.path
    columns = _columns(_table(file, spec), spec, file.name)
    rows = range(len(columns["prompt"]))
    answers = _ANSWERS[spec.format]
    out: dict[str, list[Any]] = {"prompt": [], **{a: [] for a in answers}}
    for i in rows:
        try:
            sides = [as_conversation(columns["prompt"][i], columns[a][i] if a else "") for a in answers or ("",)]
        except ConversationError as error:
            raise _row(file.name, i, error.why) from None
        out["prompt"].append([{"role": role, "content": content} for role, content in sides[0].prompt])
        for answer, side in zip(answers, sides, strict=False):
            out[answer].append([{"role": "assistant", "content": side.completion}])
    out["user_id"] = _users(columns.get("user_id"), len(rows), need_user, file.name)
    if "answer" in columns:
        out["answer"] = [_answer(value, spec.answer_after) for value in columns["answer"]]
    for key in ("topic", "client"):
        out[key] = [str(value) if value is not None else "" for value in columns.get(key, [""] * len(rows))]
    return Dataset.from_dict(out)


def files_of(spec: DatasetSpec) -> list[Path]:
    """The data files of a description: its file, or the files of its folder, by name.

    Raises:
        DatasetError: nothing there.
    """
    files = [spec.path] if not spec.path.is_dir() else sorted(p for p in spec.path.iterdir() if p.suffix in SUFFIXES)
    if not files or not files[0].is_file():
        raise DatasetError(
            f"{spec.name}: no data at {spec.source}.", "The file or folder is missing or empty.", "Check `source`."
        )
    return files


def _table(file: Path, spec: DatasetSpec) -> pyarrow.Table:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DatasetError(
            f"{file.name}: cannot be read.", f"{error.strerror}.", "Check the path and its rights."
        ) from None
    if spec.sha256 and file == spec.path and hashlib.sha256(data).hexdigest() != spec.sha256:
        raise DigestError(
            f"{file.name}: is not the file that the description of {spec.name} names.",
            "Its SHA-256 differs.",
            "Restore the file, or describe the new one with its own digest.",
        )
    try:
        if file.suffix == ".parquet":
            return pyarrow.parquet.read_table(pyarrow.BufferReader(data))
        if file.suffix == ".csv":
            data.decode("utf-8")
            return _csv(data, spec)
        return _json_lines(data.decode("utf-8"))
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # UnicodeDecodeError and JSON errors are ValueErrors
        raise BrokenFileError(
            f"{file.name}: is truncated or not what its ending says.",
            _reason(error),
            "Copy the file again; JSON and CSV must be UTF-8.",
        ) from None


def _reason(error: Exception) -> str:
    """Why a file cannot be read; pyarrow quotes the offending row or value, which is private."""
    told = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, pyarrow.ArrowException):
        told = re.split("[:'\"]", told)[0].strip()
    return f"{type(error).__name__}: {told[:160]}"


def _csv(data: bytes, spec: DatasetSpec) -> pyarrow.Table:
    """Every mapped column as text, as it stands: `007` is no number, and a text may have several lines."""
    columns = {column: pyarrow.string() for column in ("user_id", *spec.fields.model_dump().values()) if column}
    return pyarrow.csv.read_csv(
        pyarrow.BufferReader(data),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types=columns),
    )


def _json_lines(text: str) -> pyarrow.Table:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: a text may hold other separators, e.g. U+2028
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is not an object")
            rows.append(row)
    keys = sorted({key for row in rows for key in row})
    return pyarrow.table({key: pyarrow.array([row.get(key) for row in rows]) for key in keys})


def _columns(table: pyarrow.Table, spec: DatasetSpec, name: str) -> dict[str, list[Any]]:
    wanted = {key: getattr(spec.fields, key) for key in ["prompt", *_ANSWERS[spec.format]]}
    optional = {key: getattr(spec.fields, key) for key in ("user_id", "topic", "client", "answer")}
    if optional["user_id"] is None and "user_id" in table.column_names:
        optional["user_id"] = "user_id"
    wanted |= {key: column for key, column in optional.items() if column}
    missing = [f"{key} (column {column!r})" for key, column in wanted.items() if column not in table.column_names]
    if missing:
        raise DatasetError(
            f"{name}: has no {', '.join(missing)}.",
            "A CSV file needs a header line." if name.endswith(".csv") else f"It has {', '.join(table.column_names)}.",
            "Map the columns under `fields` in the data set's YAML.",
        )
    return {key: table.column(column).to_pylist() for key, column in wanted.items()}


def _answer(value: Any, mark: str) -> str:
    text = "" if value is None else str(value)
    return (text.rsplit(mark, 1)[-1] if mark else text).strip()


def _users(values: list[Any] | None, n: int, need_user: bool, name: str) -> list[str]:
    if values is None:
        if need_user and n:
            raise _no_user(name, "no column is mapped to user_id")
        return [f"#{i + 1}" for i in range(n)]
    if need_user:
        empty = [i for i, v in enumerate(values) if _nobody(v)]
        if empty:
            raise _no_user(name, f"{len(empty)} of {n} rows, first row {empty[0] + 1}, have none")
    return [f"#{i + 1}" if _nobody(v) else str(v) for i, v in enumerate(values)]


def _nobody(value: Any) -> bool:
    """No user: null, NaN or blank."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or not str(value).strip()


def _no_user(name: str, why: str) -> MissingUserError:
    return MissingUserError(
        f"{name}: records without a user_id.",
        f"The privacy unit is the user, and {why}: nobody's contribution can be bounded.",
        "Map the column that names the person under `fields.user_id`, and fill or remove the rows without.",
    )


def _row(name: str, row: int, why: str) -> DatasetError:
    return DatasetError(
        f"{name}: row {row + 1} is no record.", why, "Mend or remove the row; TRL's formats are expected."
    )
