"""Accuracy of the private reward head on unseen topics, and the cost of a round.

Fixed here, before any run: the recipe is ``recipes/quickstart.yaml``; fold i of 7 holds out topics i and i+7 of the 14 in
alphabetical order; 5 repetitions with fresh noise of the operating system; evaluation users are the recipe's (a hash),
and only their votes are counted. The same runs are repeated without noise. Accuracies are per fold over votes, then the
mean over folds. Intervals: 95 % bootstrap over evaluation users (the same draw of users in all folds), repetitions
averaged first.

    python -m benchmarks.reward                 accuracy, then 1,000 rounds
    python -m benchmarks.reward --rounds-only   the cost of 1,000 rounds alone
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fedpref
from fedpref.client.work import FeatureStore
from fedpref.config import Recipe
from fedpref.data.loading import FederatedData, Roster, load_public
from fedpref.data.partition import partition
from fedpref.data.preferences import Preferences, check_records
from fedpref.data.reading import read_dataset
from fedpref.data.spec import find_dataset
from fedpref.data.split import split_preferences
from fedpref.evaluation import Scores, correctness
from fedpref.folder import RunFolder
from fedpref.plan import make_plan
from fedpref.training import TrainingInput, train_reward_head
from privacy.ledger import read_ledger
from privacy.units import Adversary
from reward.features import FeatureConfig, FeatureExtractor
from reward.head import PublicProjection
from reward.scorer import head_scores

RECIPE = "quickstart"
FOLDS, SEEDS = 7, 5
BOOTSTRAP = 2000


def say(text: str) -> None:
    """Progress, apart from results."""
    sys.stderr.write(text + "\n")


class Bench:
    """Data and features, computed once for all runs."""

    def __init__(self, recipe: str = RECIPE) -> None:
        self.recipe = fedpref.load_recipe(recipe).recipe
        dataset = read_dataset(find_dataset(self.recipe.datasets[0]), need_user=True)
        self.data: Preferences = check_records(dataset)[0]
        self.topics = sorted(set(self.data.topic.tolist()))
        config = FeatureConfig(
            self.recipe.model_name_or_path, self.recipe.head.layer, self.recipe.max_length, dtype=self.recipe.dtype
        )
        self.extractor = extractor = FeatureExtractor(config, say)
        cache = Path("runs/benchmarks")
        cache.mkdir(parents=True, exist_ok=True)
        key = json.dumps([config.to_json(), extractor.backbone.digest, str(extractor.backbone.model.dtype)])
        self.store = FeatureStore(extractor, key, cache / "features.safetensors")
        self.store(list(self.data.texts), lambda done, total: say(f"features {done}/{total}"))

    def fold(self, i: int) -> tuple[str, ...]:
        """The topics that fold i holds out."""
        return tuple(self.topics[i::FOLDS])

    def with_topics(self, held_out: tuple[str, ...], **privacy: Any) -> Recipe:
        """The recipe for one fold."""
        evaluation = self.recipe.evaluation.model_copy(update={"unseen_topics": held_out})
        changed = self.recipe.privacy.model_copy(update=privacy)
        return self.recipe.model_copy(update={"evaluation": evaluation, "privacy": changed})

    def federated(self, recipe: Recipe) -> FederatedData:
        """Split and partition."""
        split = split_preferences(self.data, recipe.evaluation)
        rows = Counter(
            zip(*(column.tolist() for column in (self.data.user, self.data.client, self.data.topic)), strict=True)
        )
        roster = Roster.of(rows, recipe.evaluation)
        clients = partition(
            split.train, recipe.federation.partition, roster.users, roster.clients, values=roster.values
        )
        return FederatedData(clients, split, roster)

    def train(
        self, recipe: Recipe, projection: PublicProjection, data: FederatedData
    ) -> tuple[np.ndarray, float, float]:
        """One run in a fresh folder, as ``fedpref run`` does it; returns the head, epsilon and CPU seconds."""
        with tempfile.TemporaryDirectory(dir="runs/benchmarks") as scratch:
            folder = RunFolder(Path(scratch) / "run")
            plan = make_plan(recipe)
            folder.begin(recipe, plan.digest, resume=False)
            given = TrainingInput(plan, data, lambda texts: projection(self.store(texts)))
            start = time.process_time()
            weight = train_reward_head(given, folder, [], say)
            return weight, read_ledger(folder.ledger).epsilon(Adversary.READER), time.process_time() - start

    def scorer(self, projection: PublicProjection, weight: np.ndarray) -> Scores:
        """Texts -> scores of one trained head."""
        return lambda texts: head_scores(projection(self.store(texts)), weight)

    def projection(self, recipe: Recipe) -> PublicProjection:
        """From the public text of the topics that are not held out."""
        public = load_public(recipe.head.public_data, recipe.evaluation.unseen_topics)
        return PublicProjection.fit(self.store(public), recipe.head.projection_dim)


def accuracy(bench: Bench) -> dict[str, Any]:
    """All folds and repetitions, with and without noise."""
    hits: dict[tuple[str, str], list[list[tuple[np.ndarray, np.ndarray]]]] = defaultdict(list)
    epsilons = []
    for i in range(FOLDS):
        held_out = bench.fold(i)
        recipe = bench.with_topics(held_out)
        plain = bench.with_topics(held_out, target_epsilon=None, noise_multiplier=0.0)
        data, projection = bench.federated(recipe), bench.projection(recipe)
        per_fold: dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
        for name, kind in (("private", recipe), ("noiseless", plain)):
            for _ in range(SEEDS):
                weight, epsilon, _ = bench.train(kind, projection, data)
                if name == "private":
                    epsilons.append(epsilon)
                for side, part in (("unseen", data.split.unseen), ("seen", data.split.seen)):
                    per_fold[name, side].append(correctness(part, bench.scorer(projection, weight)))
        for (name, side), repetitions in per_fold.items():
            correct = np.mean([c for c, _ in repetitions], axis=0)
            part = getattr(data.split, side)
            hits[name, side].append([(correct, part.user), (repetitions[0][1], part.user)])
        say(
            f"fold {i + 1}/{FOLDS} {held_out}: "
            + ", ".join(f"{n} {s} {100 * hits[n, s][-1][0][0].mean():.2f} %" for n, s in sorted(hits))
        )
    return {"epsilon": max(epsilons), "delta": bench.recipe.privacy.target_delta, **_figures(hits)}


def _figures(hits: dict[tuple[str, str], list[list[tuple[np.ndarray, np.ndarray]]]]) -> dict[str, Any]:
    """Means over folds, and intervals over evaluation users."""
    users = sorted({u for folds in hits.values() for fold in folds for _, names in fold for u in names.tolist()})
    number = {u: i for i, u in enumerate(users)}
    draws = np.random.default_rng(0).multinomial(len(users), np.full(len(users), 1 / len(users)), size=BOOTSTRAP)

    def folds_of(name: str, side: str, column: int) -> list[tuple[np.ndarray, np.ndarray]]:
        result = []
        for fold in hits[name, side]:
            values, names = fold[column]
            owner = np.array([number[u] for u in names.tolist()])
            result.append(
                (np.bincount(owner, weights=values, minlength=len(users)), np.bincount(owner, minlength=len(users)))
            )
        return result

    def spread(totals: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        return np.asarray(np.mean([(draws @ t) / (draws @ c) for t, c in totals], axis=0))

    def summary(value: float, samples: np.ndarray) -> dict[str, Any]:
        return {"percent": 100 * value, "interval": [100 * float(x) for x in np.percentile(samples, [2.5, 97.5])]}

    out: dict[str, Any] = {}
    for side in ("unseen", "seen"):
        private, noiseless = folds_of("private", side, 0), folds_of("noiseless", side, 0)
        longer = folds_of("private", side, 1)
        mean = {
            k: float(np.mean([t.sum() / c.sum() for t, c in v]))
            for k, v in {"private": private, "noiseless": noiseless, "longer": longer}.items()
        }
        out[side] = {
            "private": summary(mean["private"], spread(private)),
            "noiseless": summary(mean["noiseless"], spread(noiseless)),
            "longer_is_better": summary(mean["longer"], spread(longer)),
            "private_over_longer": summary(mean["private"] - mean["longer"], spread(private) - spread(longer)),
            "private_minus_noiseless": summary(
                mean["private"] - mean["noiseless"], spread(private) - spread(noiseless)
            ),
            "per_fold": [100 * float(t.sum() / c.sum()) for t, c in private],
        }
    return out


def rounds(bench: Bench, number: int = 1000) -> dict[str, Any]:
    """CPU seconds of 1,000 rounds of the head, ledgers, journal, checkpoints and fsync included; one thread.

    Beside it, in the same process, what a bare numpy loop over the same users costs (no books, no privacy).
    """
    torch.set_num_threads(1)
    recipe = bench.with_topics(())
    recipe = recipe.model_copy(update={"federation": recipe.federation.model_copy(update={"num_rounds": number})})
    data, projection = bench.federated(recipe), bench.projection(recipe)
    make_plan(recipe)  # calibration is not part of a round
    walls, cpus, bare = [], [], []
    for _ in range(3):
        start = time.perf_counter()
        cpus.append(bench.train(recipe, projection, data)[2])
        walls.append(time.perf_counter() - start)
        bare.append(_bare_loop(bench, recipe, projection, data, number))
    return {
        "rounds": number,
        "clients": len(data.clients),
        "users": data.num_units(recipe.privacy.unit),
        "cpu_seconds": {"median": float(np.median(cpus)), "all": cpus},
        "wall_seconds": {"median": float(np.median(walls)), "all": walls},
        "bare_numpy_cpu_seconds": {"median": float(np.median(bare)), "all": bare},
        "ratio_to_bare_numpy": float(np.median(np.array(cpus) / np.array(bare))),
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def _bare_loop(bench: Bench, recipe: Recipe, projection: PublicProjection, data: FederatedData, number: int) -> float:
    """The least that such a round can cost in numpy: sampled users' summed gradients, clip, noise, step."""
    train = data.split.train
    features = projection(bench.store(list(train.texts)))
    difference = features[train.chosen] - features[train.rejected]
    order = np.argsort(train.user, kind="stable")
    _, owner = np.unique(train.user[order], return_inverse=True)
    rank = np.arange(len(owner)) - np.searchsorted(owner, owner)
    keep = rank < recipe.privacy.max_pairs_per_user
    difference, owner = difference[order][keep], owner[keep]
    counts = Counter(owner.tolist())
    start_of = np.concatenate([[0], np.cumsum([counts[i] for i in range(len(counts))])])
    rng, w, clip = np.random.default_rng(0), np.zeros(difference.shape[1]), recipe.privacy.max_grad_norm
    began = time.process_time()
    for _ in range(number):
        drawn = np.flatnonzero(rng.random(len(counts)) < recipe.privacy.sample_rate)
        rows = np.concatenate([np.arange(start_of[u], start_of[u + 1]) for u in drawn])
        g = -difference[rows] / (1 + np.exp(difference[rows] @ w))[:, None]
        sums = np.add.reduceat(g, np.concatenate([[0], np.cumsum(start_of[drawn + 1] - start_of[drawn])[:-1]]), axis=0)
        sums *= np.minimum(1, clip / np.linalg.norm(sums, axis=1))[:, None]
        w -= (sums.sum(0) + 2.25 * clip * rng.standard_normal(len(w))) / 270
    return time.process_time() - began


def main() -> None:
    """Print progress to stderr, figures to stdout, one JSON object last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    parser.add_argument("--rounds-only", action="store_true")
    options = parser.parse_args()
    os.makedirs("runs/benchmarks", exist_ok=True)
    bench = Bench()
    result: dict[str, Any] = {"benchmark": "reward", "recipe": RECIPE, "folds": FOLDS, "seeds": SEEDS}
    if not options.rounds_only:
        result |= accuracy(bench)
        if not options.json:
            _table(result)
    result["speed"] = rounds(bench)
    if not options.json:
        speed = result["speed"]
        print(
            f"1,000 rounds: {speed['cpu_seconds']['median']:.1f} CPU s, {speed['ratio_to_bare_numpy']:.1f} x a bare numpy loop"
        )
    print(json.dumps(result))


def _table(result: dict[str, Any]) -> None:
    print(f"user-level epsilon {result['epsilon']:.4f} (readers, delta {result['delta']:g}); evaluation users only")
    for side in ("unseen", "seen"):
        for name, figure in result[side].items():
            if name != "per_fold":
                low, high = figure["interval"]
                print(f"  {side:<7} {name:<24} {figure['percent']:6.2f} % [{low:.2f}, {high:.2f}]")
        print(f"  {side:<7} per fold                 {', '.join(f'{x:.1f}' for x in result[side]['per_fold'])}")


if __name__ == "__main__":
    main()
