"""Which heads of a run are signed, by whom, and whether they fit the ledgers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from privacy.errors import CodedError
from privacy.report.verdict import Verdict
from privacy.signing import SHOWS, SignedHead, fingerprint, signed_by
from privacy.signing_files import holds, read_signed_head


def check_manifest_signature(manifest: Mapping[str, Any] | None, verdict: Verdict) -> str:
    """The public key that signed the whole manifest; "" if it is unsigned (an earlier version wrote it)."""
    if manifest is None:
        return ""
    if "signature" not in manifest and "public_key" not in manifest:
        verdict.passed.append("release/manifest.json: not signed; whoever can write it can replace all its heads")
        return ""
    content = {name: value for name, value in manifest.items() if name != "signature"}
    key = manifest.get("public_key")
    if not signed_by(key, manifest.get("signature"), content):
        verdict.failed.append("release/manifest.json: its signature is not that of its public key")
        return ""
    verdict.passed.append(f"release/manifest.json: signed by key {fingerprint(str(key))}")
    return str(key)


def check_signed_heads(
    name: str, path: Path, hashes: Sequence[str], manifest: Mapping[str, Any] | None, verdict: Verdict
) -> str:
    """Check the signed heads of one ledger, beside it and in the manifest; the public key, "" if there is none."""
    heads: list[SignedHead] = []
    table = (manifest or {}).get("signed_heads", {})
    try:
        beside = read_signed_head(path)
        heads += [beside] if beside is not None else []
        if isinstance(table, dict) and name in table:
            heads.append(SignedHead.from_json(table[name]))
    except CodedError as error:
        verdict.failed.append(f"{name}: {error.what} {error.why}")
        return ""
    if len({head.public_key for head in heads}) > 1:
        verdict.failed.append(f"{name}: its heads are signed by different keys")
        return ""
    for head in heads:
        if not holds(hashes, head):
            verdict.failed.append(
                f"{name}: line {head.entries} is not the one that was signed, {head.head[:12]}… (cut, rolled back or replaced)"
            )
            return ""
    if not heads:
        verdict.passed.append(f"{name}: no signed head")
        return ""
    last = max(head.entries for head in heads)
    after = f", {len(hashes) - last} lines after it are not signed yet" if last < len(hashes) else ""
    verdict.passed.append(f"{name}: line {last} signed by key {fingerprint(heads[0].public_key)}{after}")
    if SHOWS not in verdict.notes:
        verdict.notes.append(SHOWS)
    return heads[0].public_key


def check_signer(known: str | None, signers: Mapping[str, str], verdict: Verdict) -> None:
    """The keys found must be the one that the reader knows from elsewhere, whole or by its fingerprint."""
    wanted = "".join((known or "").split()).lower()
    for name, public in signers.items():
        if known is not None and (len(wanted) < 32 or not public.startswith(wanted)):
            verdict.failed.append(f"{name}: not signed by the key that you named")
