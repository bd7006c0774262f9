"""A node's labels under randomised response: booked, drawn once, kept, swapped into the records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedpref.client.work import pair_name
from fedpref.data.preferences import Preferences
from privacy.errors import LabelsError
from privacy.labels import KeptLabels, RandomizedResponse
from privacy.ledger import Ledger, LedgerHeader
from privacy.rng import RandomSource
from privacy.units import Adversary

LEDGER, TABLE = "labels.jsonl", "labels.bin"


def randomized_labels(
    clients: Mapping[str, Preferences],
    response: RandomizedResponse,
    folder: Path,
    header: LedgerHeader,
    rng: RandomSource,
) -> dict[str, Preferences]:
    """The records with their kept labels; draws and books them on the first call in ``folder``.

    The book is apart from that of the rounds (rule 12). It holds against everybody, the trusted server included: whatever
    is computed from kept labels is post-processing.

    A client none of whose labels was drawn refused when they were, and agrees now: it stays out (no records) for the rest
    of this run, which booked one draw.

    Raises:
        LabelsError: the kept labels are lost, broken, or of other records.
    """
    names = {client: record_names(client, data) for client, data in clients.items()}
    kept, ledger = KeptLabels(folder / TABLE), Ledger(folder / LEDGER, header)
    try:
        if not kept.drawn:
            _book(ledger, response)
            kept.draw([name for group in names.values() for name in group], response, rng.stream("labels"))
        if ledger.open_reservation is not None:
            ledger.commit(ledger.open_reservation)
        if not ledger.committed_round:
            raise LabelsError(
                f"{TABLE}: labels are kept that no book knows.",
                f"{LEDGER} is missing or was rolled back.",
                "Restore it from a copy, or start a new run folder.",
            )
    finally:
        ledger.close()
    return {
        client: _swapped(data, kept.flips(names[client])) if kept.knows_any(names[client]) else Preferences.concat([])
        for client, data in clients.items()
    }


def _book(ledger: Ledger, response: RandomizedResponse) -> None:
    if ledger.committed_round:
        raise LabelsError(
            f"{TABLE}: the kept labels are lost.",
            f"{LEDGER} says that they were drawn, and used.",
            "Restore the file from a copy; drawing again would spend every label's epsilon again.",
        )
    if ledger.open_reservation is None:  # else: booked, and killed before a label was kept
        ledger.reserve(1, dict.fromkeys(Adversary, response.event))


def record_names(client: str, data: Preferences) -> list[str]:
    """One name per record that does not depend on its label: client, person, the two texts, and a count of repetitions."""
    seen: Counter[str] = Counter()
    names = []
    for i in range(len(data)):
        name = f"{client}|{data.user[i]}|{pair_name(data, i)}"
        names.append(f"{name}|{seen[name]}")
        seen[name] += 1
    return names


def _swapped(data: Preferences, flips: npt.NDArray[np.bool_]) -> Preferences:
    chosen, rejected = np.where(flips, data.rejected, data.chosen), np.where(flips, data.chosen, data.rejected)
    return replace(data, chosen=chosen, rejected=rejected)
