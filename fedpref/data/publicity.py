"""Is private feedback named as public data as well? By what records say, whatever bytes and description they come in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from fedpref.data.copies import Digests, as_digests, text_digest
from fedpref.data.files import files_of
from fedpref.data.formats import USES
from fedpref.data.preferences import Preferences
from fedpref.data.reading import Reading
from fedpref.data.schema import DatasetSpec
from fedpref.errors import CODED_ERRORS, UnsupportedPlanError
from reward.pairs import Conversation

_SIDES = ("chosen", "rejected", "completion")


def refuse_private_as_public(
    private: Sequence[DatasetSpec], records: Sequence[Preferences], public: Sequence[DatasetSpec]
) -> None:
    """Refuse a public file that holds an answer of a private record under its prompt or, of private prompts, the prompt.

    A prompt alone may be public: what people compared is not what they said. Each public file is read by its own description
    and, if it has the columns, by those of the private data. Public data that lie in no file are compared by name elsewhere.

    Raises:
        UnsupportedPlanError: one does.
    """
    files = [(spec, file) for spec in public if spec.is_local for file in files_of(spec)]
    if not files:
        return
    theirs = np.unique(np.concatenate([as_digests([text_digest(t) for t in part.texts]) for part in records]))
    read_as = list({spec.model_dump_json(exclude=_PLACE): _texts_only(spec) for spec in private}.values())
    for spec, file in files:
        own = _digests(spec, file) if USES[spec.format] == "public text" else iter(())
        for batch in chain(own, *(_if_readable(other, file) for other in read_as)):
            if np.isin(batch, theirs).any():
                raise UnsupportedPlanError(
                    f"{file.name} is private feedback, and named as public data as well.",
                    "It holds a private record's text. Whatever shapes the model as public text is protected by nothing "
                    "(guarantees.md rule 19).",
                    "Name public data that hold nobody's feedback.",
                )


_PLACE = {"name", "source", "sha256", "revision", "folder", "digest", "public", "reason"}


def _texts_only(spec: DatasetSpec) -> DatasetSpec:
    """A private description, to read a public file by: a copy may lack the columns that say who and where."""
    fields = spec.fields.model_copy(update=dict.fromkeys(("user_id", "topic", "client", "answer")))
    return spec.model_copy(update={"fields": fields, "where": {}, "sha256": None, "public": False})


def _if_readable(spec: DatasetSpec, file: Path) -> Iterator[Digests]:
    """``_digests``, up to where the file is none that ``spec`` describes: that is what is asked, and no failure."""
    with contextlib.suppress(*CODED_ERRORS):
        yield from _digests(spec, file)


def _digests(spec: DatasetSpec, file: Path) -> Iterator[Digests]:
    """The texts of a file as ``spec`` reads it, batch by batch: answers under their prompts; of prompts alone, these."""
    for table in Reading(spec, need_user=False, path=file).tables():
        sides = [side for side in _SIDES if side in table.column_names]
        for batch in table.to_batches(max_chunksize=2048):
            rows = batch.to_pylist()
            yield as_digests([text_digest(text) for row in rows for text in _texts(row, sides)])


def _texts(row: dict[str, Any], sides: list[str]) -> list[Conversation]:
    prompt = tuple((m["role"], m["content"]) for m in row["prompt"])
    return [Conversation(prompt, row[side][0]["content"]) for side in sides] or [Conversation(prompt, "")]
