"""Descriptions, figures and rows of data sets as text."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from fedpref.data.check import Check
from fedpref.data.files import files_of
from fedpref.data.formats import USES, map_columns
from fedpref.data.reading import Reading
from fedpref.data.schema import EMBEDDED, GIVEN, HUB, PLUGIN, DatasetSpec
from fedpref.errors import DatasetError

LOCAL_ONLY = "exact figures of these data, for their holder only: no epsilon covers them"
_WORDS = {
    "FP217": "rows in ties, or with nothing to compare (left out; their people stay members)",
    "FP218": "rows whose sides part before the last answer (left out)",
}
_CUT = 300  # characters of a text in an example


def where_from(spec: DatasetSpec) -> str:
    """Where the data come from, in a word or two."""
    if spec.source == GIVEN:
        return "your file: NAME@FILE"
    kinds = {EMBEDDED: "embedded", HUB: "hub", PLUGIN: "plug-in"}
    return next((word for start, word in kinds.items() if spec.source.startswith(start)), "file")


def description(spec: DatasetSpec) -> dict[str, Any]:
    """The description as JSON: no paths of this machine but the source."""
    tree = spec.model_dump(mode="json", exclude={"folder", "fields"}, exclude_defaults=True)
    return {**tree, "format": spec.format, "used_for": USES[spec.format], "fields": spec.fields.model_dump(mode="json")}


def description_lines(spec: DatasetSpec) -> Iterator[str]:
    """The description as text."""
    yield f"{spec.name}: {spec.description or '(no description)'}"
    yield f"  format   {spec.format}, for {USES[spec.format]}" + (
        "; for evaluation only" if spec.evaluation_only else ""
    )
    yield f"  source   {spec.source} ({where_from(spec)})"
    yield f"  licence  {spec.license}" + (f"; {spec.attribution}" if spec.attribution else "")
    yield f"  digest   description {spec.digest[:16]}, data {spec.sha256 or spec.revision or 'not fixed'}"
    yield f"  public   {f'yes: {spec.reason}' if spec.public else 'no'}"
    if spec.facts:
        yield f"  sizes    {', '.join(f'{count:,} {what}' for what, count in spec.facts.items())}"


def column_map(spec: DatasetSpec) -> dict[str, str]:
    """Field -> column, as the first data file has them; empty where the file is not here."""
    from fedpref.data.files import open_table

    if not spec.is_local:
        return {}
    path = files_of(spec)[0]
    with open_table(spec, path) as table:
        return map_columns(spec, table.columns, path.name) if table.columns else {}


def first_rows(spec: DatasetSpec, n: int) -> list[dict[str, Any]]:
    """The first records, with their texts. Reads no more than it must."""
    path = files_of(spec)[0] if spec.is_local else None
    tables = Reading(spec, need_user=False, path=path).tables()
    return list(islice((row for table in tables for row in table.to_pylist()), n))


def row_lines(row: dict[str, Any]) -> Iterator[str]:
    """A record for a terminal: texts cut, control characters shown as such."""
    who = [f"{key} {_shown(row[key])}" for key in ("user_id", "client", "topic") if row.get(key)]
    yield f"row {row['row']}  {'  '.join(word for word in who if not word.startswith('user_id #'))}"
    for key in ("prompt", "chosen", "rejected", "completion", "label", "rating", "answer"):
        if key in row:
            parts = row[key] if isinstance(row[key], list) else [{"role": "", "content": str(row[key])}]
            yield f"  {key:<10} " + " | ".join(
                f"{p['role'][:1]}: {_shown(p['content'])}".removeprefix(": ") for p in parts
            )


def _shown(text: str) -> str:
    """One line; what could steer a terminal is escaped."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:_CUT])
    return line + (" …" if len(text) > _CUT else "")


def check_lines(check: Check) -> Iterator[str]:
    """The figures as text."""
    f = check.figures
    yield f"{f['name']}: {f['format']}, for {f['used_for']}" + ("" if check.spec.public else f"  ({LOCAL_ONLY})")
    nobody = ", no users named: privacy.unit can only be `example`" if f["used_for"] in {"pairs", "labels"} else ""
    yield f"  {f['rows']:,} rows, {f['records']:,} records in {f['files']} file(s)" + (
        f", {f['users']:,} users" if f["users"] else nobody
    )
    yield f"  {f['distinct_prompts']:,} distinct prompts, {f['topics']:,} topics, {f['clients']:,} clients"
    for code, count in f["left_out"].items():
        yield f"  [{code}] {count:,} {_WORDS[code]}"
    yield f"  [FP211] {f['blank']:,} with an empty prompt or answer"
    if "usable_pairs" in f:
        yield f"  [FP212] {f['ties']:,} with twice the same text   [FP213] {f['duplicates']:,} votes given again"
        yield f"  [FP214] {f['contradictions']:,} votes both ways by one user"
        yield f"  {f['usable_pairs']:,} usable pairs" + (
            f"; the chosen answer is the longer one in {100 * f['chosen_is_longer']:.1f} %" if f["usable_pairs"] else ""
        )
    else:
        yield f"  {f['duplicates']:,} duplicates"
    for extra in ("labels", "answers"):
        if extra in f:
            yield f"  {extra}: " + ", ".join(f"{count:,} {value}" for value, count in f[extra].items())
    for side, values in f["characters"].items():
        yield f"  characters of {side:<11} {_quantiles(values)}"
    if "pairs_per_user" in f:
        yield f"  usable pairs per user     {_quantiles(f['pairs_per_user'])}"
        yield f"  {f['users_without_usable_pairs']:,} users have none: they stay members and contribute zero"
        yield from _advice(f["max_pairs_per_user"])


def topic_lines(check: Check) -> Iterator[str]:
    """Every topic, for a terminal."""
    for topic, rows in list(check.topics.items())[:30]:
        yield f"  topic {_shown(topic)!r}: {rows:,} rows"
    if len(check.topics) > 30:
        yield f"  and {len(check.topics) - 30:,} more topics"


def _advice(bound: dict[str, Any]) -> Iterator[str]:
    kept = ", ".join(
        f"{limit}: {100 * bound['users_whole'][limit]:.0f} % and {100 * share:.0f} %"
        for limit, share in bound["pairs_kept"].items()
    )
    yield f"  privacy.max_pairs_per_user, users left whole and pairs kept: {kept}"
    yield f"    suggestion {bound['suggested']}, DATA-DEPENDENT: taking it releases something that no epsilon covers;"
    yield "    a bound fixed without looking (default 20) does not"


def _quantiles(values: dict[str, float]) -> str:
    return " / ".join(f"{value:,.0f}" for value in values.values()) + f"   ({'/'.join(values)})" if values else "none"


def parse_fields(pairs: list[str]) -> dict[str, str]:
    """`prompt=frage` -> {"prompt": "frage"}.

    Raises:
        DatasetError: no `=`.
    """
    fields = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    if len(fields) < len(pairs):
        raise DatasetError("Not a field.", "Fields look like FIELD=COLUMN.", "Example: --field prompt=question")
    return fields
