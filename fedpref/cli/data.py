"""fedpref data ls | check | show | map | complete"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Data sets that recipes name.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A shipped name, NAME@FILE, a YAML description, a data file, or a plug-in.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")]


@app.command()
def ls(as_json: AsJson = False) -> None:
    """Every shipped data set and installed plug-in with its licence."""
    from fedpref.data.spec import find_dataset, list_datasets, plugins

    specs = [find_dataset(name) for name in list_datasets()]
    if as_json:
        keys = {"name", "format", "license", "description", "public", "evaluation_only", "source", "facts"}
        rows = [spec.model_dump(mode="json", include=keys) for spec in specs]
        typer.echo(json.dumps({"datasets": rows, "plugins": {n: p.value for n, p in plugins().items()}}))
        return
    for spec in specs:
        marks = ["public"] * spec.public + ["evaluation only"] * spec.evaluation_only
        marks += ["hub"] * spec.source.startswith("hub/") + ["your file: NAME@FILE"] * (spec.source == "given")
        typer.echo(
            f"{spec.name:<24} {spec.format:<18} {spec.license:<12} {spec.description}"
            + f" [{', '.join(marks)}]" * bool(marks)
        )
    for name, point in plugins().items():
        typer.echo(f"{name:<24} {'plug-in':<18} {'':<12} {point.value}")


@app.command()
def check(name: Name, as_json: AsJson = False) -> None:
    """Counts, users, pairs per user, ties, duplicates, contradictions, lengths; for the holder of the data only."""
    from fedpref.data.check import check_dataset
    from fedpref.data.describe import check_lines, topic_lines
    from fedpref.data.spec import find_dataset

    spec = find_dataset(name)
    checked = check_dataset(spec)
    if as_json:
        typer.echo(json.dumps({**checked.figures, "local_only": not spec.public}))
        return
    for line in check_lines(checked):
        typer.echo(line)
    for line in topic_lines(checked) if _may_print(spec.public) else ():
        typer.echo(line)
    _print_rows(checked.examples, spec.public)


@app.command()
def show(
    name: Name, n: Annotated[int, typer.Option("-n", min=0, help="Rows to show.")] = 3, as_json: AsJson = False
) -> None:
    """The description of a data set, its columns, and its first rows."""
    from fedpref.data.describe import column_map, description, description_lines, first_rows
    from fedpref.data.spec import find_dataset

    spec = find_dataset(name)
    here = spec.source != "given"
    columns = column_map(spec) if here else {}
    if as_json:
        rows = first_rows(spec, n) if spec.public and here else None
        typer.echo(json.dumps({**description(spec), "columns": columns, "rows": rows}))
        return
    for line in description_lines(spec):
        typer.echo(line)
    typer.echo(f"  columns  {', '.join(f'{field} <- {column}' for field, column in columns.items())}")
    if here and n:
        _print_rows(first_rows(spec, n) if _may_print(spec.public) else [], spec.public)


@app.command("map")
def map_(
    file: Annotated[Path, typer.Argument(help="A Parquet, JSONL, JSON or CSV file.")],
    out: Annotated[Path | None, typer.Option("-o", help="YAML file to write; default: print it.")] = None,
    field: Annotated[list[str] | None, typer.Option(help="FIELD=COLUMN, where the guess is wrong.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a YAML description for a file by looking at its columns."""
    from fedpref.data.describe import parse_fields
    from fedpref.data.formats import USES
    from fedpref.data.mapping import as_yaml, describe_file, write_description

    spec, unread = describe_file(file, parse_fields(field or []))
    if out:
        write_description(spec, out)
    fields = spec.fields.model_dump(exclude_unset=True)
    if as_json:
        found = {"format": spec.format, "used_for": USES[spec.format], "fields": fields, "unread": unread}
        typer.echo(json.dumps({**found, "written": str(out) if out else None}))
        return
    typer.echo(as_yaml(spec, None) if not out else str(out), nl=bool(out))
    notes = [f"never read: {', '.join(unread)}"] if unread else []
    if "user_id" not in fields and USES[spec.format] in {"pairs", "labels"}:
        notes.append("no column names the person: privacy.unit can only be `example`; or --field user_id=COLUMN")
    notes.append(f"next: fedpref data check {out or file}")
    typer.echo("\n".join(notes), err=True)


def _may_print(public: bool) -> bool:
    return public or sys.stdout.isatty()


def _print_rows(rows: list[dict[str, object]], public: bool) -> None:
    """Private texts go to a terminal and nowhere else: a pipe may end in a file or a log."""
    from fedpref.data.describe import row_lines

    if not _may_print(public):
        typer.echo("  (rows are shown on a terminal only)")
        return
    for row in rows:
        for line in row_lines(row):
            typer.echo(line)


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
    from fedpref.data.complete import complete_prompts
    from fedpref.terminal import make_display

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
