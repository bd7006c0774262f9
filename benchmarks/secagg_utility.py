"""What trust `distributed` costs in accuracy: the quickstart and the cross-device recipe against trust `central`.

Fixed before any run: folds, evaluation users and counting are those of ``benchmarks/reward.py``; 3 repetitions with
fresh noise. Three settings, each at user-level epsilon 2: the quickstart under `central` (against readers), the same under
`distributed` (against the server too), ``recipes/cross-device.yaml`` (against the server, no amplification). Both
distributed ones add openly (`simulated`): the sums are those of `full` bit for bit (tests/fedpref/test_secure_run.py).
Nothing was tuned on these figures: the step sizes of the cross-device recipe come from synthetic votes on public texts.

    python -m benchmarks.secagg --only utility [--folds 0,1]     each fold is kept; the table wants all seven
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import fedpref
from benchmarks.reward import BOOTSTRAP, FOLDS, Bench, say
from fedpref.config import Recipe
from fedpref.evaluation import correctness
from fedpref.folder import RunFolder
from fedpref.plan import make_plan
from fedpref.training import TrainingInput, train_reward_head
from privacy.ledger import read_ledger
from privacy.units import Adversary, Trust

SEEDS = 3
KEPT = Path("runs/benchmarks/utility")
SETTINGS = ("central", "distributed", "cross-device")


def recipes(bench: Bench, held_out: tuple[str, ...]) -> dict[str, Recipe]:
    """The three settings for one fold."""
    quick = bench.with_topics(held_out)
    central = {"trust": Trust.CENTRAL, "secure_aggregation": "full"}
    across = fedpref.load_recipe("cross-device").recipe
    return {
        "central": quick.model_copy(update={"privacy": quick.privacy.model_copy(update=central)}),
        "distributed": bench.with_topics(held_out, trust=Trust.DISTRIBUTED, secure_aggregation="simulated"),
        "cross-device": across.model_copy(update={"evaluation": quick.evaluation}),
    }


def run_fold(bench: Bench, number: int) -> None:
    """All settings and repetitions of one fold, kept on disk."""
    path = KEPT / f"fold-{number}.npz"
    if path.exists():
        return
    kept: dict[str, Any] = {}
    for name, recipe in recipes(bench, bench.fold(number)).items():
        data, projection = bench.federated(recipe), bench.projection(recipe)
        plan, start = make_plan(recipe), time.process_time()
        hits: dict[str, list[np.ndarray]] = {"seen": [], "unseen": []}
        for _ in range(SEEDS):
            with tempfile.TemporaryDirectory(dir="runs/benchmarks") as scratch:
                folder = RunFolder(Path(scratch) / "run")
                folder.begin(recipe, plan.digest, resume=False)
                given = TrainingInput(plan, data, lambda texts, p=projection: p(bench.store(texts)))  # type: ignore[misc]
                weight = train_reward_head(given, folder, [], say)
                view = read_ledger(folder.ledger)
            for side, of in hits.items():
                of.append(correctness(getattr(data.split, side), bench.scorer(projection, weight))[0])
        for side, of in hits.items():
            kept[f"{name}:{side}"] = np.mean(of, axis=0)
            kept[f"user:{side}"] = getattr(data.split, side).user
        from privacy.accounting import epsilon

        who = Adversary.READER if name == "central" else Adversary.SERVER
        kept[f"{name}:epsilon"] = epsilon(view.nominal(who), view.header.target_delta)
        say(
            f"fold {number} {name}: {[round(100 * float(np.mean(o)), 2) for o in hits['unseen']]} unseen, "
            f"{(time.process_time() - start) / SEEDS:.1f} CPU s a run"
        )
    KEPT.mkdir(parents=True, exist_ok=True)
    np.savez(path, **kept)


def utility(folds: Sequence[int]) -> list[dict[str, Any]]:
    """Run what is missing of ``folds``; figures over all folds that are there, with 95 % intervals over users."""
    missing = [i for i in folds if not (KEPT / f"fold-{i}.npz").exists()]
    bench = Bench() if missing else None
    for i in missing:
        if bench is not None:
            run_fold(bench, i)
    there = [dict(np.load(path)) for path in sorted(KEPT.glob("fold-*.npz"))]
    rows = []
    for side in ("unseen", "seen"):
        users = sorted({u for fold in there for u in fold[f"user:{side}"].tolist()})
        number = {u: i for i, u in enumerate(users)}
        draws = np.random.default_rng(0).multinomial(len(users), np.full(len(users), 1 / len(users)), size=BOOTSTRAP)
        values, spreads = {}, {}
        for name in SETTINGS:
            owner = [np.array([number[u] for u in fold[f"user:{side}"].tolist()]) for fold in there]
            right = [np.bincount(o, f[f"{name}:{side}"], len(users)) for o, f in zip(owner, there, strict=True)]
            all_of = [np.bincount(o, minlength=len(users)) for o in owner]
            values[name] = float(np.mean([r.sum() / a.sum() for r, a in zip(right, all_of, strict=True)]))
            spreads[name] = np.mean([(draws @ r) / (draws @ a) for r, a in zip(right, all_of, strict=True)], axis=0)
        for name in SETTINGS:
            low, high = np.percentile(spreads[name] - spreads["central"], [2.5, 97.5])
            rows.append(
                {
                    "topics": side,
                    "setting": name,
                    "folds": len(there),
                    "of_folds": FOLDS,
                    "epsilon": max(float(fold[f"{name}:epsilon"]) for fold in there),
                    "percent": 100 * values[name],
                    "minus_central": 100 * (values[name] - values["central"]),
                    "low": 100 * float(low),
                    "high": 100 * float(high),
                }
            )
    return rows
