"""Ratings -> pairs: any two answers that one person gave different ratings under one prompt."""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations

import numpy as np
import pyarrow

from fedpref.data.digests import digest_of


def pair_rated(ratings: pyarrow.Table, problems: dict[str, list[int]]) -> pyarrow.Table:
    """Rows (prompt, completion, rating, user_id, topic, client, row) -> pairs (prompt, chosen, rejected, ...).

    A pair belongs to the person who gave both ratings; its topic, client and row are those of the earlier row. Rows that
    end up in no pair are listed in ``problems`` under FP217 (a tie, or the only rating under its prompt).

    The number of pairs of k ratings is at most k (k - 1) / 2; `privacy.max_pairs_per_user` bounds what one person adds.
    """
    groups: dict[tuple[str, bytes, str], list[int]] = defaultdict(list)
    place = 0
    for batch in ratings.to_batches():
        owners = zip(*(batch.column(c).to_pylist() for c in ("user_id", "prompt", "client")), strict=True)
        for user, prompt, client in owners:
            groups[user, digest_of(prompt), client].append(place)
            place += 1
    worth = ratings.column("rating").to_numpy()
    better, worse = [], []
    for rows in groups.values():
        for i, j in combinations(rows, 2):
            if worth[i] != worth[j]:
                better.append(i if worth[i] > worth[j] else j)
                worse.append(j if worth[i] > worth[j] else i)
    chosen, rejected = np.array(better, dtype=np.int64), np.array(worse, dtype=np.int64)
    alone = np.setdiff1d(np.arange(ratings.num_rows), np.concatenate([chosen, rejected]))
    if len(alone):
        problems["FP217"] += ratings.column("row").to_numpy()[alone].tolist()
    columns = {"prompt": ratings.column("prompt").take(chosen)}
    columns |= {"chosen": ratings.column("completion").take(chosen)}
    columns |= {"rejected": ratings.column("completion").take(rejected)}
    first = np.minimum(chosen, rejected)
    return pyarrow.table(columns | {c: ratings.column(c).take(first) for c in ("user_id", "topic", "client", "row")})
