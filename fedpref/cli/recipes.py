"""fedpref recipes ls | show | copy"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedpref.errors import DestinationError

app = typer.Typer(help="List, show and copy the shipped recipes.", no_args_is_help=True)


@app.command()
def ls() -> None:
    """Every shipped recipe with its purpose."""
    from fedpref.recipes import list_recipes, purpose, recipes_folder

    for path in list_recipes():
        name = path.relative_to(recipes_folder()).with_suffix("")
        typer.echo(f"{name!s:<24} {purpose(path)}")


@app.command()
def show(name: Annotated[str, typer.Argument(help="A recipe's name.")]) -> None:
    """Print a recipe."""
    from fedpref.recipes import find_recipe

    typer.echo(find_recipe(name).read_text(encoding="utf-8"), nl=False)


@app.command()
def copy(
    name: Annotated[str, typer.Argument(help="A recipe's name.")],
    destination: Annotated[Path | None, typer.Argument(help="File or folder; default: here.")] = None,
) -> None:
    """Copy a recipe, to be edited."""
    from fedpref.journal import write_durably
    from fedpref.recipes import find_recipe

    source = find_recipe(name)
    target = destination or Path(source.name)
    target = target / source.name if target.is_dir() else target
    if target.exists():
        raise DestinationError(f"{target} exists.", "A copy would overwrite it.", "Give another destination.")
    write_durably(target, source.read_bytes())
    typer.echo(f"{target}\nnext: fedpref plan {target}")
