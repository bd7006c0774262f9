"""The second half of a run: train the policy, release its adapter, compare it with its base model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fedpref.config import Recipe
from fedpref.data.preferences import Preferences
from fedpref.data.split import Split
from fedpref.display import Display
from fedpref.folder import RunFolder
from fedpref.improvement import (
    REWARD_MODEL,
    Groups,
    inputs_record,
    load_groups,
    make_task,
    train_policy,
)
from fedpref.journal import make_folder, write_durably
from fedpref.plan import Plan
from fedpref.policy_evaluation import HeldOutJudge, evaluate_policy, held_out_judge, sample_both, side_by_side
from fedpref.release import write_policy_card
from fedpref.tracking import Trackers, is_policy_figure, open_trackers
from policy.adapter import adapter_files
from policy.improve import PolicyTask
from policy.rewards import RewardFunc, WeightedRewards
from reward.features import FeatureConfig, FeatureExtractor
from reward.scorer import RewardModel


def check_policy(recipe: Recipe, reward_funcs: Mapping[str, RewardFunc]) -> Groups | None:
    """Find out before anything is trained whether prompts and reward functions are there.

    Raises:
        CodedError, RewardError: they are not, or the prompts are not public.
    """
    if recipe.policy is None:
        return None
    own = {REWARD_MODEL: lambda **_: [], **reward_funcs}
    WeightedRewards.find(recipe.policy.reward_funcs, recipe.policy.reward_weights, own)
    return load_groups(recipe, recipe.policy)


def run_policy_stage(
    plan: Plan,
    folder: RunFolder,
    reward_model: RewardModel,
    *,
    split: Split,
    reward_funcs: Mapping[str, RewardFunc],
    show: Display,
) -> None:
    """Train, release, evaluate; writes ``release/policy``, ``policy_evaluation.json`` and ``samples.json``."""
    recipe, config = plan.recipe, plan.recipe.policy
    if config is None:
        return
    groups = load_groups(recipe, config)
    rewards = WeightedRewards.find(
        config.reward_funcs, config.reward_weights, {**reward_funcs, REWARD_MODEL: reward_model}
    )
    task = make_task(recipe, config, groups.train, rewards, show)
    public = recipe.model_dump(mode="json", include={"policy", "model_name_or_path", "seed"})
    with open_trackers(recipe.report_to, folder.path, folder.policy_metrics, public) as trackers:
        train_policy(task, config, folder, Trackers(trackers, is_policy_figure), show)
    judges = []
    if REWARD_MODEL in config.reward_funcs and recipe.evaluation.federated:
        show.say("no held-out judge: it would be fitted on evaluation users' raw votes (evaluation.federated: true)")
    elif REWARD_MODEL in config.reward_funcs and not len(split.seen) + len(split.unseen):
        show.say("no held-out judge: there is no evaluation user whose votes it may be fitted on")
    elif REWARD_MODEL in config.reward_funcs:
        judges = [_judge(recipe, split, show)]
    evaluation, samples = _evaluate(task, recipe, groups, judges, show)
    target = folder.release / "policy"
    make_folder(target)
    for name, content in adapter_files(task.model, recipe.model_name_or_path).items():
        write_durably(target / name, content)
    _write(target / "fedpref_policy.json", inputs_record(recipe, config, folder, task))
    write_policy_card(target, plan, evaluation)
    _write(folder.path / "policy_evaluation.json", evaluation)
    _write(folder.path / "samples.json", samples)


def _write(path: Any, content: Any) -> None:
    write_durably(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def _judge(recipe: Recipe, split: Split, show: Display) -> HeldOutJudge:
    """Another layer of the same trunk, fitted on the votes of evaluation users; its features are never written."""
    layer = recipe.evaluation.judge_layer
    config = FeatureConfig(recipe.model_name_or_path, layer, recipe.max_length, recipe.head.pooling, recipe.dtype)
    extractor = FeatureExtractor(config, show.say)
    votes = Preferences.concat([split.seen, split.unseen])
    return held_out_judge(
        f"held-out judge (layer {layer}, evaluation users)",
        lambda texts: extractor(texts, lambda done, total: show.progress("features for the judge", done, total)),
        votes,
    )


def _evaluate(
    task: PolicyTask, recipe: Recipe, groups: Groups, judges: list[HeldOutJudge], show: Display
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    evaluation: dict[str, Any] = {}
    shown: list[dict[str, str]] = []
    options = recipe.evaluation
    for name, rows in groups.evaluation.items():
        if not rows:
            continue
        samples = sample_both(
            task,
            rows,
            options.policy_samples,
            lambda d, n, of=name: show.progress(f"samples, {of}", d, n),  # type: ignore[misc]
        )
        evaluation[name] = evaluate_policy(task, samples, judges, options.bootstrap_samples, recipe.seed)
        shown += side_by_side(samples)
    return evaluation, shown
