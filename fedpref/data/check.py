"""`fedpref data check`: what a holder should know before training. Exact figures of private data: for their holder only.

Texts pass through batch by batch; what stays is a few numbers a record (digests, lengths, the user's number).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow

from fedpref.data.digests import digest_of
from fedpref.data.files import files_of
from fedpref.data.formats import USES
from fedpref.data.people import is_named
from fedpref.data.reading import Reading
from fedpref.data.schema import DatasetSpec

Ints = npt.NDArray[np.int64]
QUANTILES = {"min": 0.0, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}
BOUNDS = (5, 10, 20, 50, 100)
_TEXTS = ("prompt", "chosen", "rejected", "completion")


@dataclass
class Check:
    """What ``check`` found. ``figures`` is JSON; ``topics`` and ``examples`` have words in them: for a local terminal only."""

    spec: DatasetSpec
    figures: dict[str, Any]
    topics: dict[str, int] = field(default_factory=dict)
    """Topic -> rows."""
    examples: list[dict[str, Any]] = field(default_factory=list)


def check_dataset(spec: DatasetSpec, *, num_examples: int = 3) -> Check:
    """Read everything once and count.

    Raises:
        CodedError: as ``Reading.tables``.
    """
    found = _Tally()
    members: Counter[tuple[str, str, str]] = Counter()
    problems: Counter[str] = Counter()
    paths: list[Path | None] = [*files_of(spec)] if spec.is_local else [None]
    num_rows = 0
    for path in paths:
        reading = Reading(spec, need_user=False, path=path)
        for table in reading.tables():
            found.add(table, num_examples)
        members.update(reading.members)
        problems.update({code: len(rows) for code, rows in reading.problems.items()})
        num_rows += reading.num_rows
    users = {user for user, _, _ in members if is_named(user)}
    figures: dict[str, Any] = {
        "name": spec.name,
        "format": spec.format,
        "used_for": USES[spec.format],
        "files": len(paths),
        "rows": num_rows,
        "records": found.num_records,
        "users": len(users) or None,
        "topics": len({topic for _, _, topic in members if topic}),
        "clients": len({client for _, client, _ in members if client}),
        "left_out": dict(sorted(problems.items())),
    }
    figures |= found.figures(spec, users)
    topics: Counter[str] = Counter()
    for (_, _, topic), rows in members.items():
        topics[topic] += rows
    return Check(spec, figures, dict(topics.most_common()), found.examples)


class _Tally:
    """Digests, lengths and users of all records; no texts but those of the examples."""

    def __init__(self) -> None:
        self.examples: list[dict[str, Any]] = []
        self._numbers: dict[str, int] = {}
        self._users: list[Ints] = []
        self._digests: dict[str, list[Ints]] = {}
        self._lengths: dict[str, list[Ints]] = {}
        self._blank: list[npt.NDArray[np.bool_]] = []
        self._extras: dict[str, Counter[str]] = {}

    @property
    def num_records(self) -> int:
        return sum(map(len, self._users))

    def add(self, table: pyarrow.Table, num_examples: int) -> None:
        for batch in table.to_batches(max_chunksize=2048):
            columns = {name: batch.column(name).to_pylist() for name in batch.schema.names}
            if len(self.examples) < num_examples:
                self.examples += batch.slice(0, num_examples - len(self.examples)).to_pylist()
            names = [self._numbers.setdefault(user, len(self._numbers)) for user in columns["user_id"]]
            self._users.append(np.array(names, dtype=np.int64))
            blank = np.zeros(batch.num_rows, dtype=np.bool_)
            prompts = [repr(prompt) for prompt in columns["prompt"]]
            for side in (name for name in _TEXTS if name in columns):
                said = columns[side]
                parts = [(p,) if side == "prompt" else (p, s[0]["content"]) for p, s in zip(prompts, said, strict=True)]
                self._digests.setdefault(side, []).append(_short_digests(parts))
                size = [sum(len(m["content"]) for m in s) for s in said]
                self._lengths.setdefault(side, []).append(np.array(size, dtype=np.int64))
                blank |= np.array([not s[-1]["content"].strip() for s in said], dtype=np.bool_)
            self._blank.append(blank)
            if "label" in columns:
                self._extras.setdefault("label", Counter()).update(str(v).lower() for v in columns["label"])
            if "answer" in columns:
                self._extras.setdefault("answer", Counter()).update("given" if v else "none" for v in columns["answer"])

    def figures(self, spec: DatasetSpec, users: set[str]) -> dict[str, Any]:
        user = _joined(self._users)
        lengths = {side: _joined(parts) for side, parts in self._lengths.items()}
        digests = {side: _joined(parts) for side, parts in self._digests.items()}
        result: dict[str, Any] = {"characters": {side: quantiles(values) for side, values in lengths.items()}}
        result["distinct_prompts"] = len(np.unique(digests["prompt"])) if digests else 0
        for name, seen in self._extras.items():
            result[f"{name}s"] = dict(sorted(seen.items()))
        blank = np.concatenate([np.zeros(0, dtype=np.bool_), *self._blank])
        result["blank"] = int(blank.sum())
        if USES[spec.format] == "pairs":
            result |= self._pairs(user, digests, lengths, blank, users)
        else:
            key = digests.get("completion", digests.get("prompt", np.zeros(0, np.int64)))
            result["duplicates"] = len(key) - len(np.unique(_combined(user, key)))
        return result

    def _pairs(
        self,
        user: Ints,
        digests: dict[str, Ints],
        lengths: dict[str, Ints],
        blank: npt.NDArray[np.bool_],
        users: set[str],
    ) -> dict[str, Any]:
        """The same judgements as ``check_records``: blank, tie, duplicate, contradiction, in this order."""
        empty = np.zeros(0, np.int64)
        chosen, rejected = digests.get("chosen", empty), digests.get("rejected", empty)
        tie = ~blank & (chosen == rejected)
        left = np.flatnonzero(~blank & ~tie)
        votes = _combined(user[left], chosen[left], rejected[left])
        _, first = np.unique(votes, return_index=True)
        kept = left[np.sort(first)]
        both = np.isin(_combined(user[kept], rejected[kept], chosen[kept]), votes)
        usable = kept[~both]
        longer = lengths["chosen"][usable] > lengths["rejected"][usable] if len(usable) else np.zeros(0)
        per_user = np.bincount(user[usable], minlength=len(self._numbers))
        result: dict[str, Any] = {
            "ties": int(tie.sum()),
            "duplicates": len(left) - len(kept),
            "contradictions": int(both.sum()),
            "usable_pairs": len(usable),
            "chosen_is_longer": round(float(longer.mean()), 4) if len(usable) else None,
        }
        if users:
            silent = max(len(users) - int((per_user > 0).sum()), 0)
            all_users = np.concatenate([per_user[per_user > 0], np.zeros(silent, dtype=np.int64)])
            result |= {"users_without_usable_pairs": silent, "pairs_per_user": quantiles(all_users)}
            result["max_pairs_per_user"] = advice(all_users)
        return result


def advice(per_user: Ints) -> dict[str, Any]:
    """What each bound on a person's pairs would keep, and a suggestion.

    The suggestion is the least of a few round numbers that leaves nine people of ten whole. It looks at private data:
    choosing it is a release that no epsilon covers.
    """
    pairs, people = max(int(per_user.sum()), 1), max(len(per_user), 1)
    kept = {str(bound): round(float(np.minimum(per_user, bound).sum()) / pairs, 4) for bound in BOUNDS}
    whole = {str(bound): round(int((per_user <= bound).sum()) / people, 4) for bound in BOUNDS}
    suggested = next((bound for bound in BOUNDS if whole[str(bound)] >= 0.9), BOUNDS[-1])
    return {"pairs_kept": kept, "users_whole": whole, "suggested": suggested, "data_dependent": True}


def quantiles(values: Ints) -> dict[str, float]:
    """Minimum to maximum; empty for no values."""
    if not len(values):
        return {}
    found = np.quantile(values, list(QUANTILES.values()))
    return {name: round(float(value), 1) for name, value in zip(QUANTILES, found, strict=True)}


def _short_digests(values: list[Any]) -> Ints:
    """8 bytes each: among 10^6 texts two collide with a chance of 3e-8."""
    return np.frombuffer(b"".join(digest_of(value)[:8] for value in values), dtype=np.int64)


def _joined(parts: list[Ints]) -> Ints:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


_ODD = (-7046029254386353131, -4417276706812531889, 1609587929392839161)  # the multipliers of xxHash64


def _combined(*columns: Ints) -> Ints:
    """One number per row: a linear hash of the row's numbers modulo 2^64. Of 10^6 rows two collide with a chance of 3e-8."""
    with np.errstate(over="ignore"):
        total = np.zeros(len(columns[0]), dtype=np.int64)
        for column, factor in zip(columns, _ODD, strict=False):
            total += column * np.int64(factor)
    return total
