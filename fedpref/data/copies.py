"""One record, one place: records that several data files hold, and private ones that a public file holds.

Records are compared by what they say, as 16-byte digests: people by name, texts in the Unicode form NFC with runs of blanks as
one. So a copy with another line end, order, format or description is still a copy. A file's own rows are not compared here: in
one file a row without a `user_id` is a record of its own, also if another row says the same.

| records of several files | unit `example` | unit `user` | unit `client` |
|---|---|---|---|
| the same vote of one person (`user_id`) | the first is kept | the first is kept; by file: refused elsewhere | bounded anyway |
| alike, without a user_id | as often as in the file that has it most often; see below | there are none | bounded anyway |
| two files that hold exactly the same records | refused | the first is kept; by file: refused | by file: refused |

Without a `user_id` nobody can tell a copy from another person's equal vote. Where all files are one holder's they count as
copies; keeping as many as the fullest file has lets one record change the sum by no more than itself. Where files or the column
`client` are clients, under trust `local` (two clients' messages would move) and under randomised labels (a true label would
decide who is kept), they count as different people's, and only whole files are compared, of at least ``FEWEST`` records.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedpref.config import Recipe
from fedpref.data.digests import digest_of
from fedpref.data.people import is_named
from fedpref.data.preferences import Preferences
from fedpref.errors import UnsupportedPlanError
from privacy.units import PrivacyUnit, Trust
from reward.pairs import Conversation

FEWEST = 20
Digests = npt.NDArray[np.bytes_]
Index = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def text_digest(text: Conversation) -> bytes:
    """16 bytes that name what a text says."""
    return digest_of([*((role, _plain(said)) for role, said in text.prompt), _plain(text.completion)])


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def as_digests(values: Sequence[bytes]) -> Digests:
    """An array of 16-byte digests, shape [n]."""
    return np.array(values, dtype="S16")


def without_copies(
    names: Sequence[str], files: Sequence[Preferences], recipe: Recipe
) -> tuple[list[Preferences], list[str]]:
    """The files' records, each record once, and what to tell their holder; the rule is the module's table.

    Raises:
        UnsupportedPlanError: two files hold the same records.
    """
    p, by = recipe.privacy, recipe.federation.partition.by
    if len(files) < 2 or not any(map(len, files)):
        return list(files), []
    randomized, by_file = p.labels == "randomized_response", by == "file"
    merged = by not in {"file", "column"} and p.trust is not Trust.LOCAL and not randomized
    if by_file or (p.unit is PrivacyUnit.EXAMPLE and not merged):
        _refuse_equal_files(names, files)
    if p.unit is PrivacyUnit.CLIENT or (p.unit is PrivacyUnit.USER and by_file):
        return list(files), []
    said = [_records(part, whichever_won=randomized) for part in files]
    keep = np.split(_kept(files, said, nameless=merged), np.cumsum([len(part) for part in files])[:-1])
    told = [
        f"{name}: warning[FP219] {int((~mask).sum())} records left out: another data file holds them too; fix: none needed"
        for name, mask in zip(names, keep, strict=True)
        if not mask.all()
    ]
    return [part.select(mask) for part, mask in zip(files, keep, strict=True)], told


def _records(part: Preferences, *, whichever_won: bool) -> Digests:
    """What each record says, whoever said it, shape [n]; ``whichever_won``: a vote and its opposite are one."""
    texts = [text_digest(text) for text in part.texts]
    both = ((texts[c], texts[r]) for c, r in zip(part.chosen.tolist(), part.rejected.tolist(), strict=True))
    return as_digests([digest_of(sorted(pair) if whichever_won else pair) for pair in both])


def _kept(files: Sequence[Preferences], said: Sequence[Digests], *, nameless: bool) -> Mask:
    """Which records of all files together stay, shape [n]."""
    users = np.concatenate([part.user for part in files])
    of_file = np.repeat(np.arange(len(files)), [len(part) for part in files])
    named = np.array([is_named(str(user)) for user in users], dtype=np.bool_)
    _, content = np.unique(np.concatenate(said), return_inverse=True)
    _, person = np.unique(users, return_inverse=True)
    vote = _number(content, person)
    first = np.full(int(vote.max()) + 1, len(files))
    np.minimum.at(first, vote, of_file)
    keep: Mask = np.logical_or(~named, of_file == first[vote])
    if nameless and not named.all():
        keep[~named] = _as_in_the_fullest_file(content, of_file, keep & named, ~named)[~named]
    return keep


def _as_in_the_fullest_file(content: Index, of_file: Index, kept: Mask, nameless: Mask) -> Mask:
    """True for the first ``nameless`` records of every content: as many as its fullest file has, less the ``kept`` ones."""
    rows = np.bincount(_number(content, of_file))
    fullest = np.zeros(int(content.max()) + 1, dtype=np.int64)
    np.maximum.at(fullest, content, rows[_number(content, of_file)])
    room = fullest - np.bincount(content[kept], minlength=len(fullest))
    places = np.flatnonzero(nameless)
    order = places[np.argsort(content[places], kind="stable")]
    start = np.searchsorted(content[order], content[order], "left")
    stays = np.zeros(len(content), dtype=np.bool_)
    stays[order] = np.arange(len(order)) - start < room[content[order]]
    return stays


def _number(first: Index, second: Index) -> Index:
    """One number per distinct pair, from 0, shape [n]."""
    _, number = np.unique(first * (int(second.max(initial=0)) + 1) + second, return_inverse=True)
    return np.asarray(number, dtype=np.int64)


def _refuse_equal_files(names: Sequence[str], files: Sequence[Preferences]) -> None:
    known: dict[bytes, str] = {}
    for name, part in zip(names, files, strict=True):
        who = [user if is_named(user) else "" for user in part.user.tolist()]
        if not len(part) or (len(part) < FEWEST and not any(who)):
            continue
        records = _records(part, whichever_won=False).tolist()
        whole = digest_of(sorted(Counter(zip(who, records, strict=True)).items()))
        if whole in known:
            raise UnsupportedPlanError(
                f"{name} and {known[whole]} hold the same records.",
                "One is a copy of another, in other bytes: each of its records would count twice, and its bound only once.",
                "Name each data file once; if they are different people's, map a column to fields.user_id.",
            )
        known[whole] = name
