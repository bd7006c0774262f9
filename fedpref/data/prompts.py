"""Public prompts for the policy loop (guarantees.md rules 13 and 19)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedpref.data.formats import require
from fedpref.data.reading import read_dataset
from fedpref.data.spec import find_dataset
from fedpref.errors import DatasetError, NoDataError

if TYPE_CHECKING:
    from datasets import Dataset


def load_prompts(name: str, leave_out_topics: tuple[str, ...] = (), *, training: bool = True) -> Dataset:
    """A public prompt-only data set, each prompt once, in the file's order; in memory only.

    Columns: ``prompt`` (messages, the last one the user's), ``topic`` (string, empty if none) and, if the description maps
    one, ``answer`` (string, for verifiable rewards).

    Args:
        name: a shipped name, a YAML or (with a description) a file.
        leave_out_topics: topics whose prompts are held out.
        training: False where the prompts are only evaluated on.

    Raises:
        WrongFormatError: not of the format `prompt_only`, or for evaluation only although ``training``.
        DatasetError: not declared public.
        NoDataError: no prompt is left.
    """
    from datasets import Dataset

    spec = find_dataset(name)
    require(spec, "prompts", training=training)
    if not spec.public:
        raise DatasetError(
            f"{spec.name}: is not declared as public prompts.",
            "The policy loop may only see public prompts without spending budget (guarantees.md rules 13 and 19).",
            "Set `public: true`, sha256, license and reason in its YAML, if that is true.",
        )
    columns = ("prompt", "topic", *(("answer",) if spec.fields.answer else ()))
    distinct: dict[str, dict[str, Any]] = {}
    for row in read_dataset(spec, need_user=False):
        if row["topic"] not in leave_out_topics and row["prompt"][-1]["content"].strip():
            distinct.setdefault(repr(row["prompt"]), {column: row[column] for column in columns})
    if not distinct:
        raise NoDataError(
            f"{spec.name}: no prompts are left.",
            "All of them are blank or belong to topics that are held out.",
            "Hold out fewer topics, or name another set of prompts.",
        )
    return Dataset.from_list(list(distinct.values()))
