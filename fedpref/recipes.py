"""Recipes: found in a folder, never registered by hand; read strictly, with overrides `key.sub=value`."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from fedpref.config import Recipe
from fedpref.errors import RecipeError, RecipeNotFoundError
from fedpref.trl_keys import from_trl
from policy.registry import ObjectiveSpec


def recipes_folder() -> Path:
    """The packed recipes if this is an installed wheel, else the folder of the checkout."""
    packed = Path(__file__).parent / "_recipes"
    return packed if packed.is_dir() else Path(__file__).parent.parent / "recipes"


def list_recipes() -> list[Path]:
    """Every recipe, by path; `datasets/` holds descriptions of data, not recipes."""
    folder = recipes_folder()
    return sorted(p for p in folder.rglob("*.yaml") if "datasets" not in p.relative_to(folder).parts)


def purpose(path: Path) -> str:
    """The first comment line of a recipe."""
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.lstrip("# ").strip()


def find_recipe(name: str) -> Path:
    """A path, or the name of a shipped recipe with or without `.yaml` and with or without `recipes/`.

    Raises:
        RecipeNotFoundError: with the nearest names.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = {str(p.relative_to(recipes_folder()).with_suffix("")): p for p in list_recipes()}
    key = str(Path(*path.parts[1:]) if path.parts[:1] == ("recipes",) else path).removesuffix(".yaml")
    if key in shipped:
        return shipped[key]
    near = difflib.get_close_matches(key, shipped, n=1)
    raise RecipeNotFoundError(
        f"No recipe {name!r}.",
        "It is neither a file nor the name of a shipped recipe.",
        (f"Did you mean {near[0]!r}? " if near else "") + "`fedpref recipes ls` lists them.",
    )


def parse_override(text: str) -> tuple[str, Any]:
    """`privacy.target_epsilon=4` -> ("privacy.target_epsilon", 4); the value is YAML."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise RecipeError(
            f"Not an override: {text!r}.", "Overrides look like key.sub=value.", "Example: privacy.target_epsilon=4"
        )
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise RecipeError(f"Not an override: {text!r}.", "The value is not YAML.", "Quote it.") from None


def read_recipe(
    path: Path, overrides: Mapping[str, Any] | None = None, objectives: Mapping[str, ObjectiveSpec] | None = None
) -> Recipe:
    """YAML file and overrides -> a validated, frozen recipe; ``objectives`` are further ones that it may name.

    Raises:
        RecipeError: not YAML, an unknown key (with the nearest known one), or a value that does not fit.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(
            f"{path.name}: cannot be read.",
            f"{type(error).__name__}: {error}"[:300],
            "Mend the file, or copy a shipped one.",
        ) from None
    if not isinstance(tree, dict):
        raise RecipeError(
            f"{path.name}: is not a mapping.", "A recipe is YAML `key: value`.", "See `fedpref recipes ls`."
        )
    for dotted, value in (overrides or {}).items():
        _set(tree, dotted, value)
    for block, key in _BESIDE_THE_RECIPE:
        inner = tree.get(block)
        if isinstance(inner, dict) and isinstance(inner.get(key), str):
            inner[key] = str((path.parent / inner[key]).resolve())
    return validate_recipe(tree, path.name, objectives)


# A relative path is meant from the recipe's folder, wherever the command is given: two runs hit the same books.
_BESIDE_THE_RECIPE = (("privacy", "ledger"), ("federation", "terms"))


def validate_recipe(
    tree: Mapping[str, Any], name: str, objectives: Mapping[str, ObjectiveSpec] | None = None
) -> Recipe:
    """A mapping -> a recipe, every problem named at once; TRL's flat keys that mean the same are taken."""
    tree = from_trl(tree, frozenset(Recipe.model_fields))
    try:
        return Recipe.model_validate(tree, context={"objectives": objectives or {}})
    except ValidationError as error:
        problems = [_explain(problem) for problem in error.errors()]
        raise RecipeError(
            f"{name}: {problems[0]}" + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""),
            "; ".join(problems[1:]) or "Recipes are closed: every key and value is checked before anything runs.",
            "docs/config.md lists all keys; `fedpref recipes show quickstart` prints a working recipe.",
        ) from None


def _set(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    node = tree
    for key in parents:
        child = node.setdefault(key, {})
        if not isinstance(child, dict):
            raise RecipeError(
                f"Override {dotted!r} leads nowhere.", f"{key!r} is a value, not a block.", "Check the key."
            )
        node = child
    node[last] = value


def _explain(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"]) or "recipe"
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(where, list(all_keys(Recipe)), n=1, cutoff=0.5)
        last = [k for k in all_keys(Recipe) if k.split(".")[-1] == str(problem["loc"][-1])]
        hint = last[0] if last else near[0] if near else None
        return f"unknown key {where!r}" + (f", did you mean {hint!r}?" if hint else "")
    if problem["type"] == "missing":
        return f"{where!r} is missing"
    return f"{where!r}: {problem['msg'].removeprefix('Value error, ')}"


def all_keys(block: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of the schema."""
    for name, field in block.model_fields.items():
        yield prefix + name
        kinds = (
            typing.get_args(field.annotation) if isinstance(field.annotation, types.UnionType) else (field.annotation,)
        )
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from all_keys(kind, f"{prefix}{name}.")


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
