"""fedpref verify"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def verify(
    target: Annotated[Path, typer.Argument(help="A run's folder, a ledger file, or a project's books.")],
    head: Annotated[str | None, typer.Option("--head", help="A head hash that you know from elsewhere.")] = None,
    signer: Annotated[
        str | None, typer.Option("--signer", help="A public key, or its fingerprint, that you know from elsewhere.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """Re-check chain, signatures, order, completeness and epsilon from the files alone. Exit code 1 if a check fails."""
    from privacy.report import verify as check

    verdict = check(target, head, signer)
    typer.echo(json.dumps(verdict.to_json(), indent=2) + "\n" if as_json else verdict.to_text(), nl=False)
    raise typer.Exit(0 if verdict.ok else 1)
