"""fedpref report"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """Who is protected, against whom, by how much: composed afresh from the ledgers."""
    from privacy.report import build_report, render_text

    content = build_report(run)
    typer.echo(json.dumps(content.fields, indent=2) if as_json else render_text(content), nl=as_json)
