"""Small ledgers and run folders for the tests of this room; no torch, no model, no training."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from hypothesis import settings

from privacy.events import Event, GaussianEvent, TrustedEvent
from privacy.ledger import Ledger, LedgerHeader, read_ledger
from privacy.mechanism import GaussianMechanism
from privacy.report import build_report, render_text
from privacy.report.build import ledger_paths
from privacy.sampling import PoissonSampling
from privacy.signing import SigningKey, key_path
from privacy.signing_files import read_signed_head
from privacy.units import Adversary, PrivacyUnit, Trust

REPEATABLE = settings(deadline=None, derandomize=True)  # no clock and no chance in a property test

DELTA = 1e-5
EVENT = GaussianEvent(8.0, 1.0)  # cheap for both accountants


def header(**changes: Any) -> LedgerHeader:
    """A header without a budget; ``changes`` replace its fields."""
    fields: dict[str, Any] = {
        "scope": "federation",
        "run": "test",
        "unit": PrivacyUnit.USER,
        "trust": Trust.CENTRAL,
        "target_epsilon": None,
        "target_delta": DELTA,
        "private_rng": True,
        "facts": {"max_grad_norm": 1.0, "num_units": 1234, "num_evaluation_users": 56},
    }
    return LedgerHeader(**{**fields, **changes})


def events(event: Event = EVENT, server: Event | None = None) -> dict[Adversary, Event]:
    """One round's events: the same against everybody, the server trusted unless said otherwise."""
    return {Adversary.READER: event, Adversary.OTHER_CLIENTS: event, Adversary.SERVER: server or TrustedEvent()}


def write_ledger(path: Path, rounds: int, event: Event = EVENT, **changes: Any) -> str:
    """A ledger of ``rounds`` committed rounds; returns its head."""
    ledger = Ledger(path, header(**changes))
    for number in range(1, rounds + 1):
        ledger.commit(ledger.reserve(number, events(event)))
    ledger.close()
    return ledger.head


def write_run(
    folder: Path,
    rounds: int = 3,
    *,
    trust: Trust = Trust.CENTRAL,
    noise_multiplier: float = 8.0,
    sample_rate: float = 0.5,
    **changes: Any,
) -> Path:
    """A run folder with both ledgers, report and manifest, as a run would leave it."""
    mechanism = GaussianMechanism(trust, PoissonSampling(sample_rate), 1.0, noise_multiplier)
    (folder / "nodes" / "local").mkdir(parents=True)
    for scope, file, booked in (
        ("federation", folder / "ledger.jsonl", mechanism.events()),
        ("node:local", folder / "nodes" / "local" / "ledger.jsonl", mechanism.node_events()),
    ):
        budget = changes.get("target_epsilon") if trust is Trust.LOCAL or scope == "federation" else None
        opened = header(**{**changes, "scope": scope, "trust": trust, "target_epsilon": budget})
        ledger = Ledger(file, opened, signer=SigningKey.at(key_path(file)))
        for number in range(1, rounds + 1):
            ledger.commit(ledger.reserve(number, booked))
        ledger.close()
    write_report(folder)
    write_manifest(folder)
    return folder


def write_report(folder: Path) -> None:
    """``report.json`` and ``report.txt`` of what the ledgers say now."""
    report = build_report(folder)
    (folder / "report.json").write_text(json.dumps(report.fields, indent=2) + "\n", encoding="utf-8")
    (folder / "report.txt").write_text(render_text(report), encoding="utf-8")


def write_manifest(folder: Path) -> None:
    """A signed ``release/manifest.json`` with the heads that the ledgers have now, and a released file."""
    release = folder / "release"
    (release / "reward").mkdir(parents=True, exist_ok=True)
    (release / "reward" / "head.bin").write_bytes(b"weights")
    heads = {str(path.relative_to(folder)): read_ledger(path).head for path in ledger_paths(folder)}
    files = {"reward/head.bin": hashlib.sha256(b"weights").hexdigest()}
    signed = {name: head.to_json() for name in heads if (head := read_signed_head(folder / name))}
    key = SigningKey.at(key_path(folder / "ledger.jsonl"))
    manifest: dict[str, Any] = {"schema": "fedpref-release-1", "ledger_heads": heads, "files": files}
    manifest |= {"signed_heads": signed, "public_key": key.public}
    manifest["signature"] = key.sign(manifest)
    (release / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
