"""What a run remembers of its clients' own books, so that a resumed run notices when they were lost or rolled back.

One small file per book in the node's folder: how many lines the book had after this run's last line in it, and the hash
of that line. Books are shared by runs, so they may have grown since; they may not lack that line.
"""

from __future__ import annotations

import json
from pathlib import Path

from fedpref.journal import make_folder, write_durably
from privacy.errors import LedgerError
from privacy.project_book import ProjectBook

_SCHEMA = "fedpref-remembered-1"


class RememberedBook:
    """The memory of one client's book. Written after each line of this run, before its data are touched."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def check_present(self, book: Path) -> None:
        """Before a book is opened, which would make a new one: it must be there if it was.

        Raises:
            LedgerError: it is gone, or this memory is damaged.
        """
        if self._read() is not None and not book.exists():
            raise _lost(book.name, "The file is gone")

    def check(self, name: str, book: ProjectBook) -> None:
        """Raises LedgerError if an open book lacks the line that it had."""
        known = self._read()
        if known is not None and not book.holds(*known):
            raise _lost(name, f"Line {known[0]}, which this run wrote or saw, is not in it")

    def remember(self, book: ProjectBook) -> None:
        """On disk when this returns.

        Raises:
            DiskError: the disk refused.
        """
        make_folder(self._path.parent)
        fields = {"schema": _SCHEMA, "lines": book.num_entries, "head": book.head}
        write_durably(self._path, (json.dumps(fields) + "\n").encode(), mode=0o600)

    def _read(self) -> tuple[int, str] | None:
        if not self._path.exists():
            return None
        try:
            fields = json.loads(self._path.read_text(encoding="utf-8"))
            lines, head = fields["lines"], fields["head"]
            if fields["schema"] != _SCHEMA or type(lines) is not int or type(head) is not str:
                raise ValueError(fields["schema"])
        except (OSError, ValueError, KeyError, TypeError):
            raise LedgerError(
                f"{self._path.name}: what this run remembers of a client's books cannot be read.",
                "Without it nobody knows whether those books are whole.",
                "Restore it from a copy, or start a new run folder.",
            ) from None
        return lines, head


def _lost(name: str, why: str) -> LedgerError:
    return LedgerError(
        f"{name}: the client's own books were lost, cut off or rolled back since this run booked in them.",
        why + ".",
        "Restore them from a copy; without them the client does not know what it has spent, and takes no part.",
    )
