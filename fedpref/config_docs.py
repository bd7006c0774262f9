"""``docs/config.md`` out of the schema: ``python -m fedpref.config_docs``. A test compares the two."""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Iterator
from enum import Enum
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from fedpref.config import Recipe

HEADER = """# Keys of a recipe

Made from `fedpref/config*.py` by `python -m fedpref.config_docs > docs/config.md`. Recipes are closed: an
unknown key is an error. Overrides on the command line: `fedpref run RECIPE key.sub=value`.

| key | type | default | meaning |
|---|---|---|---|
"""


def rows(block: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """One table row per key, blocks expanded."""
    for name, field in block.model_fields.items():
        key, kind = prefix + name, field.annotation
        if block_type := _block(kind):
            yield from rows(block_type, f"{key}.")
            continue
        default = "required" if field.default is PydanticUndefined else f"`{_plain(field.default)}`"
        meaning = " ".join((field.description or "").split())
        yield f"| `{key}` | {_type(kind)} | {default} | {meaning} |"


def _block(kind: Any) -> type[BaseModel] | None:
    """The block that a key holds, if any; an optional block's keys are listed alike."""
    parts = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    return next((part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)), None)


def _plain(value: Any) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _type(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Annotated:
        return _type(typing.get_args(kind)[0])
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(f"`{value}`" for value in typing.get_args(kind))
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return " or ".join(_type(part) for part in typing.get_args(kind) if part is not type(None))
    if typing.get_origin(kind) is tuple:
        return f"list of {_type(typing.get_args(kind)[0])}"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return " or ".join(f"`{member.value}`" for member in kind)
    return str(getattr(kind, "__name__", kind))


def render() -> str:
    """The whole page."""
    return HEADER + "\n".join(rows(Recipe)) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render())
