"""What each format holds, what it may be used for, and how one row of it becomes records. The names are TRL's.

| format | columns | becomes | used for |
|---|---|---|---|
| preference | prompt (or implicit), chosen, rejected | one pair | reward model, DPO |
| ranked | prompt, completions, best first (or with ratings) | a pair of any two with different places | the same |
| rated | prompt, completion, rating; one row each | a pair of any two of one person, prompt and different rating | the same |
| unpaired_preference | prompt, completion, label | itself | KTO |
| prompt_only | prompt, perhaps answer | itself | policy loop |
| prompt_completion | prompt, completion | itself | public text for standardisation and projection |

Ties (equal ratings) carry no preference: they are counted, told to the holder, and left out.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from itertools import combinations
from typing import Any, Literal

from fedpref.data.schema import DatasetSpec, FieldMap, Format
from fedpref.data.transcripts import extract_prompt, is_messages
from fedpref.errors import DatasetError, WrongFormatError
from reward.pairs import Conversation, ConversationError, as_conversation

Use = Literal["pairs", "labels", "prompts", "public text"]
Record = dict[str, Any]

REQUIRED: dict[Format, tuple[str, ...]] = {
    "preference": ("prompt", "chosen", "rejected"),
    "ranked": ("prompt", "completions"),
    "rated": ("prompt", "completion", "rating"),
    "unpaired_preference": ("prompt", "completion", "label"),
    "prompt_only": ("prompt",),
    "prompt_completion": ("prompt", "completion"),
}
USES: dict[Format, Use] = {
    "preference": "pairs",
    "ranked": "pairs",
    "rated": "pairs",
    "unpaired_preference": "labels",
    "prompt_only": "prompts",
    "prompt_completion": "public text",
}
_PLACES: dict[Use, str] = {
    "pairs": "`datasets` of a recipe with a `reward` block, and `fedpref eval --data`",
    "labels": "KTO, whose record is one labelled answer",
    "prompts": "the policy loop, by load_prompts",
    "public text": "`reward.public_data`",
}


class UnusableRow(Exception):  # noqa: N818 - no error: it ends one row, and is counted
    """A row that is well-formed and carries no preference; ``args[0]`` is the problem's code."""


def require(spec: DatasetSpec, use: Use, *, training: bool = True) -> None:
    """Refuse a data set in the wrong place.

    Raises:
        WrongFormatError: its format does not carry what is asked for, or its makers ask that nobody trains on it.
    """
    if USES[spec.format] != use:
        raise WrongFormatError(
            f"{spec.name}: has the format {spec.format}, which gives no {use}.",
            f"It is for {_PLACES[USES[spec.format]]}.",
            f"Name a set of the format {' or '.join(f for f, u in USES.items() if u == use)} here.",
        )
    if training and spec.evaluation_only:
        raise WrongFormatError(
            f"{spec.name}: is for evaluation only.",
            "Its makers ask that nobody trains on it.",
            "Use it with `fedpref eval`, and train on another set.",
        )


def has_implicit_prompt(spec: DatasetSpec, columns: list[str]) -> bool:
    """Is the prompt the common beginning of chosen and rejected?"""
    fields = spec.fields
    if spec.format != "preference":
        return False
    unmapped = "prompt" not in fields.model_fields_set and "prompt" not in columns
    return fields.prompt is None or (unmapped and {fields.chosen, fields.rejected} <= set(columns))


def map_columns(spec: DatasetSpec, columns: list[str], name: str) -> dict[str, str]:
    """Field -> column, for all fields that are read.

    Raises:
        DatasetError: the map names a column that the file does not have; the nearest is named.
    """
    fields: FieldMap = spec.fields
    needed = [key for key in REQUIRED[spec.format] if key != "prompt" or not has_implicit_prompt(spec, columns)]
    optional = ["user_id", "topic", "client"]
    optional += {"prompt_only": ["answer"], "ranked": ["ratings"]}.get(spec.format, [])
    wanted = {key: getattr(fields, key) for key in [*needed, *optional] if getattr(fields, key)}
    if fields.user_id is None and "user_id" in columns:
        wanted["user_id"] = "user_id"
    missing = {key: column for key, column in wanted.items() if column not in columns}
    missing |= {"prompt": "null"} if "prompt" in needed and fields.prompt is None else {}
    missing |= {f"where.{column}": column for column in spec.where if column not in columns}
    if missing:
        # The first line of a CSV file may be no header but somebody's text: it is only shown if it has a known name in it.
        shown = columns if not name.endswith(".csv") or set(columns) & set(wanted.values()) else []
        near = {c: n[0] for c in missing.values() if (n := difflib.get_close_matches(c, shown, n=1, cutoff=0.6))}
        hint = "".join(f" Did you mean {near[c]!r} for {c!r}?" for c in near)
        raise DatasetError(
            f"{name}: has no {', '.join(f'{key} (column {column!r})' for key, column in missing.items())}.",
            f"It has {', '.join(shown[:30])}." if shown else "A CSV file needs a header line with the columns' names.",
            f"Map the columns under `fields` in the data set's YAML, or let `fedpref data map` do it.{hint}",
        )
    return wanted


def records_of(spec: DatasetSpec, row: Record) -> Iterator[Record]:
    """The records of one row (field -> value), prompts and answers as messages.

    Raises:
        ConversationError: it is no record of the format.
        UnusableRow: it is, and carries no preference.
    """
    if spec.format == "preference":
        yield _pair(*_sides(row.get("prompt"), row["chosen"], row["rejected"]))
    elif spec.format == "ranked":
        yield from _ranked(row)
    elif spec.format == "prompt_only":
        record: Record = {"prompt": messages(as_conversation(row["prompt"], ""))}
        yield record | ({"answer": _answer(row["answer"], spec.answer_after)} if "answer" in row else {})
    else:
        said = as_conversation(row["prompt"], row["completion"])
        record = {"prompt": messages(said), "completion": _message(said)}
        if spec.format == "unpaired_preference":
            record["label"] = _label(row["label"])
        elif spec.format == "rated":
            record["rating"] = _number(row["rating"])
        yield record


def messages(said: Conversation) -> list[dict[str, str]]:
    """The prompt of a conversation in TRL's form."""
    return [{"role": role, "content": content} for role, content in said.prompt]


def _message(said: Conversation) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": said.completion}]


def _sides(prompt: Any, chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """TRL extracts the prompt if there is none, or if it is a string and the answers are whole conversations."""
    repeated = isinstance(prompt, str) and is_messages(chosen) and chosen[0]["role"] != "assistant"
    if prompt is not None and not repeated:
        return prompt, chosen, rejected
    prompt, chosen, rejected = extract_prompt(chosen, rejected)
    one_answer = all(isinstance(side, str) or _is_answer(side) for side in (chosen, rejected))
    if prompt == [] or (prompt is not None and not one_answer):
        raise UnusableRow("FP218")
    return prompt, chosen, rejected


def _is_answer(side: Any) -> bool:
    return is_messages(side) and len(side) == 1 and side[0]["role"] == "assistant"


def _pair(prompt: Any, chosen: Any, rejected: Any) -> Record:
    sides = [as_conversation(prompt, answer) for answer in (chosen, rejected)]
    return {"prompt": messages(sides[0]), "chosen": _message(sides[0]), "rejected": _message(sides[1])}


def _ranked(row: Record) -> Iterator[Record]:
    answers, ratings = row["completions"], row.get("ratings")
    if not isinstance(answers, list) or not answers:
        raise _wrong("no list of completions")
    if ratings is not None and (not isinstance(ratings, list) or len(ratings) != len(answers)):
        raise _wrong("not one rating per completion")
    worth = [-i for i in range(len(answers))] if ratings is None else [_number(value) for value in ratings]
    said = [as_conversation(row["prompt"], answer) for answer in answers]
    tied = False
    for i, j in combinations(range(len(said)), 2):
        if worth[i] == worth[j]:
            tied = True
            continue
        better, worse = (i, j) if worth[i] > worth[j] else (j, i)
        yield {"prompt": messages(said[0]), "chosen": _message(said[better]), "rejected": _message(said[worse])}
    if tied or len(said) == 1:
        raise UnusableRow("FP217")


def _label(value: Any) -> bool:
    if isinstance(value, str) and value.strip().lower() in {"true", "false", "1", "0"}:
        return value.strip().lower() in {"true", "1"}
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    raise _wrong("a label that is neither true nor false")


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise _wrong("a rating that is no number") from None
    if math.isnan(number):
        raise _wrong("a rating that is not a number")
    return number


def _answer(value: Any, mark: str) -> str:
    text = "" if value is None else str(value)
    return (text.rsplit(mark, 1)[-1] if mark else text).strip()


def _wrong(why: str) -> ConversationError:
    return ConversationError("Not a record.", f"It has {why}.", "See docs/config.md and the README's `Your own data`.")
