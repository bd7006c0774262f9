"""A hash-chained, append-only file of canonical JSON lines. Reading is verifying.

Line i is the canonical JSON of ``{"body", "kind", "prev", "seq", "hash"}`` where ``hash`` is the SHA-256 of the
canonical JSON of the other four, and ``prev`` is the hash of line i-1 (64 zeros for the first). A line is durable
(fsync) before ``append(..., durable=True)`` returns. A crash can leave at most one torn last line, without its newline;
whatever that line announced has not begun, because the caller waits for ``append``.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privacy.errors import LedgerError, LedgerWriteError
from privacy.events import canonical

GENESIS = "0" * 64
MAX_LINE = 65536  # bytes


@dataclass(frozen=True)
class Entry:
    """One verified line."""

    seq: int
    kind: str
    body: dict[str, Any]
    prev: str
    hash: str


@dataclass(frozen=True)
class Chain:
    """A verified chain: its entries, and the bytes of a torn last line (empty if there is none)."""

    entries: tuple[Entry, ...]
    torn_tail: bytes

    @property
    def head(self) -> str:
        """Hash of the last entry; 64 zeros for an empty chain."""
        return self.entries[-1].hash if self.entries else GENESIS


def _digest(seq: int, kind: str, body: dict[str, Any], prev: str) -> str:
    return hashlib.sha256(canonical({"body": body, "kind": kind, "prev": prev, "seq": seq}).encode()).hexdigest()


def _line(entry: Entry) -> bytes:
    fields = {"body": entry.body, "hash": entry.hash, "kind": entry.kind, "prev": entry.prev, "seq": entry.seq}
    return canonical(fields).encode() + b"\n"


def _broken(name: str, number: int, why: str) -> LedgerError:
    return LedgerError(
        f"{name}: line {number} breaks the chain.",
        why,
        "Do not trust the figures of this ledger; restore it from a copy whose head hash you know.",
    )


def parse_chain(data: bytes, name: str) -> Chain:
    """Unverified bytes -> a verified chain.

    Raises:
        LedgerError: names the first line that is not exactly what an honest writer would have written.
    """
    *lines, tail = data.split(b"\n")
    entries: list[Entry] = []
    prev = GENESIS
    for number, line in enumerate(lines, 1):
        entry = _parse_line(line, number, name)
        if entry.seq != number - 1 or entry.prev != prev:
            raise _broken(name, number, "It does not follow the line before it (edited, moved, deleted or repeated).")
        entries.append(entry)
        prev = entry.hash
    if _overlong(tail):
        raise _broken(
            name, len(lines) + 1, "It does not end where its JSON ends; a crash leaves the beginning of a line."
        )
    return Chain(tuple(entries), tail)


def _overlong(tail: bytes) -> bool:
    """True if more than one JSON value stands where a crash would have left the beginning of a line."""
    try:
        _, end = json.JSONDecoder().raw_decode(tail.decode("ascii", "replace"))
    except (ValueError, RecursionError):
        return False
    return end < len(tail)


def _parse_line(line: bytes, number: int, name: str) -> Entry:
    if len(line) > MAX_LINE:
        raise _broken(name, number, f"It is longer than {MAX_LINE} bytes.")
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _broken(name, number, f"It is not JSON ({type(error).__name__}).") from None
    shape = {"body": dict, "hash": str, "kind": str, "prev": str, "seq": int}
    if (
        not isinstance(fields, dict)
        or set(fields) != set(shape)
        or any(type(fields[key]) is not kind for key, kind in shape.items())
    ):
        raise _broken(name, number, "It has not the fields of a ledger line.")
    entry = Entry(fields["seq"], fields["kind"], fields["body"], fields["prev"], fields["hash"])
    try:
        honest = entry.hash == _digest(entry.seq, entry.kind, entry.body, entry.prev) and _line(entry) == line + b"\n"
    except (ValueError, RecursionError):  # NaN or infinity, which canonical JSON does not have; or nested too deep
        honest = False
    if not honest:
        raise _broken(name, number, "Its hash does not match its content, or it is not in canonical form.")
    return entry


def read_chain(path: Path) -> Chain:
    """Read and verify the chain in a file.

    Raises:
        LedgerError: the file is missing or broken.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LedgerError(
            f"{path.name}: cannot be read.", f"{error.strerror}.", "Check that this is the run folder of a started run."
        ) from None
    return parse_chain(data, path.name)


class ChainWriter:
    """Appends to one chain; a writer that failed once refuses to go on."""

    def __init__(self, path: Path) -> None:
        """Open or create ``path``; a torn last line is cut off (what it announced never began)."""
        self._path, self._fd = path, -1
        try:
            self._fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o600)
            _lock(self._fd, path.name)
            self.chain = read_chain(path)
            if self.chain.torn_tail:
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - len(self.chain.torn_tail))
                os.fsync(self._fd)
            if not self.chain.entries:
                fsync_folder(path.parent)
        except OSError as error:
            self.close()
            raise self._not_durable(error) from None
        except LedgerError:
            self.close()
            raise
        self._seq, self._head, self._failed = len(self.chain.entries), self.chain.head, False

    @property
    def head(self) -> str:
        """Hash of the last line written."""
        return self._head

    @property
    def num_entries(self) -> int:
        """Lines written so far."""
        return self._seq

    @property
    def closed(self) -> bool:
        """True once ``close`` was called."""
        return self._fd < 0

    def append(self, kind: str, body: dict[str, Any], *, durable: bool) -> Entry:
        """Write one line; with ``durable`` it is on disk when this returns.

        Raises:
            LedgerWriteError: the disk refused; whatever the line announces must not happen.
        """
        if self._failed:
            raise self._not_durable(OSError(0, "an earlier write failed"))
        body = json.loads(canonical(body))
        entry = Entry(self._seq, kind, body, self._head, _digest(self._seq, kind, body, self._head))
        line = _line(entry)
        if len(line) > MAX_LINE:
            raise self._not_durable(OSError(0, f"a line of {len(line)} bytes cannot be read back"))
        try:
            if os.write(self._fd, line) != len(line):
                raise OSError(0, "the line was written only in part")
            if durable:
                os.fsync(self._fd)
        except OSError as error:
            self._failed = True
            raise self._not_durable(error) from None
        self._seq, self._head = self._seq + 1, entry.hash
        return entry

    def sync(self) -> None:
        """Make all lines durable."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            self._failed = True
            raise self._not_durable(error) from None

    def close(self) -> None:
        """Close the file; the writer cannot be used afterwards."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd, self._failed = -1, True

    def _not_durable(self, error: OSError) -> LedgerWriteError:
        return LedgerWriteError(
            f"{self._path.name}: the ledger line is not on disk, so the round does not run.",
            f"The system said: {error.strerror or error}.",
            "Free space or mend the disk, then go on with `fedpref run RECIPE --resume`.",
        )


def _lock(fd: int, name: str) -> None:
    """One writer at a time; the lock goes with the process."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LedgerError(
            f"{name}: another process is writing it.",
            "Two runs on one ledger would lose spends.",
            "Wait for the other run.",
        ) from None


def fsync_folder(folder: Path) -> None:
    """Make a new or renamed file's name durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
