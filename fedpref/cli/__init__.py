"""The command line: a shell over ``fedpref.api``. One file per verb; nothing here imports torch at start."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from fedpref.cli import budget, clean, data, doctor, evaluate, keys, models, plan, recipes, report, run, verify
from fedpref.errors import CODED_ERRORS
from fedpref.version import __version__

app = typer.Typer(
    name="fedpref",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"fedpref {__version__}")
        raise typer.Exit


@app.callback()
def fedpref(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say it and leave.")
    ] = False,
) -> None:
    """Train a shared language model from people's private preference feedback, with books that can be checked."""


app.command("run")(run.run)
app.command("plan")(plan.plan)
app.command("eval")(evaluate.evaluate)
app.command("report")(report.report)
app.command("verify")(verify.verify)
app.command("clean")(clean.clean)
app.command("doctor")(doctor.doctor)
app.add_typer(budget.app, name="budget")
app.add_typer(recipes.app, name="recipes")
app.add_typer(data.app, name="data")
app.add_typer(models.app, name="models")
app.add_typer(keys.app, name="keys")


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 a coded error or a failed check, 2 usage, 130 interrupted."""
    try:
        app()
    except CODED_ERRORS as error:
        sys.stderr.write(error.diagnostics() + "\n")
        if "--json" in sys.argv:
            sys.stdout.write(json.dumps({"error": error.to_json()}) + "\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what was finished is kept, go on with --resume\n")
        sys.exit(130)
