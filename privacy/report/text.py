"""Report -> plain text. The first sentence is for somebody who has never trained anything."""

from __future__ import annotations

import textwrap
from typing import Any

from privacy.report.build import Report, rounded_up


def render_text(report: Report) -> str:
    """The report as plain text, 100 columns wide."""
    f = report.fields
    lines = [*textwrap.wrap(report.summary, 100), ""]
    lines += [f"Privacy report of run {f['run']}", ""]
    lines += _table("Who could learn something about one unit, and how much (the claim)", f["claim"])
    lines[-1:] = [f"  {other['described']:<66} {other['statement']}" for other in f["further_adversaries"]] + [""]
    for node in f["nodes"]:
        lines += _table(f"What each client can vouch for by itself ({node['scope']})", node["rows"])
    lines += _evaluation(f.get("evaluation"))
    lines += _labels(f["labels"])
    lines += _project(f["project"])
    lines[-1:] = [*_project_labels(f.get("project_labels", [])), ""]
    lines += [
        "How it was computed",
        f"  unit {f['unit']}, neighbouring relation {f['relation']}, trust {f['trust']}",
        f"  {f['rounds_reserved']} rounds reserved, {f['rounds_committed']} committed; every reserved round counts",
        "  accountant: privacy loss distributions (dp_accounting), cross-checked by Rényi DP",
        *(f"  public constant {key} = {value}" for key, value in sorted(f["facts"].items())),
        "",
        "Assumptions that nobody checked for you",
        *(
            line
            for text in f["assumptions"]
            for line in textwrap.wrap(text, 96, initial_indent="  - ", subsequent_indent="    ")
        ),
        "",
        "Ledgers",
        *(f"  {x['file']}: {x['entries']} lines, head {x['head']}" for x in f["ledgers"]),
        "  check them with: fedpref verify RUN   (or, without torch: python -m privacy verify RUN)",
    ]
    return "\n".join(lines) + "\n"


def epsilon_text(row: dict[str, Any]) -> str:
    """One cell: a number, `trusted`, or infinity spelled out."""
    if row["trusted"]:
        return "none: trusted"
    if row["epsilon"] is None:
        masked = row.get("epsilon_if_sums_were_masked")
        if masked is not None and row["epsilon_if_random_numbers_were_private"] is None:
            return f"INFINITE: simulated ({rounded_up(masked)} had the sums been masked)"
        as_if = row["epsilon_if_random_numbers_were_private"]
        return "INFINITE" + (f" ({rounded_up(as_if)} had the random numbers been private)" if as_if is not None else "")
    return f"epsilon {rounded_up(row['epsilon'])} at delta {row['delta']:g}, unit {row['unit']}"


def project_text(row: dict[str, Any]) -> str:
    """One cell of a project's table."""
    if row["trusted"]:
        return "none: trusted in some rounds, which promise nothing"
    bound = "INFINITE" if row["filter_bound"] is None else rounded_up(row["filter_bound"])
    return f"filter bound {bound} of {row['cap']:g} at delta {row['delta']:g}, unit {row['unit']}"


def _evaluation(section: dict[str, Any] | None) -> list[str]:
    if section is None:
        return []
    lines = _table(
        "What federated evaluation tells about one evaluation user (other people than train)", section["claim"]
    )
    for node in section["nodes"]:
        lines += _table(f"What each client can vouch for in the evaluation ({node['scope']})", node["rows"])
    return lines + _table(
        "Training and evaluation added up (for somebody who goes by two user_ids)", section["together"]
    )


def _labels(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["Labels under randomised response (pure epsilon, delta 0; a total of its own, not added to the others)"]
    for row in rows:
        value = row["label_epsilon_per_unit"]
        epsilon = "INFINITE" if value is None else f"epsilon {rounded_up(value)}"
        lines.append(f"  {row['scope']:<66} {epsilon} at delta 0, unit {row['unit']}")
        lines += textwrap.wrap(row["covers"], 96, initial_indent="      ", subsequent_indent="      ")
    return [*lines, ""] if rows else []


def _project_labels(rows: list[dict[str, Any]]) -> list[str]:
    return [
        f"  randomised labels of all runs, against everybody, a total of its own: epsilon {row['label_epsilon']:g} of "
        f"{row['cap']:g} at delta 0, unit {row['unit']}"
        for row in rows
    ]


def _project(rows: list[dict[str, Any]] | None) -> list[str]:
    if rows is None:
        return []
    title = (
        "All runs on these people together, when this run was closed (a filter bound: their plans followed releases)"
    )
    lines = [title, *(f"  {row['described']:<66} {project_text(row)}" for row in rows)]
    return [*lines, *(f"      {rows[0]['runs']} runs, {rows[0]['rounds']} rounds" for _ in rows[:1]), ""]


def _table(title: str, rows: list[dict[str, Any]]) -> list[str]:
    lines = [title]
    for row in rows:
        lines.append(f"  {row['described']:<66} {epsilon_text(row)}")
        for item in row["events"]:
            event = {k: v for k, v in item["event"].items() if k != "kind"}
            details = ", ".join(f"{k} {v}" for k, v in sorted(event.items()))
            lines.append(f"      {item['count']} x {item['event']['kind']}{': ' + details if details else ''}")
    return [*lines, ""]
