"""What buckets buy and cost: the quickstart under `distributed` with one sum, three and five buckets; honest, and with a liar.

Fixed before any run: folds, evaluation users and counting are those of ``benchmarks/reward.py``; user-level epsilon 2 against
the server; integers added openly (`simulated`), which gives the sums of `full` bit for bit. The liar is one client of
the ten: in every round it sends, well formed and behind its mask, -``TIMES`` times what its own records say.

    python -m benchmarks.secagg --only buckets [--folds 0,3]
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.reward import Bench, say
from fedpref.config import Recipe
from fedpref.evaluation import correctness
from fedpref.folder import RunFolder
from fedpref.plan import make_plan
from fedpref.training import TrainingInput, train_reward_head
from privacy.distributed import DistributedMechanism
from privacy.secagg.shares import NoisedShare
from privacy.units import Trust

LIAR, TIMES, SEEDS = 0, 40, 2
_share = DistributedMechanism.share


def _lie(
    self: DistributedMechanism, rows: Any, bound: float, booked: Any, client: int, *a: Any, **k: Any
) -> NoisedShare:
    made = _share(self, rows, bound, booked, client, *a, **k)
    if client != LIAR:
        return made
    return NoisedShare((-TIMES * made.value.astype(np.int64)).astype(made.value.dtype), made.round, made.plan)


def buckets(folds: Sequence[int]) -> list[dict[str, Any]]:
    """Accuracy on votes of evaluation users about unseen topics, mean over folds and repetitions."""
    bench, hits = Bench(), dict[tuple[int, bool], list[float]]()
    prices = dict[int, float]()
    for fold in folds:
        base = bench.with_topics(bench.fold(fold), trust=Trust.DISTRIBUTED, secure_aggregation="simulated")
        for count in (1, 3, 5):
            federation = base.federation.model_copy(update={"num_buckets": count})
            recipe = base.model_copy(update={"federation": federation})
            costs = make_plan(recipe).secure_costs
            prices[count] = costs.buckets.noise_factor if costs and costs.buckets else 1.0
            for liar in (False, True):
                found = [_accuracy(bench, recipe, liar=liar) for _ in range(SEEDS)]
                hits.setdefault((count, liar), []).extend(found)
                say(f"fold {fold}, {count} buckets, liar {liar}: {[round(x, 2) for x in found]}")
    return [
        {
            "num_buckets": count,
            "noise_factor": prices[count],
            "liar": liar,
            "runs": len(found),
            "percent": float(np.mean(found)),
            "lowest": min(found),
            "highest": max(found),
        }
        for (count, liar), found in hits.items()
    ]


def _accuracy(bench: Bench, recipe: Recipe, *, liar: bool) -> float:
    data, projection, plan = bench.federated(recipe), bench.projection(recipe), make_plan(recipe)
    with tempfile.TemporaryDirectory(dir="runs/benchmarks") as scratch:
        folder = RunFolder(Path(scratch) / "run")
        folder.begin(recipe, plan.digest, resume=False)
        given = TrainingInput(plan, data, lambda texts: projection(bench.store(texts)))
        with patch.object(DistributedMechanism, "share", _lie if liar else _share):
            weight = train_reward_head(given, folder, [], lambda _: None)
    return 100 * float(np.mean(correctness(data.split.unseen, bench.scorer(projection, weight))[0]))
