"""Check a ledger or a run folder from its files alone: chain, order, completeness against an anchor, epsilon."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from privacy.accounting import epsilon
from privacy.errors import CodedError
from privacy.events import TrustedEvent
from privacy.ledger import LedgerView, read_ledger
from privacy.report.build import FEDERATION, build_report, ledger_paths, rounded_up
from privacy.units import Adversary


@dataclass
class Verdict:
    """What was checked, line by line, and what failed."""

    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    epsilons: dict[str, float | None] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """True if no check failed."""
        return not self.failed

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        return {"ok": self.ok, "passed": self.passed, "failed": self.failed, "epsilon": self.epsilons}

    def to_text(self) -> str:
        """For people: one line per check, then epsilon per adversary."""
        lines = [f"ok    {line}" for line in self.passed] + [f"FAIL  {line}" for line in self.failed]
        for name, value in self.epsilons.items():
            lines.append(
                f"      against {name}: " + ("no finite epsilon" if value is None else f"epsilon {rounded_up(value)}")
            )
        lines.append("verified" if self.ok else "NOT VERIFIED")
        return "\n".join(lines) + "\n"


def verify(target: Path, head: str | None = None) -> Verdict:
    """Check one ledger file, or every ledger of a run folder and the figures of its report and release.

    Args:
        target: a ledger file or a run folder.
        head: a head hash that you know from elsewhere; the (federation's) ledger must contain it.
    """
    verdict = Verdict()
    if target.is_dir():
        manifest = _read_json(target / "release" / "manifest.json", verdict)
        anchors = _anchors(manifest, verdict)
        views = {
            str(p.relative_to(target)): _check_ledger(p, str(p.relative_to(target)), verdict)
            for p in ledger_paths(target)
        }
        if not any(name.startswith("nodes/") for name in views):
            verdict.failed.append("nodes/: no node ledger")
        if head:
            anchors[FEDERATION] = head
        for name in anchors.keys() - views.keys():
            verdict.failed.append(f"{name}: named in the release manifest, but missing")
        for name, view in views.items():
            if view:
                _check_anchor(name, view, anchors.get(name), verdict)
        _check_released_files(target / "release", manifest, verdict)
        if all(views.values()):
            _check_agreement([view for view in views.values() if view], finished=manifest is not None, verdict=verdict)
        if verdict.ok and (target / "report.json").exists():
            _check_report(target, verdict)
        federation = views.get(FEDERATION)
    else:
        federation = _check_ledger(target, target.name, verdict)
        if federation:
            _check_anchor(target.name, federation, head, verdict)
    if federation:
        _epsilons(federation, verdict)
    return verdict


def _check_ledger(path: Path, name: str, verdict: Verdict) -> LedgerView | None:
    try:
        view = read_ledger(path)
    except CodedError as error:
        verdict.failed.append(f"{name}: {error.what} {error.why}")
        return None
    torn = (
        f"; a torn last line of {view.torn_bytes} bytes, as a crash leaves it, books nothing" if view.torn_bytes else ""
    )
    verdict.passed.append(f"{name}: {view.num_entries} lines, chain intact, order kept{torn}")
    return view


def _anchors(manifest: dict[str, Any] | None, verdict: Verdict) -> dict[str, str]:
    heads = (manifest or {}).get("ledger_heads", {})
    if isinstance(heads, dict) and all(isinstance(head, str) for head in heads.values()):
        return dict(heads)
    verdict.failed.append("manifest.json: its ledger_heads are not a table of hashes")
    return {}


def _check_released_files(release: Path, manifest: dict[str, Any] | None, verdict: Verdict) -> None:
    """Every file that the manifest names is the one that was released, and nothing was added."""
    if manifest is None:
        return
    named = manifest.get("files")
    present = {
        str(p.relative_to(release)): p
        for p in release.rglob("*")
        if p.is_file() and p.name != "manifest.json" and not _unfinished(p)
    }
    if not isinstance(named, dict) or named.keys() != present.keys():
        verdict.failed.append("release/: its files are not those of the manifest")
        return
    changed = [n for n, path in present.items() if hashlib.sha256(path.read_bytes()).hexdigest() != named[n]]
    if changed:
        verdict.failed.append(f"release/{changed[0]}: is not the file that was released")
    else:
        verdict.passed.append(f"release/: {len(present)} files as released")


def _unfinished(path: Path) -> bool:
    """What a kill leaves of a file that was never finished; nothing reads it."""
    return path.name.startswith(".") and path.name.endswith(".part")


def _check_agreement(views: list[LedgerView], *, finished: bool, verdict: Verdict) -> None:
    """Federation and nodes tell of one run: the same terms, and the same rounds, none left out."""
    first = views[0]
    terms = {(v.header.run, v.header.unit, v.header.trust, v.header.target_delta, v.header.private_rng) for v in views}
    if len(terms) > 1:
        verdict.failed.append("ledgers: federation and nodes were opened under different terms")
    rounds = [{r.round for r in view.reservations} for view in views]
    total = first.header.facts.get("num_rounds")
    last = max((max(numbers, default=0) for numbers in rounds), default=0)
    expected = total if finished and isinstance(total, int) else last
    for view, numbers in zip(views, rounds, strict=True):
        # A run that is under way may have booked its newest round in one ledger only.
        known = numbers if finished else numbers | {expected}
        missing = next((number for number in range(1, expected + 1) if number not in known), None)
        if missing is not None:
            verdict.failed.append(f"{view.header.scope}: round {missing} is not booked, but others know of it")


def _check_anchor(name: str, view: LedgerView, anchor: str | None, verdict: Verdict) -> None:
    if anchor is None:
        verdict.passed.append(f"{name}: chain intact, completeness not shown (no anchor: give --head HASH)")
    elif anchor == view.head:
        verdict.passed.append(f"{name}: complete up to the anchor {anchor[:12]}…")
    else:
        verdict.failed.append(
            f"{name}: its head {view.head[:12]}… is not the anchor {anchor[:12]}… (cut, rolled back or added to)"
        )


def _check_report(run: Path, verdict: Verdict) -> None:
    claimed = _read_json(run / "report.json", verdict)
    if claimed is None:
        return
    fresh = json.loads(json.dumps(build_report(run).fields))
    differing = sorted(key for key in fresh.keys() | claimed.keys() if not _same(fresh.get(key), claimed.get(key)))
    if differing:
        verdict.failed.append(f"report.json: differs from what the ledgers say in {', '.join(differing)}")
    else:
        verdict.passed.append("report.json: every figure recomputed from the ledgers")


def _same(a: Any, b: Any) -> bool:
    """Equal, numbers to 1e-6 relative (another processor may round the last bits of an accountant differently)."""
    if isinstance(a, float) and isinstance(b, (int, float)) and not isinstance(b, bool):
        return math.isclose(a, b, rel_tol=1e-6)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and bool(a == b)


def _epsilons(view: LedgerView, verdict: Verdict) -> None:
    for adversary in Adversary:
        target, nominal = view.header.target_epsilon, view.nominal(adversary)
        try:
            value = view.epsilon(adversary)
            booked = epsilon(nominal, view.header.target_delta)
        except CodedError as error:
            verdict.failed.append(f"epsilon against {adversary.value}: {error.what}")
            continue
        verdict.epsilons[adversary.value] = value if math.isfinite(value) else None
        trusted = any(isinstance(event, TrustedEvent) for event in nominal)
        if target is not None and not trusted and booked > target:
            verdict.failed.append(f"epsilon against {adversary.value} is {booked:.4f}, above the budget {target:g}")


def _read_json(path: Path, verdict: Verdict) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        verdict.failed.append(f"{path.name}: unreadable ({type(error).__name__})")
        return None
    if not isinstance(value, dict):
        verdict.failed.append(f"{path.name}: not a JSON object")
        return None
    return value
