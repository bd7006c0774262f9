"""Accuracy of the private reward model against what is trained and against epsilon: one trunk, many heads.

Fixed here, before any run: the recipe is ``recipes/quickstart.yaml`` (its rounds, learning rate, momentum, clipping norm and
evaluation users for every head alike); fold i of 7 holds out topics i and i+7 of the 14 in alphabetical order; one run a
fold with fresh noise of the operating system; heads and epsilons as listed below. Features in float32, so that no probe of the
machine decides about them, of layers 12, 16 and 20 from one pass; heads without a mix see layer 20 alone. Only votes of
evaluation users are counted: per fold over votes, then the mean over folds. Intervals: 95 % bootstrap over evaluation users
(the same draw of users for all folds and heads), so that differences are paired.

Finished cells are kept in ``runs/benchmarks`` and not run again.

    python -m benchmarks.learned [--json] [--cpu-seconds N]     N: stop after the cell that exceeds it; run again to go on
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import fedpref
from benchmarks.reward import FOLDS, RECIPE, Bench, say
from fedpref.client.work import FeatureStore
from fedpref.config import Recipe
from fedpref.data.loading import FederatedData, load_public
from fedpref.data.preferences import Preferences, check_records
from fedpref.data.reading import read_dataset
from fedpref.data.spec import find_dataset
from fedpref.evaluation import correctness
from fedpref.manifest import reward_layout, reward_manifest
from fedpref.recipes import validate_recipe
from reward.features import FeatureConfig, FeatureExtractor
from reward.head import PublicProjection
from reward.scorer import head_scores

LAYERS = (12, 16, 20)
HEADS: dict[str, dict[str, Any]] = {
    "head 8": {"projection_dim": 8},
    "head 16": {"projection_dim": 16},
    "head 64": {},
    "head 256": {"projection_dim": 256},
    "head 576 (no projection)": {"projection_dim": 576},
    "mlp_head 64 x 16": {"trainable": "mlp_head", "mlp_hidden_dim": 16},
    "mlp_head 64 x 32": {"trainable": "mlp_head", "mlp_hidden_dim": 32},
    "head 64, layers mixed": {"layer": None, "layers": list(LAYERS)},
}
BASELINE = "head 64"
EPSILONS: tuple[float | None, ...] = (1.0, 2.0, 8.0, None)
SIDES = ("unseen", "seen")
BOOTSTRAP = 2000
Vector = npt.NDArray[np.float64]


class LearnedBench(Bench):
    """Features of all layers, computed once for all heads."""

    def __init__(self) -> None:
        self.recipe = fedpref.load_recipe(RECIPE).recipe
        self.data: Preferences = check_records(read_dataset(find_dataset(self.recipe.datasets[0]), need_user=True))[0]
        self.topics = sorted(set(self.data.topic.tolist()))
        name, length = self.recipe.model_name_or_path, self.recipe.max_length
        config = FeatureConfig(name, LAYERS[-1], length, dtype="float32", layers=LAYERS)
        self.extractor = FeatureExtractor(config, say)
        key = json.dumps([config.to_json(), self.extractor.backbone.digest, str(self.extractor.backbone.model.dtype)])
        self.all_layers = FeatureStore(
            self.extractor, key, Path("runs/benchmarks") / f"features-{'-'.join(map(str, LAYERS))}.safetensors"
        )
        public = load_public(self.recipe.head.public_data, ())
        self.all_layers([*self.data.texts, *public], lambda done, total: say(f"features {done}/{total}"))

    def use(self, recipe: Recipe) -> None:
        """Features as a recipe's head sees them."""
        mixed = recipe.head.layers is not None
        self.store = lambda texts: self.all_layers(texts) if mixed else self.all_layers(texts)[:, -1]  # type: ignore[assignment]

    def cell(self, head: str, epsilon: float | None, users: dict[str, int]) -> dict[str, Any]:
        """All folds of one head at one epsilon: sums of correct votes and numbers of votes per evaluation user."""
        out: dict[str, Any] = {side: [] for side in SIDES}
        start = time.process_time()
        for i in range(FOLDS):
            recipe = head_recipe(self.with_topics(self.fold(i)), head, epsilon)
            self.use(recipe)
            data, projection = self.federated(recipe), self.projection(recipe)
            weight, out["epsilon"], _ = self.train(recipe, projection, data)
            for side in SIDES:
                out[side].append(self._votes(recipe, projection, weight, getattr(data.split, side), users))
        out["trained"] = reward_manifest(recipe.head).dimension
        out["cpu_seconds"] = time.process_time() - start
        return out

    def _votes(
        self, recipe: Recipe, projection: PublicProjection, weight: Vector, part: Preferences, users: dict[str, int]
    ) -> list[list[float]]:
        layout = reward_layout(recipe.head)
        correct, _ = correctness(part, lambda texts: head_scores(projection(self.store(texts)), weight, layout))
        owner = np.array([users[u] for u in part.user.tolist()])
        counts = [np.bincount(owner, weights=w, minlength=len(users)) for w in (correct, np.ones(len(owner)))]
        return [c.tolist() for c in counts]

    def evaluation_users(self) -> dict[str, int]:
        """Every evaluation user's number."""
        data: FederatedData = self.federated(self.with_topics(()))
        return {name: i for i, name in enumerate(sorted(set(data.split.seen.user.tolist())))}


def head_recipe(recipe: Recipe, head: str, epsilon: float | None) -> Recipe:
    """The quickstart's reward stage with another head and another epsilon."""
    tree = recipe.model_dump(mode="json")
    tree["policy"] = None
    tree["reward"].update(HEADS[head])
    tree["privacy"].update({"target_epsilon": epsilon, "noise_multiplier": None if epsilon else 0.0})
    return validate_recipe(tree, head)


def settings_digest(recipe: Recipe) -> str:
    """Names what the kept cells belong to."""
    content = [recipe.model_dump(mode="json"), HEADS, EPSILONS, LAYERS, FOLDS]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def run_cells(bench: LearnedBench, path: Path, cpu_seconds: float) -> dict[str, Any]:
    """Every cell that is not in ``path`` yet, until the time is up."""
    cells: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    users, start = bench.evaluation_users(), time.process_time()
    for head in HEADS:
        for epsilon in EPSILONS:
            name = f"{head} | {epsilon}"
            if name in cells or time.process_time() - start > cpu_seconds:
                continue
            cells[name] = bench.cell(head, epsilon, users)
            path.write_text(json.dumps(cells))
            say(f"{name}: {cells[name]['cpu_seconds']:.1f} CPU s")
    return cells


def figures(cells: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per cell: accuracies with intervals, and the paired difference from the baseline at the same epsilon."""
    num_users = len(next(iter(cells.values()))["seen"][0][0])
    draws = np.random.default_rng(0).multinomial(num_users, np.full(num_users, 1 / num_users), size=BOOTSTRAP)
    everybody = np.ones((1, num_users))

    def mean(name: str, side: str, weights: npt.NDArray[Any]) -> Vector:
        folds = [np.array(fold) for fold in cells[name][side]]
        return np.asarray(100 * np.mean([(weights @ right) / (weights @ votes) for right, votes in folds], axis=0))

    def between(samples: Vector) -> list[float]:
        return [float(x) for x in np.percentile(samples, [2.5, 97.5])]

    rows = []
    for head in HEADS:
        for epsilon in EPSILONS:
            name, base = f"{head} | {epsilon}", f"{BASELINE} | {epsilon}"
            row: dict[str, Any] = {"head": head, "trained": cells[name]["trained"], "epsilon": epsilon}
            for side in SIDES:
                samples = mean(name, side, draws)
                row[side] = {
                    "percent": float(mean(name, side, everybody)[0]),
                    "interval": between(samples),
                    "over_baseline": float((mean(name, side, everybody) - mean(base, side, everybody))[0]),
                    "over_baseline_interval": between(samples - mean(base, side, draws)),
                }
            rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one line per cell."""
    lines = [
        f"| head | trained numbers | epsilon | unseen topics | training topics | unseen, over `{BASELINE}` |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        unseen, seen = (
            f"{row[side]['percent']:.1f} % [{row[side]['interval'][0]:.1f}, {row[side]['interval'][1]:.1f}]"
            for side in SIDES
        )
        low, high = row["unseen"]["over_baseline_interval"]
        over = "" if row["head"] == BASELINE else f"{row['unseen']['over_baseline']:+.1f} [{low:+.1f}, {high:+.1f}]"
        epsilon = "no noise" if row["epsilon"] is None else f"{row['epsilon']:g}"
        lines.append(f"| {row['head']} | {row['trained']:,} | {epsilon} | {unseen} | {seen} | {over} |")
    return "\n".join(lines)


def main() -> None:
    """Print progress to stderr, the table to stdout, one JSON object last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    parser.add_argument("--cpu-seconds", type=float, default=float("inf"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    Path("runs/benchmarks").mkdir(parents=True, exist_ok=True)
    bench = LearnedBench()
    path = Path("runs/benchmarks") / f"learned-{settings_digest(bench.recipe)}.json"
    cells = run_cells(bench, path, options.cpu_seconds)
    missing = len(HEADS) * len(EPSILONS) - len(cells)
    result: dict[str, Any] = {"benchmark": "learned", "recipe": RECIPE, "folds": FOLDS, "missing_cells": missing}
    if missing:
        sys.stderr.write(f"{missing} cells are left; run it again\n")
    else:
        result["cpu_seconds"] = sum(cell["cpu_seconds"] for cell in cells.values())
        result["rows"] = figures(cells)
        if not options.json:
            print(table(result["rows"]))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
