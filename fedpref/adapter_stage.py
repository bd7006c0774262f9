"""A run that trains an adapter on the clients: one model, the rounds, the figures before and after, the release."""

from __future__ import annotations

import itertools
import json
import secrets
from collections.abc import Callable, Mapping
from typing import Any

import torch

import reward
from fedpref.adapter_evaluation import compare, make_evaluation
from fedpref.aggregation.lora import LoraRule, is_exact
from fedpref.client.adapter import GradientWork, LocalWork
from fedpref.client.contribution import ClientWork
from fedpref.client.groups import check_rewards, make_material
from fedpref.client.material import Runtime
from fedpref.client.records import prepare_records
from fedpref.config import Recipe
from fedpref.config_training import TrainingConfig
from fedpref.consent import ask_for_figures
from fedpref.data.loading import FederatedData
from fedpref.data.preferences import Preferences
from fedpref.data.renderable import only_renderable
from fedpref.data.spec import find_dataset
from fedpref.display import Display
from fedpref.errors import UnsupportedPlanError
from fedpref.folder import RunFolder
from fedpref.journal import make_folder, write_durably
from fedpref.manifest import Manifest
from fedpref.objective_check import check_objective
from fedpref.plan import Plan
from fedpref.release import write_adapter_card
from fedpref.tracking import open_trackers
from fedpref.training import RunInput, Trainee, train
from policy.registry import OBJECTIVES
from policy.rewards import RewardFunc, WeightedRewards
from policy.settings import LoraSettings
from policy.trainable import attach
from privacy.report import build_report, render_text
from privacy.units import Trust
from reward.backbone import load_backbone
from reward.lora_scorer import LoraRewardConfig
from reward.model import load_score_backbone
from reward.scorer import CONFIG


def run_adapter_stage(
    plan: Plan,
    folder: RunFolder,
    data: FederatedData,
    show: Display,
    reward_funcs: Mapping[str, RewardFunc] | None = None,
) -> None:
    """Train, evaluate, release; writes ``release/policy`` or ``release/reward``, ``evaluation.json`` and the report."""
    recipe = plan.recipe
    runtime = make_runtime(recipe, show.say)
    data = only_renderable(data, runtime.backbone.tokenizer, show.say)
    rewards = client_rewards(recipe.adapter, reward_funcs or {})
    if recipe.adapter.objective not in OBJECTIVES:
        check_objective(recipe.adapter, runtime)
    trainee = make_trainee(recipe, runtime, len(data.clients), rewards)
    with open_trackers(recipe.report_to, folder.path, folder.metrics, recipe.model_dump(mode="json")) as trackers:
        vector = train(RunInput(plan, data), trainee, folder, [*trackers, show], show.say)
    split = ask_for_figures(recipe, plan.digest, data, folder.node, show.say).split  # after the terms were asked
    task = make_evaluation(runtime, recipe, split, rewards)
    runtime.part.load(runtime.part.start)
    before = task.figures()
    runtime.part.load(torch.from_numpy(vector).float())
    after = task.figures()
    samples = recipe.evaluation.bootstrap_samples
    evaluation = compare(task, before, after, samples=samples, seed=recipe.seed)
    _release(plan, folder, runtime, evaluation)


def make_runtime(recipe: Recipe, say: Callable[[str], None] = lambda _: None) -> Runtime:
    """The base model with the recipe's adapter, once, on the recipe's device.

    Raises:
        UnsupportedPlanError: `device: cuda` without a GPU.
        ModelNotFoundError, AdapterError: see there.
    """
    training = recipe.adapter
    score = training.spec.score
    load = load_score_backbone if score else load_backbone
    backbone = load(recipe.model_name_or_path, dtype=dtype_of(recipe), say=say)
    if training.device == "cuda" and not torch.cuda.is_available():
        raise UnsupportedPlanError(
            "training.device: cuda needs a GPU.", "There is none here.", "Set it to auto or cpu."
        )
    if training.device == "cpu":
        backbone.model.to("cpu")
    lora = LoraSettings(training.lora_r, training.lora_alpha, 0.0, training.lora_target_modules)
    width = training.num_virtual_tokens
    part = attach(backbone, training.adapter, lora, num_virtual_tokens=width, score=score, seed=recipe.seed)
    if training.gradient_checkpointing:
        part.model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        part.model.train()  # transformers checkpoints in this mode alone; there is no dropout
    return Runtime(backbone, part, recipe.max_length, training.tokens_per_batch, training.ref_model)


def dtype_of(recipe: Recipe) -> str:
    """Of the base model; see ``plan_training``."""
    return "float32" if recipe.dtype == "auto" else recipe.dtype


def make_trainee(recipe: Recipe, runtime: Runtime, num_clients: int, rewards: WeightedRewards | None = None) -> Trainee:
    """What the federation trains: the adapter's layout and first values, and the clients' work on it.

    Args:
        rewards: of ``client_rewards``; None: what it finds by name.
    """
    training, p = recipe.adapter, recipe.privacy
    scored = client_rewards(training, {}) if rewards is None else rewards

    def work(clients: Mapping[str, Preferences]) -> ClientWork:
        records = prepare_records(clients, p.unit, p.max_pairs_per_user)
        objective = training.spec(training.settings)
        material = make_material(training, runtime, records, scored, seeds_of(recipe))
        if training.local is not None:
            return LocalWork(runtime, material, objective, records, training.local)
        return GradientWork(runtime, material, objective, records, num_clients)

    manifest = Manifest(runtime.part.tensors)
    exact = is_exact(training.adapter, local_steps=training.local is not None)
    visible = p.trust is Trust.CENTRAL and p.noise_multiplier == 0  # else nobody may know single updates
    rule = LoraRule(manifest, training.aggregation, recipe.divisor) if visible and not exact else None
    return Trainee(manifest, runtime.part.start.double().numpy(), work, rule, 0.0 if exact else None)


def seeds_of(recipe: Recipe) -> Callable[[], int]:
    """Where a group's sampling seed comes from: the operating system, or the recipe's seed if it protects nobody."""
    if recipe.privacy.rng == "os":
        return lambda: secrets.randbits(63)
    counter = itertools.count(recipe.seed << 32)
    return lambda: next(counter)


def client_rewards(training: TrainingConfig, own: Mapping[str, RewardFunc]) -> WeightedRewards | None:
    """The reward functions of clients that sample completions: found by name, given as objects, or a released reward model.

    Raises:
        RewardFunctionError, RewardModelError: not to be found, or of no use on a public prompt.
    """
    if not training.samples:
        return None
    if training.reward_model is not None:
        own = {**own, "reward_model": reward.load(training.reward_model)}
    rewards = WeightedRewards.find(training.reward_funcs, training.reward_weights, own)
    check_rewards(rewards)
    return rewards


def _release(plan: Plan, folder: RunFolder, runtime: Runtime, evaluation: dict[str, Any]) -> None:
    """Adapter, card, evaluation and report."""
    recipe, report = plan.recipe, build_report(folder.path)
    target = folder.release / ("reward" if recipe.adapter.spec.score else "policy")
    make_folder(target)
    for name, content in runtime.part.files().items():
        write_durably(target / name, content)
    if recipe.adapter.spec.score:
        config = LoraRewardConfig(recipe.model_name_or_path, recipe.max_length, dtype_of(recipe))
        write_durably(target / CONFIG, config.to_bytes())
    specs = [find_dataset(name) for name in recipe.datasets]
    write_adapter_card(target, plan, specs, report, evaluation)
    write_durably(folder.path / "evaluation.json", (json.dumps(evaluation, indent=2) + "\n").encode())
    write_durably(folder.path / "report.json", (json.dumps(report.fields, indent=2) + "\n").encode())
    write_durably(folder.path / "report.txt", render_text(report).encode())
