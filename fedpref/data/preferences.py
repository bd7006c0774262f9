"""Checked preference records as index arrays over distinct conversations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from reward.pairs import Conversation

if TYPE_CHECKING:
    from datasets import Dataset

Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Preferences:
    """Preference pairs: ``chosen`` and ``rejected`` index ``texts``; ``user``, ``topic``, ``client`` are strings; all [n]."""

    texts: tuple[Conversation, ...]
    chosen: Index
    rejected: Index
    user: npt.NDArray[np.str_]
    topic: npt.NDArray[np.str_]
    client: npt.NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.chosen)

    def select(self, mask: npt.NDArray[np.bool_] | Index) -> Preferences:
        """The records of a mask or index, over the same texts."""
        return Preferences(
            self.texts, self.chosen[mask], self.rejected[mask], self.user[mask], self.topic[mask], self.client[mask]
        )

    @classmethod
    def concat(cls, parts: Sequence[Preferences]) -> Preferences:
        """All records of several tables over one table of distinct texts."""
        index: dict[Conversation, int] = {}
        maps = [np.array([index.setdefault(t, len(index)) for t in p.texts], dtype=np.int64) for p in parts]
        empty = [np.zeros(0, dtype=np.int64)]
        strings = [np.zeros(0, dtype=np.str_)]
        return cls(
            tuple(index),
            np.concatenate([m[p.chosen] for m, p in zip(maps, parts, strict=True)] or empty),
            np.concatenate([m[p.rejected] for m, p in zip(maps, parts, strict=True)] or empty),
            np.concatenate([p.user for p in parts] or strings),
            np.concatenate([p.topic for p in parts] or strings),
            np.concatenate([p.client for p in parts] or strings),
        )

    @property
    def used_texts(self) -> list[Conversation]:
        """The texts that some record refers to, each once."""
        return [self.texts[i] for i in np.unique(np.concatenate([self.chosen, self.rejected])).astype(np.int64)]


@dataclass(frozen=True)
class RecordProblem:
    """Records that carry no preference and are left out; told to their holder only, never sent."""

    code: str
    what: str
    rows: tuple[int, ...]

    def describe(self) -> str:
        """One line; names rows, never texts."""
        shown = ", ".join(str(row) for row in self.rows[:5]) + (" …" if len(self.rows) > 5 else "")
        return f"warning[{self.code}] {len(self.rows)} records left out: {self.what} (rows {shown})"


_PROBLEMS = {
    "FP211": "an empty prompt, or an empty answer; fix: remove or complete them",
    "FP212": "chosen and rejected are the same text; fix: remove ties before training",
    "FP213": "the same person gave the same vote again; fix: none needed, one is kept",
    "FP214": "the same person voted both ways on one pair; fix: keep the vote that counts",
    "FP217": "ties: equal ratings, or nothing to compare with; fix: none needed, ties carry no preference",
    "FP218": "chosen and rejected part before the last answer; fix: let them differ in one answer only",
}


def problems_of(found: Mapping[str, Sequence[int]]) -> list[RecordProblem]:
    """Code -> row numbers, as problems with words."""
    return [RecordProblem(code, _PROBLEMS[code], tuple(rows)) for code, rows in sorted(found.items()) if rows]


def check_records(
    dataset: Dataset, numbers: Index | None = None, *, whichever_won: bool = False
) -> tuple[Preferences, list[RecordProblem]]:
    """Leave out what carries no preference, judged within each user alone (no user's records affect another's).

    Args:
        numbers: the file's row number of each record, where that is not its place.
        whichever_won: keep a person's first vote on a pair, whatever the later ones say. Under randomised labels the number
            of records may not depend on any true label (guarantees.md rule 12).

    Returns:
        the preferences that remain, in order, and the problems found (row numbers count from 1).
    """
    index: dict[Conversation, int] = {}
    rows = [_row(index, record) for record in dataset]
    problems: dict[str, list[int]] = defaultdict(list)
    votes: dict[tuple[str, int, int], int] = {}
    for i, (chosen, rejected, user, _, _) in enumerate(rows):
        if chosen < 0 or rejected < 0:
            problems["FP211"].append(i)
        elif chosen == rejected:
            problems["FP212"].append(i)
        elif (user, chosen, rejected) in votes or (whichever_won and (user, rejected, chosen) in votes):
            problems["FP213"].append(i)
        else:
            votes[user, chosen, rejected] = i
    both_ways = [i for (user, c, r), i in votes.items() if (user, r, c) in votes]
    problems["FP214"] += sorted(both_ways)
    left_out = {i for members in problems.values() for i in members}
    kept = [row for i, row in enumerate(rows) if i not in left_out]
    at = np.arange(1, len(rows) + 1) if numbers is None else numbers
    return pack(index, kept), problems_of({code: [int(at[i]) for i in members] for code, members in problems.items()})


def _row(index: dict[Conversation, int], record: Any) -> tuple[int, int, str, str, str]:
    prompt = tuple((m["role"], m["content"]) for m in record["prompt"])
    sides = []
    for key in ("chosen", "rejected"):
        conversation = Conversation(prompt, record[key][0]["content"])
        blank = not conversation.completion.strip() or not prompt[-1][1].strip()
        sides.append(-1 if blank else index.setdefault(conversation, len(index)))
    return sides[0], sides[1], record["user_id"], record["topic"], record["client"]


def pack(index: dict[Conversation, int], rows: Iterable[tuple[int, int, str, str, str]]) -> Preferences:
    """(chosen, rejected, user, topic, client) of every record, over the distinct texts of ``index``."""
    columns = list(zip(*rows, strict=True)) or [(), (), (), (), ()]
    return Preferences(
        tuple(index),
        np.array(columns[0], dtype=np.int64),
        np.array(columns[1], dtype=np.int64),
        np.array(columns[2], dtype=np.str_),
        np.array(columns[3], dtype=np.str_),
        np.array(columns[4], dtype=np.str_),
    )
