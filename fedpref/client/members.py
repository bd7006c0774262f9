"""What a node under secure aggregation keeps for its clients over a restart, and their identity keys.

Saved before anything is sent: the state machines with the keys, seeds and replies of the rounds under way, the last
round of training for which a vector was made, and how often each client took part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedpref.errors import RunFolderError
from fedpref.journal import make_folder, write_durably
from fedpref.keyring import new_identity, read_identity
from privacy.errors import LedgerError
from privacy.events import canonical
from privacy.ledger import Reservation
from privacy.secagg.keys import Identity, Pinned

SERVER_KEY = "server.json"


@dataclass
class Kept:
    """The content of the journal.

    Attributes:
        round: the last round of training for which vectors were made; 0 before the first.
        reserve: line of the node's ledger that booked it; -1 before the first.
        hash: of that line.
        counts: client -> rounds that it took part in, by itself.
        states: client -> its state machine's bytes, secrets included.
    """

    round: int = 0
    reserve: int = -1
    hash: str = ""
    counts: dict[int, int] = field(default_factory=dict)
    states: dict[int, bytes] = field(default_factory=dict)

    def booked(self, reservation: Reservation, clients: Iterable[int]) -> None:
        """Vectors of these clients are made under this reservation; a round that goes on counts once."""
        if (self.reserve, self.hash) != (reservation.seq, reservation.hash):
            for client in clients:
                self.counts[client] = self.counts.get(client, 0) + 1
        self.round, self.reserve, self.hash = reservation.round, reservation.seq, reservation.hash


class MemberJournal:
    """The file of ``Kept``: SHA-256 of the rest, length of the header (32 bits, little-endian), canonical JSON, states."""

    def __init__(self, path: Path, plan_digest: str) -> None:
        self._path, self._plan = path, plan_digest

    def save(self, kept: Kept) -> None:
        """Replace the file, durably, before anything of it is sent."""
        header = canonical(
            {
                "plan": self._plan,
                "round": kept.round,
                "reserve": kept.reserve,
                "hash": kept.hash,
                "counts": {str(client): n for client, n in kept.counts.items()},
                "sizes": {str(client): len(state) for client, state in kept.states.items()},
            }
        ).encode()
        states = (kept.states[int(client)] for client in json.loads(header)["sizes"])
        body = len(header).to_bytes(4, "little") + header + b"".join(states)
        write_durably(self._path, hashlib.sha256(body).digest() + body, mode=0o600)

    def load(self, holds: Callable[[int, str], bool], committed_line: int) -> Kept:
        """What was kept; empty before the first time.

        Args:
            holds: tells whether the node's ledger has a reservation with this line number and hash.
            committed_line: of the ledger; states are saved before a commit, so they are never older than it.

        Raises:
            RunFolderError: damaged, lost, rolled back, or kept under another plan: keys and counts of these clients are lost.
            LedgerError: the ledger does not have the reservation of the last vectors: it was rolled back.
        """
        kept = self._read(holds) if self._path.exists() else Kept()
        if kept.reserve < committed_line:
            raise self._unusable(f"The node's ledger committed line {committed_line}, of which it knows nothing.")
        return kept

    def _read(self, holds: Callable[[int, str], bool]) -> Kept:
        if not self.intact():
            raise self._unusable("It is damaged.")
        data = self._path.read_bytes()
        start = 36 + int.from_bytes(data[32:36], "little")
        header: dict[str, Any] = json.loads(data[36:start])
        if header["plan"] != self._plan:
            raise self._unusable("It was kept under another plan.")
        if header["reserve"] >= 0 and not holds(header["reserve"], header["hash"]):
            raise LedgerError(
                f"The node's ledger does not have line {header['reserve']}, under which vectors were made.",
                "It was cut, rolled back or replaced after they were kept, and perhaps sent.",
                "Restore the ledger from a copy; without it nobody knows what was spent.",
            )
        counts = {int(client): int(n) for client, n in header["counts"].items()}
        kept = Kept(header["round"], header["reserve"], header["hash"], counts)
        for client, size in header["sizes"].items():
            kept.states[int(client)] = data[start : start + size]
            start += size
        return kept

    def intact(self) -> bool:
        """True if nothing is kept, or a whole file is."""
        if not self._path.exists():
            return True
        data = self._path.read_bytes()
        return len(data) >= 36 and hashlib.sha256(data[32:]).digest() == data[:32]

    def forget_states(self, kept: Kept) -> None:
        """Erase keys and seeds once the run is finished; which rounds there were, and how often for whom, stays known."""
        kept.states.clear()
        self.save(kept)

    def _unusable(self, why: str) -> RunFolderError:
        return RunFolderError(
            f"{self._path.name}: the clients' kept states cannot be used.",
            why + " Vectors may have been sent under them, so nothing is computed in their place.",
            "Restore it from a copy, or start a new run folder.",
        )


def embedded_identities(folder: Path, num_clients: int) -> tuple[Identity, dict[int, Identity], Pinned]:
    """Identity keys of the simulated clients and of the embedded server: made once, then read again.

    Real clients make theirs with `fedpref keys new` and pin each other's out of band; here one process holds them all.

    Raises:
        KeyFileError: a key file is damaged or readable by others.
    """
    make_folder(folder)
    folder.chmod(0o700)
    server = _identity(folder / SERVER_KEY)
    clients = {i: _identity(folder / f"client-{i}.json") for i in range(num_clients)}
    return server, clients, Pinned(server.public, {i: identity.public for i, identity in clients.items()})


def _identity(path: Path) -> Identity:
    return read_identity(path) if path.exists() else new_identity(path)
