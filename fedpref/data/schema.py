"""The description of a data set: where it lies, what its columns mean, under which licence."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from fedpref.config_blocks import Block
from fedpref.errors import DatasetError

EMBEDDED, HUB, PLUGIN, GIVEN = "embedded/", "hub/", "plugin/", "given"
Format = Literal["preference", "unpaired_preference", "prompt_only", "prompt_completion", "ranked", "rated"]


class FieldMap(Block):
    """Which column holds what. Columns that are not named here are never read."""

    prompt: str | None = "prompt"
    """`null`: it is implicit, the common beginning of chosen and rejected; so too if the file has no column `prompt`."""
    chosen: str = "chosen"
    rejected: str = "rejected"
    completion: str = "completion"
    label: str = "label"
    """`unpaired_preference`: true or false, or 1 or 0."""
    completions: str = "completions"
    """`ranked`: a list of answers, the best first, unless `ratings` is mapped."""
    ratings: str | None = None
    """`ranked`: one number per answer; more is better, equal is a tie."""
    rating: str = "rating"
    """`rated`: a person's number for the answer of the row; more is better, equal is a tie."""
    answer: str | None = None
    """`prompt_only`: the value that a verifiable reward compares with."""
    user_id: str | None = None
    topic: str | None = None
    client: str | None = None
    """The organisation or device that holds the record, for `partition.by: column`."""


class DatasetSpec(Block):
    """One data set, as `recipes/datasets/NAME.yaml` describes it."""

    name: str
    description: str = ""
    source: str
    """A Parquet, JSONL, JSON or CSV file, or a folder of them (one per client), relative to the YAML; `embedded/FILE`;
    `hub/ORG/NAME`; or `given`: the user names the file, as NAME@FILE."""
    config: str | None = None
    """`hub`: the data set's configuration there."""
    split: str = "train"
    """`hub`: the split."""
    revision: str | None = None
    """`hub`: the commit, 40 hex digits; takes the place of sha256."""
    format: Format = "preference"
    fields: FieldMap = FieldMap()
    where: dict[str, str] = Field(default_factory=dict)
    """Only rows whose columns have these values, e.g. `{split: train}`."""
    answer_after: str = ""
    """Only what follows this mark's last place in the answer column is the answer, e.g. `"####"`."""
    license: str
    attribution: str = ""
    sha256: str | None = None
    """Of the file; a file that differs is refused."""
    public: bool = False
    reason: str = ""
    """For public data: why they are public (guarantees.md rule 19)."""
    evaluation_only: bool = False
    """Its makers ask that nobody trains on it; training refuses it."""
    facts: dict[str, int] = Field(default_factory=dict)
    """Public sizes, for estimates only: records, users, texts, tokens."""
    folder: str = "."
    """Where the YAML lies; filled in when it is read."""
    digest: str = ""
    """SHA-256 of the YAML, or of this description where there is none; filled in when it is read."""

    @field_validator("sha256", "revision")
    @classmethod
    def _hex(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", value):
            raise ValueError("is no digest in hexadecimal")
        return value

    @model_validator(mode="after")
    def _justified(self) -> DatasetSpec:
        pinned = self.revision if self.source.startswith(HUB) else self.sha256
        if self.public and not (self.reason and pinned and self.license):
            raise ValueError(
                "public data need license, sha256 and reason (on the hub a revision in the place of sha256)"
            )
        return self

    @property
    def path(self) -> Path:
        """The data's file or folder; meaningless where ``is_local`` is false.

        Raises:
            DatasetError: the user has to name the file.
        """
        if self.source == GIVEN:
            raise DatasetError(
                f"{self.name}: is described, but its data are not part of this package.",
                "The licence or the size leaves it to you to fetch them.",
                f"Name your file: {self.name}@FILE.",
            )
        if self.source.startswith(EMBEDDED):
            return Path(__file__).parent / "embedded" / self.source.removeprefix(EMBEDDED)
        return Path(self.folder) / self.source

    @property
    def is_local(self) -> bool:
        """Do the data lie in files (and not on the hub or behind a plug-in)?"""
        return not self.source.startswith((HUB, PLUGIN))


def parse_spec(text: str, name: str, folder: str) -> DatasetSpec:
    """A YAML description -> a spec.

    Raises:
        DatasetError: not YAML, or outside the schema.
    """
    try:
        fields: Any = yaml.safe_load(text)
        digest = hashlib.sha256(text.encode()).hexdigest()
        return DatasetSpec.model_validate({**fields, "folder": folder, "digest": digest})
    except (TypeError, ValueError, yaml.YAMLError) as error:
        why = error.errors()[0] if isinstance(error, ValidationError) else None
        told = f"{'.'.join(map(str, why['loc']))}: {why['msg']}" if why else str(error)
        raise DatasetError(
            f"{name}: is no description of a data set.",
            told.removeprefix(": ")[:200],
            "See recipes/datasets/ukpconvarg1.yaml, or let `fedpref data map FILE` write one.",
        ) from None
