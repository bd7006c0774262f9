"""Digests of descriptions and of public data files, for plans and manifests."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from fedpref.config import Recipe
from fedpref.data.schema import DatasetSpec
from fedpref.data.spec import find_dataset


def digest_of(value: Any) -> bytes:
    """16 bytes that name a value made of strings, lists and dictionaries; for comparing texts without holding them."""
    return hashlib.blake2b(repr(value).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digests(spec: DatasetSpec) -> set[str]:
    """SHA-256 of every data file; of a data set that lies in none, its source and revision."""
    from fedpref.data.files import files_of

    if not spec.is_local:
        return {f"{spec.source}@{spec.revision or 'newest'}/{spec.config or ''}/{spec.split}"}
    return {file_digest(path) for path in files_of(spec)}


def spec_digests(recipe: Recipe, *more: str) -> dict[str, dict[str, Any]]:
    """Name as in the recipe -> digests of its description and, if the data are public, of its data.

    Of private data nothing but the description is digested: a digest of somebody's file tells whoever can guess it.

    Args:
        recipe: its `datasets` and `reward.public_data` are listed.
        more: further names, e.g. of the policy loop's prompts.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys((*recipe.datasets, *recipe.public_text, *more)):
        spec = find_dataset(name)
        found[name] = {"description": spec.digest, "public": spec.public, "license": spec.license}
        if spec.public:
            found[name]["data"] = sorted(content_digests(spec))
    return found
