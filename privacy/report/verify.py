"""Check a ledger or a run folder from its files alone: chain, order, completeness against an anchor, epsilon."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from privacy.accounting import epsilon
from privacy.errors import CodedError
from privacy.events import TrustedEvent
from privacy.ledger import LedgerView, read_ledger
from privacy.project import is_project
from privacy.report.build import (
    EVALUATION,
    FEDERATION,
    Report,
    build_report,
    evaluation_paths,
    label_paths,
    ledger_paths,
    project_paths,
)
from privacy.report.project import JoinedRun, check_joined, check_project
from privacy.report.signatures import check_manifest_signature, check_signed_heads, check_signer
from privacy.report.text import render_text
from privacy.report.verdict import Verdict
from privacy.units import Adversary, Trust


def verify(target: Path, head: str | None = None, signer: str | None = None) -> Verdict:
    """Check one ledger, the books of a project, or every ledger of a run folder and the figures of report and release.

    Args:
        target: a ledger file, a project's books, or a run folder.
        head: a head hash that you know from elsewhere; the (federation's) ledger must contain it. Lines may follow it,
            and the verdict says how many.
        signer: a public key, or its fingerprint, that you know from elsewhere; it must have signed the newest head.
    """
    verdict = Verdict()
    if target.is_dir():
        _verify_run(target, head, signer, verdict)
    elif is_project(target):
        project = check_project(target, target.name, None, verdict)
        if project:
            _check_known_head(target.name, project.hashes, head, verdict)
            check_signer(signer, {target.name: project.signer}, verdict)
    else:
        view = _check_ledger(target, target.name, verdict)
        if view:
            public = check_signed_heads(target.name, target, view.hashes, None, verdict)
            check_signer(signer, {target.name: public}, verdict)
            _check_known_head(target.name, view.hashes, head, verdict)
            _epsilons(view, verdict)
    return verdict


def _verify_run(run: Path, head: str | None, signer: str | None, verdict: Verdict) -> None:
    manifest = _read_json(run / "release" / "manifest.json", verdict)
    anchors = _anchors(manifest, verdict)
    _check_finished(run, manifest, verdict)
    paths = {str(p.relative_to(run)): p for p in ledger_paths(run)}
    views = {name: _check_ledger(path, name, verdict) for name, path in paths.items()}
    if not any(name.startswith("nodes/") for name in views):
        verdict.failed.append("nodes/: no node ledger")
    beside = [*label_paths(run), *evaluation_paths(run), *project_paths(run)]
    present = {*views, *(str(p.relative_to(run)) for p in beside)}
    for name in anchors.keys() - present:
        verdict.failed.append(f"{name}: named in the release manifest, but missing")
    signers = {}
    for name, view in views.items():
        if view:
            signers[name] = check_signed_heads(name, paths[name], view.hashes, manifest, verdict)
            if head is None or name != FEDERATION or name in anchors:
                _check_anchor(name, view.head, anchors.get(name), verdict)
            if name == FEDERATION and head is not None:
                _check_known_head(name, view.hashes, head, verdict)
    _check_keys(manifest, signers, signer, verdict)
    federation = views.get(FEDERATION)
    _check_labels(run, anchors, verdict)
    evaluated = _check_evaluation(run, federation, manifest, anchors, verdict)
    _check_project(run, _joined(views, signers), evaluated, manifest, verdict)
    _check_released_files(run / "release", manifest, verdict)
    _check_run_files(run, manifest, verdict)
    if all(views.values()):
        _check_agreement([view for view in views.values() if view], finished=manifest is not None, verdict=verdict)
    if verdict.ok:
        _check_report(run, finished=manifest is not None, verdict=verdict)
    if federation:
        nodes = [view for name, view in views.items() if view and name != FEDERATION]
        for view in [federation] if federation.header.trust is Trust.CENTRAL else [*nodes, federation]:
            _epsilons(view, verdict)


def _check_project(
    run: Path, joined: JoinedRun | None, evaluated: JoinedRun | None, manifest: dict[str, Any] | None, verdict: Verdict
) -> None:
    """The run's copy of the project's books: they know every round of its training, and its evaluation."""
    for path in project_paths(run):
        project = check_project(path, path.name, joined, verdict, manifest)
        if project:
            _check_anchor(path.name, project.hashes[-1], _anchors(manifest, verdict).get(path.name), verdict)
            if evaluated is not None:
                check_joined(f"{path.name} (evaluation)", project.view, evaluated, verdict)


def _joined(
    views: Mapping[str, LedgerView | None], signers: Mapping[str, str], first: str = FEDERATION
) -> JoinedRun | None:
    """The book of this run that joined the project's: the federation's; under trust `local` the node's, which is the claim."""
    federation = views.get(first)
    local = federation is not None and federation.header.trust is Trust.LOCAL
    for name, view in views.items():
        if view is not None and (name == first) is not local:
            return JoinedRun(signers.get(name, ""), view.reservations)
    return None


def _check_finished(run: Path, manifest: dict[str, Any] | None, verdict: Verdict) -> None:
    status = _read_json(run / "run.json", verdict)
    if manifest is None and status is not None and status.get("status") == "finished":
        verdict.failed.append("release/manifest.json: is missing, although the run is finished")


def _check_labels(run: Path, anchors: dict[str, str], verdict: Verdict) -> None:
    """The books of randomised labels: chain, heads and anchors; their total stands apart in the report."""
    for path in label_paths(run):
        name = str(path.relative_to(run))
        labels = _check_ledger(path, name, verdict)
        if labels:
            check_signed_heads(name, path, labels.hashes, None, verdict)
            _check_anchor(name, labels.head, anchors.get(name), verdict)


def _check_evaluation(
    run: Path,
    training: LedgerView | None,
    manifest: dict[str, Any] | None,
    anchors: dict[str, str],
    verdict: Verdict,
) -> JoinedRun | None:
    """The books of federated evaluation, as those of the rounds, with a total of their own; the one the project must know."""
    paths = {str(path.relative_to(run)): path for path in evaluation_paths(run)}
    if not paths:
        return None
    views, signers = {name: _check_ledger(path, name, verdict) for name, path in paths.items()}, {}
    for name, view in views.items():
        if view:
            signers[name] = check_signed_heads(name, paths[name], view.hashes, manifest, verdict)
            _check_anchor(name, view.head, anchors.get(name), verdict)
    whole = [view for view in views.values() if view]
    if EVALUATION not in views or len(views) == 1 or len(whole) < len(views):
        verdict.failed.append("evaluation: a book of the federation or of its nodes is missing or broken")
        return None
    _check_same_terms(whole if training is None else [training, *whole], verdict)
    _check_same_noise(whole, verdict)
    if whole[0].committed and not all(view.reservations for view in whole):
        verdict.failed.append("evaluation: a sum was released that a node has not booked")
    for view in whole if whole[0].header.trust is Trust.LOCAL else whole[:1]:
        _epsilons(view, verdict, " (an evaluation user)")
    return _joined(views, signers, EVALUATION)


def _check_keys(manifest: dict[str, Any] | None, signers: dict[str, str], known: str | None, verdict: Verdict) -> None:
    """The manifest is signed by the key of the federation's ledger, and, if one is named, by that one."""
    public = check_manifest_signature(manifest, verdict)
    if public and public != signers.get(FEDERATION):
        verdict.failed.append("release/manifest.json: is not signed by the key of the federation's ledger")
    if manifest is not None and not public and signers.get(FEDERATION):
        verdict.failed.append("release/manifest.json: is not signed, although the federation's ledger is")
    found = {FEDERATION: signers.get(FEDERATION, "")}
    check_signer(known, found if manifest is None else {**found, "release/manifest.json": public}, verdict)


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
        if p.is_file() and p != release / "manifest.json" and not _unfinished(p)
    }
    if not isinstance(named, dict) or named.keys() != present.keys():
        verdict.failed.append("release/: its files are not those of the manifest")
        return
    changed = [n for n, path in present.items() if hashlib.sha256(path.read_bytes()).hexdigest() != named[n]]
    if changed:
        verdict.failed.append(f"release/{changed[0]}: is not the file that was released")
    else:
        verdict.passed.append(f"release/: {len(present)} files as released")


def _check_run_files(run: Path, manifest: dict[str, Any] | None, verdict: Verdict) -> None:
    """Recipe, plan, metrics and evaluations are those of the release; manifests of earlier versions do not name them."""
    named = (manifest or {}).get("run_files", {})
    if not isinstance(named, dict) or not all(isinstance(v, str) and "/" not in k for k, v in named.items()):
        verdict.failed.append("manifest.json: its run_files are not a table of digests")
        return
    for name, digest in named.items():
        path = run / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            verdict.failed.append(f"{name}: is not the file that the run was closed with")
    if named and verdict.ok:
        verdict.passed.append(f"{len(named)} files of the run as it was closed")


def _unfinished(path: Path) -> bool:
    """What a kill leaves of a file that was never finished; nothing reads it."""
    return path.name.startswith(".") and path.name.endswith(".part")


def _check_agreement(views: list[LedgerView], *, finished: bool, verdict: Verdict) -> None:
    """Federation and nodes tell of one run: the same terms, and the same rounds, none left out."""
    _check_same_terms(views, verdict)
    _check_same_noise(views, verdict)
    first = views[0]
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


def _check_same_terms(views: list[LedgerView], verdict: Verdict) -> None:
    terms = {(v.header.run, v.header.unit, v.header.trust, v.header.target_delta, v.header.private_rng) for v in views}
    if len(terms) > 1:
        verdict.failed.append("ledgers: federation and nodes were opened under different terms")


def _check_same_noise(views: list[LedgerView], verdict: Verdict) -> None:
    noise = [{getattr(e, "noise_multiplier", None) for r in v.reservations for e in r.events.values()} for v in views]
    if len({frozenset(multipliers - {None}) for multipliers in noise if multipliers - {None}}) > 1:
        verdict.failed.append("ledgers: federation and nodes booked different noise")


def _check_anchor(name: str, head: str, anchor: str | None, verdict: Verdict) -> None:
    """A release closes its ledgers: their last line is the manifest's."""
    if anchor is None:
        verdict.passed.append(f"{name}: chain intact, completeness not shown (no anchor: give --head HASH)")
    elif anchor == head:
        verdict.passed.append(f"{name}: complete up to the anchor {anchor[:12]}…")
    else:
        verdict.failed.append(
            f"{name}: its head {head[:12]}… is not the anchor {anchor[:12]}… (cut, rolled back or added to)"
        )


def _check_known_head(name: str, hashes: tuple[str, ...], known: str | None, verdict: Verdict) -> None:
    """A head that the reader noted once must still be there; the ledger may have gone on."""
    if known is None:
        verdict.passed.append(f"{name}: chain intact, completeness not shown (no anchor: give --head HASH)")
    elif known in hashes:
        after = len(hashes) - 1 - hashes.index(known)
        more = (
            f", and {after} lines follow it, whose completeness is not shown" if after else ", and nothing follows it"
        )
        verdict.passed.append(f"{name}: complete up to the anchor {known[:12]}…{more}")
    else:
        verdict.failed.append(f"{name}: does not hold the anchor {known[:12]}…; cut or rolled back, or another ledger")


def _check_report(run: Path, *, finished: bool, verdict: Verdict) -> None:
    if not finished and not (run / "report.json").exists():
        return
    claimed = _read_json(run / "report.json", verdict)
    if claimed is None:
        if verdict.ok:
            verdict.failed.append("report.json: missing, although the run is finished")
        return
    fresh = json.loads(json.dumps(build_report(run).fields))
    differing = sorted(key for key in fresh.keys() | claimed.keys() if not _same(fresh.get(key), claimed.get(key)))
    if differing:
        verdict.failed.append(f"report.json: differs from what the ledgers say in {', '.join(differing)}")
        return
    verdict.passed.append("report.json: every figure recomputed from the ledgers")
    text = run / "report.txt"
    if text.exists() or finished:
        if text.exists() and text.read_bytes() == render_text(Report(claimed)).encode():
            verdict.passed.append("report.txt: says what report.json says")
        else:
            verdict.failed.append("report.txt: is not the text of report.json")


def _same(a: Any, b: Any) -> bool:
    """Equal, numbers to 1e-6 relative (another processor may round the last bits of an accountant differently)."""
    if isinstance(a, float) and isinstance(b, (int, float)) and not isinstance(b, bool):
        return math.isclose(a, b, rel_tol=1e-6)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and bool(a == b)


def _epsilons(view: LedgerView, verdict: Verdict, whose: str = "") -> None:
    for adversary in Adversary:
        target, nominal = view.header.target_epsilon, view.nominal(adversary)
        try:
            value = view.epsilon(adversary)
            booked = epsilon(nominal, view.header.target_delta)
        except CodedError as error:
            verdict.failed.append(f"epsilon against {adversary.value}: {error.what}")
            continue
        trusted = any(isinstance(event, TrustedEvent) for event in nominal)
        verdict.book(adversary.value + whose, value, view.header.target_delta, view.header.unit.value, trusted=trusted)
        if target is not None and not trusted and booked > target:
            verdict.failed.append(
                f"epsilon against {adversary.value}{whose} is {booked:.4f}, above the budget {target:g}"
            )


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
