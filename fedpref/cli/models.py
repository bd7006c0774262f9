"""fedpref models get"""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Base models that need no hub.", no_args_is_help=True)


@app.callback()
def models() -> None:
    """Base models that need no hub."""


@app.command()
def get(
    name: Annotated[str, typer.Argument(help="Name of an embedded model.")] = "embedded/smollm2-135m-instruct",
) -> None:
    """Fetch and convert an embedded model into the cache, once."""
    from reward.embedded import ensure_model

    folder = ensure_model(name, lambda line: typer.echo(line, err=True))
    typer.echo(str(folder))
