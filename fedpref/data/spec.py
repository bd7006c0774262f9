"""The description of a data set: where it lies, what its columns mean, under which licence."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from fedpref.config import Block
from fedpref.errors import DatasetError
from fedpref.recipes import recipes_folder

EMBEDDED = "embedded/"
Format = Literal["preference", "prompt_completion", "prompt_only"]


class FieldMap(Block):
    """Which column holds what. Columns that are not named here are never read."""

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    completion: str = "completion"
    answer: str | None = None
    """The value that a verifiable reward compares with, for `format: prompt_only`."""
    user_id: str | None = None
    topic: str | None = None
    client: str | None = None
    """The organisation or device that holds the record, for `partition.by: column`."""


class DatasetSpec(Block):
    """One data set, as `recipes/datasets/NAME.yaml` describes it."""

    name: str
    description: str = ""
    source: str
    """`embedded/FILE`, or a Parquet, JSONL or CSV file, or a folder of them (one per client), relative to the YAML."""
    format: Format = "preference"
    answer_after: str = ""
    """Only what follows this mark's last place in the answer column is the answer, e.g. `"####"`."""
    fields: FieldMap = FieldMap()
    license: str
    attribution: str = ""
    sha256: str | None = None
    """Of the file; a file that differs is refused."""
    public: bool = False
    reason: str = ""
    """For public data: why they are public (guarantees.md rule 19)."""
    facts: dict[str, int] = Field(default_factory=dict)
    """Public sizes, for estimates only: records, users, texts, tokens."""
    folder: str = "."
    """Where the YAML lies; filled in when it is read."""

    @property
    def path(self) -> Path:
        """The data's file or folder."""
        if self.source.startswith(EMBEDDED):
            return Path(__file__).parent / "embedded" / self.source.removeprefix(EMBEDDED)
        return Path(self.folder) / self.source


def list_datasets() -> list[str]:
    """Names of the shipped descriptions."""
    return sorted(path.stem for path in (recipes_folder() / "datasets").glob("*.yaml"))


def find_dataset(name: str) -> DatasetSpec:
    """A shipped name, a YAML description, or a data file with TRL's column names.

    Raises:
        DatasetError: nothing of that name (with the nearest), or a description that does not fit the schema.
    """
    path = Path(name)
    shipped = recipes_folder() / "datasets" / f"{name}.yaml"
    if shipped.is_file():
        return _read(shipped)
    if path.suffix in {".yaml", ".yml"} and path.is_file():
        return _read(path)
    if path.suffix in {".parquet", ".jsonl", ".json", ".csv"} and path.is_file():
        return DatasetSpec(name=path.stem, source=str(path.resolve()), license="not stated")
    near = difflib.get_close_matches(name, list_datasets(), n=1)
    raise DatasetError(
        f"No data set {name!r}.",
        "It is neither a shipped name, nor a YAML description, nor a Parquet, JSONL or CSV file.",
        (f"Did you mean {near[0]!r}? " if near else "") + f"Shipped: {', '.join(list_datasets())}.",
    )


def _read(path: Path) -> DatasetSpec:
    try:
        fields: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        spec = DatasetSpec.model_validate({**fields, "folder": str(path.parent)})
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        why = error.errors()[0] if isinstance(error, ValidationError) else error
        text = f"{'.'.join(map(str, why['loc']))}: {why['msg']}" if isinstance(why, dict) else str(why)
        raise DatasetError(
            f"{path.name}: is no description of a data set.", text[:200], "See recipes/datasets/ukpconvarg1.yaml."
        ) from None
    if spec.public and not (spec.reason and spec.sha256 and spec.license):
        raise DatasetError(
            f"{path.name}: public data need license, sha256 and reason.",
            "Whatever shapes the model without protection must be named and justified (guarantees.md rule 19).",
            "Add the missing keys.",
        )
    return spec
