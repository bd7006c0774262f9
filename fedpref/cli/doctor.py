"""fedpref doctor"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer


def doctor(as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False) -> None:
    """Check this machine: what was found, and how to mend what is wrong. Exit code 1 if something is."""
    from fedpref.doctor import examine

    checks = []
    for check in examine():
        checks.append(check)
        if not as_json:
            typer.echo(
                f"{'FIX ' if check.fix else 'ok  '} {check.name:<18} {check.found}"
                + (f"\n     -> {check.fix}" if check.fix else "")
            )
    if as_json:
        typer.echo(json.dumps({"checks": [asdict(check) for check in checks]}, indent=2))
    raise typer.Exit(1 if any(check.fix for check in checks) else 0)
