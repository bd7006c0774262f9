"""Data sets by name: shipped descriptions, a user's YAML or file, installed plug-ins."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from fedpref.data.schema import PLUGIN, DatasetSpec, FieldMap, parse_spec
from fedpref.errors import CODED_ERRORS, DatasetError
from fedpref.recipes import recipes_folder
from privacy.events import canonical

__all__ = ["DatasetSpec", "FieldMap", "call_plugin", "find_dataset", "list_datasets", "plugins"]

GROUP = "fedpref.datasets"
SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")


def list_datasets() -> list[str]:
    """Names of the shipped descriptions."""
    return sorted(path.stem for path in (recipes_folder() / "datasets").glob("*.yaml"))


def plugins() -> dict[str, EntryPoint]:
    """Entry points of the group `fedpref.datasets`, by name; none is loaded. A shipped name cannot be taken over."""
    found = {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda p: p.value)}
    return {name: point for name, point in sorted(found.items()) if name not in list_datasets()}


def find_dataset(name: str) -> DatasetSpec:
    """A shipped name, NAME@FILE (that description, your file), a YAML, a data file with TRL's columns, or a plug-in.

    Raises:
        DatasetError: nothing of that name (with the nearest), or a description that does not fit the schema.
    """
    path = Path(name)
    shipped = recipes_folder() / "datasets" / f"{name}.yaml"
    if shipped.is_file():
        return _read(shipped)
    if path.suffix in {".yaml", ".yml"} and path.is_file():
        return _read(path)
    if path.suffix in SUFFIXES and path.is_file():
        return _digested(DatasetSpec(name=path.stem, source=str(path.resolve()), license="not stated"))
    described, at, file = name.partition("@")
    if at and file:
        if not Path(file).exists():
            raise DatasetError(f"No file {file!r}.", "NAME@FILE needs a file or folder.", "Check the path.")
        return find_dataset(described).model_copy(update={"source": str(Path(file).resolve())})
    if name in plugins():
        return _from_plugin(name)
    known = [*list_datasets(), *plugins()]
    near = difflib.get_close_matches(name, known, n=1)
    raise DatasetError(
        f"No data set {name!r}.",
        "It is neither a shipped name, nor a YAML description, nor a Parquet, JSONL, JSON or CSV file, nor a plug-in.",
        (f"Did you mean {near[0]!r}? " if near else "") + f"Known: {', '.join(known)}.",
    )


def call_plugin(name: str) -> Any:
    """What a plug-in's function returns: a ``DatasetSpec`` or a ``datasets.Dataset``.

    Raises:
        DatasetError: it cannot be loaded, or raises.
    """
    try:
        function: Callable[[], Any] = plugins()[name].load()
        return function()
    except CODED_ERRORS:
        raise
    except Exception as error:  # code of somebody else: whatever it raises is the plug-in's failure, named as such
        raise DatasetError(
            f"The plug-in {name!r} failed.",
            f"{type(error).__name__} while its data set was loaded.",
            f"Ask the makers of {plugins()[name].value}, or uninstall it.",
        ) from error


def _from_plugin(name: str) -> DatasetSpec:
    made = call_plugin(name)
    if isinstance(made, DatasetSpec):
        return _digested(made)
    columns = getattr(made, "column_names", None)
    if not isinstance(columns, list):
        raise DatasetError(
            f"The plug-in {name!r} returns a {type(made).__name__}.",
            f"Entry points of {GROUP} return a DatasetSpec or a datasets.Dataset (one split).",
            "Choose a split, or describe the file by a DatasetSpec.",
        )
    from fedpref.data.mapping import guess_spec

    licence = getattr(getattr(made, "info", None), "license", "") or "not stated"
    spec = guess_spec(name, columns, made[: min(len(made), 50)])
    return _digested(spec.model_copy(update={"source": PLUGIN + name, "license": licence}))


def _digested(spec: DatasetSpec) -> DatasetSpec:
    """A description without a YAML file is digested by its content, wherever it lies."""
    content = spec.model_dump(mode="json", exclude={"folder", "digest", "source"})
    return spec.model_copy(update={"digest": hashlib.sha256(canonical(content).encode()).hexdigest()})


def _read(path: Path) -> DatasetSpec:
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"{path.name}: cannot be read.", f"{type(error).__name__}.", "Descriptions are YAML in UTF-8."
        ) from None
    return parse_spec(text, path.name, str(path.parent))
