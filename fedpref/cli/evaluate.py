"""fedpref eval"""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    run: Annotated[Path, typer.Argument(help="A finished run's folder.")],
    data: Annotated[str, typer.Option("--data", help="A Parquet, JSONL or CSV file, a YAML, or a shipped name.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object (key reward_accuracy).")] = False,
) -> None:
    """Reward accuracy of a run's released model on other preference pairs."""
    from fedpref.api import Run
    from fedpref.cli.run import evaluation_line
    from fedpref.terminal import make_display

    with closing(make_display()) as display:
        figures = Run(run).evaluate(data, display)
    if as_json:
        typer.echo(json.dumps(figures))
        return
    typer.echo(evaluation_line(Path(data).stem, figures))
    for topic, block in figures.get("topics", {}).items():
        typer.echo("  " + evaluation_line(topic[:40], {**block, "users": "-"}))
