"""Signed heads beside ledgers: written when a ledger is closed, checked when it is opened or verified."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from privacy.chain import fsync_folder
from privacy.errors import LedgerError, LedgerWriteError, SigningError
from privacy.signing import SignedHead, SigningKey, head_path


def write_signed_head(ledger: Path, key: SigningKey, *, scope: str, run: str, entries: int, head: str) -> SignedHead:
    """Sign the head that a ledger has now; whole or not at all after a crash.

    Raises:
        LedgerWriteError: the disk refused.
    """
    signed = SignedHead.make(key, scope=scope, run=run, entries=entries, head=head)
    path = head_path(ledger)
    scratch = path.with_name(f".{path.name}.part")
    try:
        with open(os.open(scratch, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644), "wb") as file:
            file.write((json.dumps(signed.to_json(), indent=2) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        raise LedgerWriteError(
            f"{path.name}: the signed head is not on disk.",
            f"The system said: {error.strerror or error}.",
            "Free space or mend the disk, then go on with `fedpref run RECIPE --resume`.",
        ) from None
    return signed


def read_signed_head(ledger: Path) -> SignedHead | None:
    """The signed head beside a ledger, its signature checked; None if there is none (old, or not closed yet).

    Raises:
        SigningError: unreadable, or a signature that is not its key's.
    """
    path = head_path(ledger)
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise SigningError(
            f"{path.name}: cannot be read.", f"{type(error).__name__}.", "Restore it, or the ledger, from a copy."
        ) from None
    return SignedHead.from_json(fields)


def holds(hashes: Sequence[str], signed: SignedHead) -> bool:
    """True if a chain has the signed head at its place."""
    return 0 < signed.entries <= len(hashes) and hashes[signed.entries - 1] == signed.head


def check_signed_head(ledger: Path, hashes: Sequence[str]) -> None:
    """A ledger that is to be continued must hold the head that was signed when it was last closed.

    Raises:
        LedgerError: it does not: it was cut, rolled back or replaced.
        SigningError: the signed head itself is no good.
    """
    signed = read_signed_head(ledger)
    if signed is not None and not holds(hashes, signed):
        raise LedgerError(
            f"{ledger.name}: does not hold its own signed head.",
            f"Line {signed.entries} should have the hash {signed.head[:12]}…: the ledger was cut, rolled back or replaced.",
            "Restore the ledger from a copy; without it nobody knows what was spent.",
        )
