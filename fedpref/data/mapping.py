"""A file's columns -> a description of it: names first, then the kinds of the first values. No value is written down."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fedpref.data.files import kind_of, open_table
from fedpref.data.formats import REQUIRED, USES
from fedpref.data.schema import DatasetSpec, FieldMap, Format
from fedpref.errors import DatasetError
from fedpref.journal import write_durably

SAMPLE = 200  # rows

# In the order of preference; compared in lower case with `-` and blanks as `_`.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "instruction", "query", "problem", "input", "user_prompt", "context", "task_text"),
    "chosen": ("chosen", "better", "preferred", "winner", "chosen_response", "response_chosen", "accepted", "positive"),
    "rejected": ("rejected", "worse", "dispreferred", "loser", "rejected_response", "response_rejected", "negative"),
    "completions": ("completions", "responses", "answers", "candidates", "ranked", "ranking", "ranked_responses"),
    "ratings": ("ratings", "scores", "ranks_desc"),
    "completion": ("completion", "response", "output", "answer_text", "generation", "reply", "text"),
    "label": ("label", "thumbs_up", "is_good", "liked", "desirable", "thumb"),
    "rating": ("rating", "score", "stars", "grade"),
    "answer": ("answer", "final_answer", "solution", "target", "ground_truth", "gold"),
    "user_id": (
        *("user_id", "user", "annotator", "annotator_id", "worker", "worker_id", "rater", "rater_id", "person"),
        *("evaluator", "labeler", "labeler_id", "assessor", "participant", "client_id"),
    ),
    "topic": ("topic", "domain", "category", "subject", "task", "genre", "operation"),
    "client": ("client", "organisation", "organization", "hospital", "site", "silo", "institution", "company"),
}
_KINDS = {
    **dict.fromkeys(("prompt", "chosen", "rejected", "completion"), ("string", "list")),
    **dict.fromkeys(("completions", "ratings"), ("list",)),
    "label": ("truth value", "number", "string"),
    "rating": ("number", "string"),
    **dict.fromkeys(("answer", "user_id", "topic", "client"), ("string", "number")),
}


def describe_file(path: Path, fields: Mapping[str, str]) -> tuple[DatasetSpec, list[str]]:
    """Look at a file's columns and first rows.

    Args:
        path: Parquet, JSONL, JSON or CSV.
        fields: what the user says, e.g. ``{"prompt": "frage"}``; it goes before any guess.

    Returns:
        a description, and the columns that are left unread.

    Raises:
        DatasetError: no format fits the columns, or ``fields`` names one that is not there.
    """
    probe = DatasetSpec(name=path.stem, source=str(path.resolve()), license="not stated")
    sample: dict[str, list[Any]] = {}
    with open_table(probe, path) as table:
        columns = list(table.columns)
        for batch in table.batches(columns):
            sample = {column: values[:SAMPLE] for column, values in batch.items()}
            break
    wrong = [f"{field}={column}" for field, column in fields.items() if column not in columns or field not in SYNONYMS]
    if wrong:
        raise DatasetError(
            f"{path.name}: {wrong[0]} fits nothing.",
            f"Fields are {', '.join(SYNONYMS)}; columns are those of the file's first line or schema.",
            "Give --field FIELD=COLUMN.",
        )
    spec = guess_spec(path.stem, columns, sample, fields).model_copy(update={"source": str(path.resolve())})
    used = set(spec.fields.model_dump(exclude_unset=True).values())
    return spec, [column for column in columns if column not in used]


def guess_spec(
    name: str, columns: Sequence[str], sample: Mapping[str, Sequence[Any]], fields: Mapping[str, str] | None = None
) -> DatasetSpec:
    """Columns and sample values -> a description with an empty source.

    Raises:
        DatasetError: no format fits.
    """
    found = dict(fields or {})
    for field in SYNONYMS:
        if field not in found:
            column = _column_for(field, columns, sample, set(found.values()))
            found |= {field: column} if column else {}
    shape = _format_of(found)
    if shape is None:
        shown = f": {', '.join(columns[:30])}" if found else " (a CSV file needs a header line)"  # else perhaps a text
        raise DatasetError(
            f"{name}: no format fits its columns{shown}.",
            "Pairs need chosen and rejected; ratings need prompt, completion and rating; prompts need prompt.",
            "Say what holds what: fedpref data map FILE --field chosen=COLUMN --field rejected=COLUMN.",
        )
    kept = [*REQUIRED[shape], "user_id", "topic", "client"]
    kept += {"prompt_only": ["answer"], "ranked": ["ratings"]}.get(shape, [])
    mapped: dict[str, Any] = {field: found[field] for field in kept if field in found}
    if shape == "preference" and "prompt" not in found:
        mapped["prompt"] = None
    return DatasetSpec(name=name, source="", format=shape, fields=FieldMap(**mapped), license="not stated")


def _format_of(found: Mapping[str, str]) -> Format | None:
    """The format with the most required columns whose columns are all there; an implicit prompt counts as one."""
    for shape in ("preference", "ranked", "unpaired_preference", "rated", "prompt_completion", "prompt_only"):
        needed = [field for field in REQUIRED[shape] if not (shape == "preference" and field == "prompt")]
        if all(field in found for field in needed):
            return shape
    return None


def _column_for(field: str, columns: Sequence[str], sample: Mapping[str, Sequence[Any]], taken: set[str]) -> str | None:
    """The first column whose name means the field and whose values are of a fitting kind; empty columns fit nothing."""
    plain = {column.lower().replace("-", "_").replace(" ", "_"): column for column in reversed(columns)}
    for synonym in SYNONYMS[field]:
        column = plain.get(synonym)
        if column is None or column in taken:
            continue
        values = [v for v in sample.get(column, ()) if v is not None and v == v]  # noqa: PLR0124 - drops NaN
        kinds = {kind_of(value) for value in values}
        if kinds and kinds <= set(_KINDS[field]) and _fits(field, values):
            return column
    return None


def _fits(field: str, values: Sequence[Any]) -> bool:
    if field == "label":
        return all(str(value).strip().lower() in {"true", "false", "0", "1", "0.0", "1.0"} for value in values)
    if field == "rating":
        return all(_is_number(value) for value in values)
    if field in {"user_id", "topic", "client"}:
        return any(str(value).strip() for value in values)
    return True


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def as_yaml(spec: DatasetSpec, folder: Path | None) -> str:
    """A description as YAML, its source relative to the folder it will lie in."""
    source = spec.source if folder is None else os.path.relpath(spec.source, folder.resolve())
    tree = {
        "name": spec.name,
        "source": source,
        "format": spec.format,
        "fields": spec.fields.model_dump(exclude_unset=True),
        "license": spec.license,
    }
    head = f"# Made by `fedpref data map`; {spec.format}, for {USES[spec.format]}. Check the columns, and state the licence.\n"
    return head + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def write_description(spec: DatasetSpec, out: Path) -> None:
    """Write the YAML.

    Raises:
        DatasetError: the file exists; nothing is overwritten.
    """
    if out.exists():
        raise DatasetError(f"{out}: exists.", "Descriptions are never overwritten.", "Give another name with -o.")
    write_durably(out, as_yaml(spec, out.parent).encode())
