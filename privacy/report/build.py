"""Verified ledgers -> a report: who is protected, against whom, by how much, under which assumptions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from privacy.accounting import epsilon
from privacy.errors import LedgerError
from privacy.events import GaussianEvent, TrustedEvent
from privacy.ledger import LedgerView, read_ledger
from privacy.project import ProjectView, read_project
from privacy.report.verdict import rounded_up
from privacy.units import Adversary, PrivacyUnit, Trust, further_adversaries

__all__ = [
    "FEDERATION",
    "PROJECT",
    "Report",
    "build_report",
    "evaluation_paths",
    "label_paths",
    "ledger_paths",
    "project_paths",
    "rounded_up",
]

SCHEMA = "fedpref-report-1"
FEDERATION = "ledger.jsonl"
PROJECT = "project.jsonl"
EVALUATION = "evaluation.jsonl"


@dataclass(frozen=True)
class Report:
    """The content of a privacy report; ``fields`` is what JSON and text show."""

    fields: dict[str, Any]

    @property
    def summary(self) -> str:
        """The first sentence."""
        return str(self.fields["summary"])


def ledger_paths(run: Path) -> list[Path]:
    """The federation's ledger of a run folder, then those of its nodes."""
    return [run / FEDERATION, *sorted(run.glob("nodes/*/ledger.jsonl"))]


def label_paths(run: Path) -> list[Path]:
    """The books of labels under randomised response, one per node that has any."""
    return sorted(run.glob("nodes/*/labels.jsonl"))


def evaluation_paths(run: Path) -> list[Path]:
    """The books of federated evaluation: the federation's, then those of its nodes; empty for a run without."""
    return [path for path in [run / EVALUATION, *sorted(run.glob(f"nodes/*/{EVALUATION}"))] if path.exists()]


def project_paths(run: Path) -> list[Path]:
    """The copy of the project's books, as they were when the run was closed last; empty if it has none."""
    return [run / PROJECT] if (run / PROJECT).exists() else []


def build_report(run: Path) -> Report:
    """Read and verify every ledger of a run folder, compose afresh, and describe.

    Raises:
        LedgerError: a ledger is missing or broken.
    """
    paths = ledger_paths(run)
    views = [read_ledger(path) for path in paths]
    federation, nodes = views[0], views[1:]
    if not nodes:
        raise LedgerError(
            f"{run.name}: no node ledger.",
            "A run has one for the federation and one for each node that holds data.",
            "Restore the folder `nodes` of this run.",
        )
    header = federation.header
    project = next((read_project(path) for path in project_paths(run)), None)
    return Report(
        {
            "schema": SCHEMA,
            "summary": _summary(federation, claim_rows(federation, nodes)),
            "run": header.run,
            "unit": header.unit.value,
            "relation": header.relation.value,
            "trust": header.trust.value,
            "target_epsilon": header.target_epsilon,
            "delta": header.target_delta,
            "private_rng": header.private_rng,
            "facts": dict(header.facts),
            "claim": claim_rows(federation, nodes),
            "further_adversaries": [
                asdict(other)
                for other in further_adversaries(
                    header.trust, header.facts.get("colluders"), int(header.facts.get("liars_outvoted", 0))
                )
            ],
            "nodes": [{"scope": view.header.scope, "rows": _rows(view)} for view in nodes],
            "rounds_reserved": len(federation.reservations),
            "rounds_committed": len(federation.committed),
            "labels": [_label_row(read_ledger(path)) for path in label_paths(run)],
            "project": None if project is None else project_rows(project),
            **({"project_labels": label_rows(project)} if project is not None and project.label_caps else {}),
            **_evaluation(run, views),
            "assumptions": _assumptions(federation, shared=project is not None, evaluated=bool(evaluation_paths(run))),
            "ledgers": [
                {"file": str(path.relative_to(run)), "head": view.head, "entries": view.num_entries}
                for path, view in zip(paths, views, strict=True)
            ],
        }
    )


def claim_rows(federation: LedgerView, nodes: Sequence[LedgerView]) -> list[dict[str, Any]]:
    """The rows that are claimed: the federation's; unless the server is trusted the worst of the nodes', whose users are
    disjoint, as well.

    A round that one node had to repeat is in that node's books alone (guarantees.md "Ledgers").
    """
    views = [federation] if federation.header.trust is Trust.CENTRAL else [*nodes, federation]
    tables = [_rows(view) for view in views]
    return [max(rows, key=_badness) for rows in zip(*tables, strict=True)]


def _evaluation(run: Path, training: Sequence[LedgerView]) -> dict[str, Any]:
    """Federated evaluation: a total of its own, of the evaluation users; and both totals together.

    A user trains or evaluates, by a hash of the user_id, so nobody is in both books of one run; whoever goes by two ids is
    covered by the sum. ``training``: the federation's view and those of its nodes.
    """
    views = [read_ledger(path) for path in evaluation_paths(run)]
    if not views:
        return {}
    federation, nodes = views[0], views[1:]
    claimed = nodes if federation.header.trust is Trust.LOCAL else [federation]
    before = training[1:] if federation.header.trust is Trust.LOCAL else training[:1]
    together = [_together(adversary, before, claimed) for adversary in Adversary]
    return {
        "evaluation": {
            "facts": dict(federation.header.facts),
            "target_epsilon": federation.header.target_epsilon,
            "claim": claim_rows(federation, nodes),
            "nodes": [{"scope": view.header.scope, "rows": _rows(view)} for view in nodes],
            "together": together,
            "released": len(federation.committed),
        }
    }


def _together(adversary: Adversary, before: Sequence[LedgerView], after: Sequence[LedgerView]) -> dict[str, Any]:
    """Both books added up; of several nodes the worst of all pairs."""
    totals = [one.composition(adversary) + two.composition(adversary) for one, two in product(before, after)]
    header = after[0].header
    worst = max((epsilon(total, header.target_delta) for total in totals), default=math.inf)
    return {
        "adversary": adversary.value,
        "described": adversary.described,
        "trusted": any(isinstance(event, TrustedEvent) for total in totals for event in total),
        "epsilon": _finite(worst),
        "epsilon_if_random_numbers_were_private": None,
        "delta": header.target_delta,
        "unit": header.unit.value,
        "events": [],
    }


def _badness(row: dict[str, Any]) -> float:
    return 0.0 if row["trusted"] else math.inf if row["epsilon"] is None else float(row["epsilon"])


def _rows(view: LedgerView) -> list[dict[str, Any]]:
    rows = []
    for adversary in Adversary:
        value = view.epsilon(adversary)
        nominal = view.nominal(adversary)
        trusted = any(isinstance(event, TrustedEvent) for event in nominal)
        rows.append(
            {
                "adversary": adversary.value,
                "described": adversary.described,
                "trusted": trusted,
                "epsilon": value if math.isfinite(value) else None,
                "epsilon_if_random_numbers_were_private": None
                if view.header.private_rng or trusted
                else _finite(epsilon(nominal, view.header.target_delta)),
                **(
                    {"epsilon_if_sums_were_masked": _finite(epsilon(nominal, view.header.target_delta))}
                    if view.simulated and adversary is Adversary.SERVER
                    else {}
                ),
                "delta": view.header.target_delta,
                "unit": view.header.unit.value,
                "events": [{"count": n, "event": e.to_json()} for e, n in sorted(nominal.items(), key=str)],
            }
        )
    return rows


def _label_row(view: LedgerView) -> dict[str, Any]:
    """Randomised labels of one node: a total that stands apart and covers the label alone (guarantees.md rule 12)."""
    value = view.epsilon(Adversary.READER)
    return {
        "scope": view.header.scope,
        "unit": view.header.unit.value,
        "label_epsilon_per_unit": _finite(value),
        "covers": "which of two answers was preferred, against everybody, the server included; never the texts",
    }


def project_rows(view: ProjectView) -> list[dict[str, Any]]:
    """Per unit and adversary: what all runs together spent of the cap. Units are never added to one another."""
    rows = []
    for unit, cap in view.caps.items():
        runs = [run for run in view.runs if run.unit is unit]
        for adversary in Adversary:
            spent = view.spent(unit, adversary)
            rows.append(
                {
                    "unit": unit.value,
                    "adversary": adversary.value,
                    "described": adversary.described,
                    "trusted": any(isinstance(event, TrustedEvent) for event in spent),
                    "filter_bound": None
                    if any(isinstance(event, TrustedEvent) for event in spent)
                    else _finite(view.bound(unit, adversary)),
                    "cap": cap.epsilon[adversary],
                    "delta": cap.delta,
                    "order": cap.order,
                    "runs": len(runs),
                    "rounds": sum(len(run.rounds) for run in runs),
                }
            )
    return rows


def label_rows(view: ProjectView) -> list[dict[str, Any]]:
    """Per unit: what randomised labels of all runs spent of their cap, pure, against everybody."""
    return [
        {"unit": unit.value, "label_epsilon": view.label_total(unit), "cap": cap}
        for unit, cap in view.label_caps.items()
    ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


_WHO = {
    PrivacyUnit.USER: ("person", "people", "any one person's votes"),
    PrivacyUnit.EXAMPLE: ("preference record", "preference records", "any one record"),
    PrivacyUnit.CLIENT: ("client", "clients", "any one client's data"),
}


def _summary(view: LedgerView, claim: list[dict[str, Any]]) -> str:
    one, many, secret = _WHO[view.header.unit]
    number = view.header.facts.get("num_units")
    who = f"Each of the {number:,} {many}" if isinstance(number, int) else f"Each {one}"
    if not view.header.private_rng:
        return (
            f"NOT PRIVATE: this run used reproducible (seeded) random numbers; whoever knows the seed can remove the "
            f"noise; {who[0].lower()}{who[1:]} whose feedback was used here is not protected."
        )
    value = _badness(claim[0])
    if not math.isfinite(value):
        return f"NOT PRIVATE: no finite epsilon protects {many} of this run; it released something without noise."
    server = {
        Trust.CENTRAL: "the server is trusted and sees every client's un-noised sum",
        Trust.LOCAL: "nobody is trusted: the same holds against the server",
        Trust.DISTRIBUTED: "the server sees noised sums alone: the same holds against it"
        if not view.simulated
        else "secure aggregation was SIMULATED: nothing holds against the server in this run",
    }.get(view.header.trust, "see the table for the server")
    return (
        f"{who} in this federation is protected: whoever reads what was released can tell whether "
        f"{secret} took part only within epsilon = {rounded_up(value)} at delta = "
        f"{view.header.target_delta:g} ({view.header.unit.value} level); {server}."
    )


def _noise_assumptions(view: LedgerView) -> list[str]:
    """Old ledgers have events of continuous noise; integers on a grid leave nothing to assume."""
    events = view.nominal(Adversary.READER)
    if not any(isinstance(event, GaussianEvent) and event.noise == "continuous" for event in events):
        return []
    return ["Noise is continuous (double precision); the attack on the low-order bits of floats is not excluded."]


def _secure_assumptions(view: LedgerView) -> list[str]:
    facts = view.header.facts
    if view.simulated:
        return [
            "Secure aggregation was simulated: this process saw every client's integers, with one noise share each.",
            *_bucket_assumptions(facts),
        ]
    return [
        f"At most {facts.get('colluders')} clients of a round work with the server or leave out their noise; identity keys "
        "were exchanged out of band (in a simulated federation one process made them all).",
        "X25519, Ed25519, AES-256 and HKDF-SHA256 hold: protection against the server is computational.",
        *_bucket_assumptions(facts),
    ]


def _bucket_assumptions(facts: Mapping[str, Any]) -> list[str]:
    count = facts.get("num_buckets", 1)
    if count == 1:
        return []
    return [
        f"Each round was {count} disjoint sums with noise in full, of {facts.get('min_clients_per_bucket')} to "
        f"{facts.get('clients_per_bucket')} clients; a person is in one of them, so a round's figure is that of one sum. They "
        f"were combined by a trimmed mean that outvotes {facts.get('liars_outvoted')} lying clients, and more are only bounded."
    ]


def _record_assumptions(unit: PrivacyUnit) -> list[str]:
    if unit is not PrivacyUnit.EXAMPLE:
        return []
    return [
        "A record is a row. A person's vote counts once, whatever files it lies in; of rows without a user_id nobody can tell "
        "a second one from another person's equal vote: equal ones within a file, or in files of several clients, are "
        "different records here."
    ]


def _assumptions(view: LedgerView, *, shared: bool, evaluated: bool) -> list[str]:
    header = view.header
    others = (
        "Every run on the same people named the project's books: a run that did not is in no total here."
        if shared
        else "These figures are of this run alone; another run on the same people adds to them, and no book of both is kept."
    )
    lines = [
        f"The number of {_WHO[header.unit][1]} and the invited clients are public; neighbours differ in one unit's "
        "contribution being replaced by the empty one (zero-out).",
        "A user_id is one person and occurs in one client only (one person, one client): not checked.",
        *_record_assumptions(header.unit),
        others,
        "Each client tosses its units' coins in secret and the operating system's random numbers are good.",
        *_noise_assumptions(view),
        "Settings (clipping norm, rounds, learning rate, layer) are taken as public. Whatever was learned from private data "
        "to choose them is in no total; the shipped reward recipes' were looked at by cross-validation on the embedded votes.",
        "The time at which a message arrives is out of scope.",
    ]
    if evaluated:
        lines.append(
            "A user_id trains or evaluates, by a hash, never both in one run: two totals of different people. Another run with "
            "another salt may move a person; only the project's and the client's own books add that up."
        )
    unprotected = header.facts.get("num_evaluation_users")
    if isinstance(unprotected, int) and unprotected > 0:
        lines.append(
            f"{unprotected:,} evaluation users, split off by hash before training, are NOT protected: "
            "the evaluation figures are computed from their votes; of clients with terms, only where those say "
            "unnoised_evaluation: true (the number above counts all)."
        )
    if header.trust is Trust.DISTRIBUTED:
        lines += _secure_assumptions(view)
    if header.trust is Trust.CENTRAL:
        lines.append("The server adds the promised noise and forgets the clients' sums: trusted, not checked.")
    return lines
