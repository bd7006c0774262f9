"""fedpref budget show"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="What is spent and what is left, per unit and adversary.", no_args_is_help=True)


@app.callback()
def budget() -> None:
    """What is spent and what is left, per unit and adversary."""


@app.command()
def show(
    target: Annotated[
        Path | None, typer.Argument(help="A run's folder, a ledger, or a project's books; default: every run in runs/.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """Spent, cap, left, and rounds left at the present noise. Totals of units, and of books, are never added up."""
    from fedpref.errors import RunFolderError
    from privacy.report.budget import budget_rows, budget_text

    targets = [target] if target else sorted(path.parent for path in Path("runs").glob("*/ledger.jsonl"))
    if not targets:
        raise RunFolderError(
            "No run in runs/.", "Nothing was run from this folder.", "Name a run's folder or a ledger."
        )
    tables = {str(path): budget_rows(path) for path in targets}
    if as_json:
        typer.echo(json.dumps({name: [row.to_json() for row in rows] for name, rows in tables.items()}, indent=2))
        return
    for name, rows in tables.items():
        typer.echo(f"{name}\n{budget_text(rows)}", nl=False)
