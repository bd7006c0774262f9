"""fedpref data ls | complete"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Data sets that recipes name.", no_args_is_help=True)


@app.command()
def ls() -> None:
    """Every shipped data set with its licence."""
    from fedpref.data.spec import find_dataset, list_datasets

    for name in list_datasets():
        spec = find_dataset(name)
        typer.echo(f"{name:<24} {spec.license:<12} {spec.description}")


@app.command()
def complete(
    data: Annotated[str, typer.Argument(help="A data set whose prompts are public.")],
    out: Annotated[Path, typer.Option(help="Parquet file to write; a YAML description lands beside it.")],
    reason: Annotated[str, typer.Option(help="Why the prompts are public.")],
    model: Annotated[str, typer.Option(help="Base model.")] = "embedded/smollm2-135m-instruct",
    num_generations: Annotated[int, typer.Option(min=1)] = 24,
    max_completion_length: Annotated[int, typer.Option(min=9, help="Tokens.")] = 96,
    seed: int = 0,
    dtype: str = "auto",
) -> None:
    """Let the base model answer a data set's public prompts: the public text that standardisation and projection need."""
    from fedpref.cli.terminal import make_display
    from fedpref.data.complete import complete_prompts

    display = make_display()
    try:
        described = complete_prompts(
            data,
            out,
            reason=reason,
            model=model,
            num_generations=num_generations,
            max_completion_length=max_completion_length,
            seed=seed,
            dtype=dtype,
            display=display,
        )
    finally:
        display.close()
    typer.echo(f"{out}\n{described}\nnext: reward.public_data: {described}")
