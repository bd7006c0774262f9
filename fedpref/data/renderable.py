"""Records that the model's chat template refuses are left out before any round, each by its own prompt alone.

Found out in a round, they would stop it exactly when their unit's coin fell (guarantees.md rules 5 and 8).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from fedpref.data.loading import FederatedData, Warn
from fedpref.data.preferences import Preferences
from reward.errors import ConversationError
from reward.pairs import render

Prompt = tuple[tuple[str, str], ...]


def only_renderable(data: FederatedData, tokenizer: Any, warn: Warn) -> FederatedData:
    """The same members with the records that can be rendered; who has no others contributes zero.

    ``warn`` is told, on the machine that holds the data, how many are left out.
    """
    known: dict[Prompt, bool] = {}

    def fits(prompt: Prompt) -> bool:
        if prompt not in known:
            known[prompt] = _renders(tokenizer, prompt)
        return known[prompt]

    split = data.split
    clients = {name: _kept(part, fits) for name, part in data.clients.items()}
    kept = replace(
        split, train=_kept(split.train, fits), seen=_kept(split.seen, fits), unseen=_kept(split.unseen, fits)
    )
    left_out = sum(len(before) - len(clients[name]) for name, before in data.clients.items())
    left_out += len(split.seen) + len(split.unseen) - len(kept.seen) - len(kept.unseen)
    if left_out:
        warn(f"warning[FP220] {left_out} records left out: the model's chat template refuses their prompts")
    return replace(data, clients=clients, split=kept)


def _kept(part: Preferences, fits: Callable[[Prompt], bool]) -> Preferences:
    used = np.unique(np.concatenate([part.chosen, part.rejected])).astype(np.int64)
    good = np.zeros(len(part.texts), dtype=np.bool_)
    good[used] = [fits(part.texts[i].prompt) for i in used]
    return part.select(good[part.chosen] & good[part.rejected])


def _renders(tokenizer: Any, prompt: Prompt) -> bool:
    try:
        render(tokenizer, prompt)
    except ConversationError:
        return False
    return True
