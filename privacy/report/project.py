"""Check the books of a project: chain, caps, and that a run's rounds are all in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privacy.entries import Reservation
from privacy.errors import CodedError
from privacy.events import TrustedEvent
from privacy.project import ProjectView, lost_rounds, read_project, round_name
from privacy.report.signatures import check_signed_heads
from privacy.report.verdict import Verdict
from privacy.units import Adversary


@dataclass(frozen=True)
class JoinedRun:
    """A run that must be in the books: the public key of its ledger, and every reservation of it."""

    public_key: str
    reservations: Sequence[Reservation]


@dataclass(frozen=True)
class CheckedProject:
    """Verified books: the hash of every line, and who signed the last signed head ("" if nobody)."""

    view: ProjectView
    signer: str

    @property
    def hashes(self) -> tuple[str, ...]:
        """Of every line."""
        return self.view.hashes


def check_project(
    path: Path, name: str, joined: JoinedRun | None, verdict: Verdict, manifest: Mapping[str, Any] | None = None
) -> CheckedProject | None:
    """Check a project's books or a run's copy of them; the filter bounds go into the verdict."""
    try:
        view = read_project(path)
    except CodedError as error:
        verdict.failed.append(f"{name}: {error.what} {error.why}")
        return None
    torn = f"; a torn last line of {view.torn_bytes} bytes books nothing" if view.torn_bytes else ""
    verdict.passed.append(f"{name}: {view.num_entries} lines, {len(view.runs)} runs, chain intact, order kept{torn}")
    signer = check_signed_heads(name, path, view.hashes, manifest, verdict)
    _check_caps(name, view, verdict)
    _check_label_caps(name, view, verdict)
    if joined is not None:
        check_joined(name, view, joined, verdict)
    return CheckedProject(view, signer)


def _check_caps(name: str, view: ProjectView, verdict: Verdict) -> None:
    for unit, cap in view.caps.items():
        for adversary in Adversary:
            bound = view.bound(unit, adversary)
            label = f"{adversary.value}, all runs of {name} on unit {unit.value} (filter bound)"
            trusted = any(isinstance(event, TrustedEvent) for event in view.spent(unit, adversary))
            if trusted:
                verdict.notes.append(f"{label}: none, trusted in some rounds, which promise nothing")
            else:
                verdict.epsilons[label] = bound if bound < float("inf") else None
            if not cap.filter(adversary).admits(cap.cost(view.spent(unit, adversary))):
                verdict.failed.append(
                    f"{name}: the filter bound of unit {unit.value} against {adversary.value} is {bound:.4f}, "
                    f"above the cap {cap.epsilon[adversary]:g}"
                )


def _check_label_caps(name: str, view: ProjectView, verdict: Verdict) -> None:
    for unit, cap in view.label_caps.items():
        total = view.label_total(unit)
        verdict.notes.append(
            f"randomised labels, all runs of {name} on unit {unit.value}: epsilon {total:g} of {cap:g}"
        )
        if total > cap:
            verdict.failed.append(
                f"{name}: randomised labels of unit {unit.value} spent {total:g}, above the cap {cap:g}"
            )


def check_joined(name: str, view: ProjectView, joined: JoinedRun, verdict: Verdict) -> None:
    """Every round of a run is in the project's books."""
    run = next((run for run in view.runs if run.run == joined.public_key), None)
    if run is None:
        verdict.failed.append(f"{name}: does not know this run (by the key of its ledger)")
        return
    lost = lost_rounds(name, run, Counter(round_name(r.round, r.events) for r in joined.reservations))
    if lost is not None:
        verdict.failed.append(f"{lost.what} {lost.why}")
    else:
        verdict.passed.append(f"{name}: every round of this run is booked in it")
