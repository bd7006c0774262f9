"""State that survives a kill: checkpoints of the server, one a round, and the sealed bytes of a node."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from fedpref.errors import DiskError, RunFolderError
from privacy.chain import fsync_folder
from privacy.errors import LedgerError
from privacy.events import canonical
from privacy.ledger import Reservation

Tensors = dict[str, npt.NDArray[np.float64]]


def write_durably(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file so that after a crash it is there whole or not at all; ``mode`` 0600 for private content.

    Raises:
        DiskError: the disk refused; the old file, if any, is untouched.
    """
    scratch = path.with_name(f".{path.name}.part")
    try:
        with open(os.open(scratch, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        raise _refused(path, error) from None


def make_folder(path: Path) -> None:
    """Make a folder and its parents, unless they are there.

    Raises:
        DiskError: the disk refused, or a file is in the way.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(path, error) from None


def _refused(path: Path, error: OSError) -> DiskError:
    return DiskError(
        f"{path.name} could not be written.",
        f"The system said: {error.strerror or error}.",
        "Free space or mend the disk, then do it again (a run goes on with --resume); nothing half-written was kept.",
    )


class Checkpoints:
    """One safetensors file per round; holds released (noised) figures only.

    A round's checkpoint is its release, in two steps: ``prepare`` writes it where only the server looks, ``publish``
    renames it. The ledger commits in between, so an uncommitted round was never released.
    """

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self._folder = folder

    def prepare(self, round_number: int, state: Tensors) -> None:
        """Make the state after a round durable, unpublished; replaces that of an attempt that was not committed."""
        write_durably(self._prepared(round_number), safetensors.numpy.save(state), mode=0o600)

    def is_prepared(self, round_number: int) -> bool:
        """Was the state after this round made durable, and not yet published?"""
        return self._prepared(round_number).exists()

    def publish(self, round_number: int) -> bool:
        """Release a prepared checkpoint; False if there is none.

        Raises:
            DiskError: the disk refused; the prepared checkpoint is untouched.
        """
        prepared = self._prepared(round_number)
        if not prepared.exists():
            return False
        try:
            prepared.replace(self._path(round_number))
            fsync_folder(self._folder)
        except OSError as error:
            raise _refused(prepared, error) from None
        return True

    def last(self) -> tuple[int, Tensors | None]:
        """The last round with a checkpoint and its state; (0, None) before the first.

        Raises:
            RunFolderError: the newest checkpoint is broken.
        """
        rounds = sorted(int(p.stem.removeprefix("round-")) for p in self._folder.glob("round-*.safetensors"))
        if not rounds:
            return 0, None
        try:
            return rounds[-1], safetensors.numpy.load_file(self._path(rounds[-1]))
        except (OSError, safetensors.SafetensorError) as error:
            raise RunFolderError(
                f"The checkpoint of round {rounds[-1]} is broken.",
                f"{type(error).__name__}.",
                "Restore it from a copy. Deleting it repeats the round, which is booked a second time.",
            ) from None

    def _prepared(self, round_number: int) -> Path:
        return self._folder / f".prepared-{round_number:06d}.safetensors"

    def _path(self, round_number: int) -> Path:
        return self._folder / f"round-{round_number:06d}.safetensors"


class SealedJournal:
    """The last round's sealed bytes of a node, saved before they are sent (rule 15). Lies in the node's own folder.

    File: SHA-256 of the rest, length of the header (32 bits, little-endian), header, messages one after another. The
    header is canonical JSON: plan digest, and number and hash of the ledger line that reserved the round. So bytes that
    were sealed under another plan, or under a booking that the ledger does not have any more, are never sent.
    """

    def __init__(self, path: Path, plan_digest: str) -> None:
        self._path, self._plan = path, plan_digest

    def save(self, reservation: Reservation, messages: list[bytes]) -> str:
        """Keep the messages of a round, replacing those of the round before; returns their digest."""
        header = canonical(
            {
                "plan": self._plan,
                "round": reservation.round,
                "reserve": reservation.seq,
                "hash": reservation.hash,
                "sizes": [len(message) for message in messages],
            }
        ).encode()
        body = len(header).to_bytes(4, "little") + header + b"".join(messages)
        digest = hashlib.sha256(body).digest()
        write_durably(self._path, digest + body, mode=0o600)
        return digest.hex()

    def load(self, round_number: int, holds: Callable[[int, str], bool]) -> list[bytes] | None:
        """The messages of this round if they were kept whole, else None (see ``intact``).

        Args:
            round_number: the round.
            holds: tells whether the node's ledger has a reservation with this line number and hash.

        Raises:
            RunFolderError: kept by another version, or sealed under another plan.
            LedgerError: the ledger does not have the reservation they were sealed under: it was rolled back.
        """
        if not self._path.exists():
            return None
        if not self.intact():
            return None
        data = self._path.read_bytes()
        start = 36 + int.from_bytes(data[32:36], "little")
        header = _journal_header(data[36:start])
        if header["plan"] != self._plan:
            raise _foreign("They were sealed under another plan.")
        if not holds(header["reserve"], header["hash"]):
            raise LedgerError(
                f"The node's ledger does not have line {header['reserve']}, under which kept messages were sealed.",
                "It was cut, rolled back or replaced after they were kept, and perhaps sent.",
                "Restore the ledger from a copy; without it nobody knows what was spent.",
            )
        if header["round"] != round_number:
            return None
        messages = []
        for size in header["sizes"]:
            messages.append(data[start : start + size])
            start += size
        return messages

    def intact(self) -> bool:
        """True if nothing is kept, or a whole file is. A kill never leaves anything else: damage came from elsewhere."""
        if not self._path.exists():
            return True
        data = self._path.read_bytes()
        return len(data) >= 36 and hashlib.sha256(data[32:]).digest() == data[:32]

    def clear(self) -> None:
        """Forget them, once the run is finished."""
        self._path.unlink(missing_ok=True)


def _journal_header(data: bytes) -> dict[str, Any]:
    kinds = {"plan": str, "round": int, "reserve": int, "hash": str, "sizes": list}
    try:
        header = json.loads(data)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or {k: type(v) for k, v in header.items()} != kinds:
        raise _foreign("They are intact, but not in the form of this version.")
    return header


def _foreign(why: str) -> RunFolderError:
    return RunFolderError(
        "The messages that the node kept are not those of this run.",
        why + " They may have been sent, so nothing is computed in their place.",
        "Resume with the version and the recipe that the run was started with, or start a new run folder.",
    )
