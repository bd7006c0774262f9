"""A tiny federation that trains an adapter of the tiny model: seconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedpref.adapter_stage import make_runtime, make_trainee
from fedpref.client.adapter import GradientWork, LocalWork
from fedpref.client.contribution import RoundClipping
from fedpref.client.material import Runtime
from fedpref.config import Recipe
from fedpref.data.loading import load_federated
from fedpref.data.preferences import Preferences
from fedpref.folder import RunFolder
from fedpref.plan import make_plan
from fedpref.recipes import validate_recipe
from fedpref.training import RunInput, train
from policy.registry import ObjectiveSpec
from tests.tiny import recipe_tree

Vector = npt.NDArray[np.float64]


def adapter_recipe(
    folder: Path, model: Path, objectives: Mapping[str, ObjectiveSpec] | None = None, **changes: Any
) -> Recipe:
    """``recipe_tree`` with the block ``training`` in the place of ``reward``; ``changes`` as ``training__lora_r=4``."""
    tree = recipe_tree(folder, model, **{"federation__num_rounds": 3, "max_length": 64})
    del tree["reward"]
    tree["training"] = {
        "objective": "dpo",
        "adapter": "lora_frozen_a",
        **({} if changes.get("training__adapter") == "prompt_tuning" else {"lora_r": 2, "lora_alpha": 4}),
        "tokens_per_batch": 512,
        "average_from": 1.0,
        "max_eval_records": 8,
        "device": "cpu",
    }
    for dotted, value in changes.items():
        node, (*parents, last) = tree, dotted.split("__")
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return validate_recipe(tree, "tiny", objectives)


def work_of(recipe: Recipe, clients: dict[str, Preferences]) -> tuple[Runtime, GradientWork | LocalWork]:
    """The model of a node, and its clients' work."""
    runtime = make_runtime(recipe)
    work = make_trainee(recipe, runtime, len(clients)).work(clients)
    assert isinstance(work, (GradientWork, LocalWork))
    return runtime, work


def sums(
    work: GradientWork | LocalWork,
    parameters: Vector,
    bound: float = 1.0,
    selected: npt.NDArray[np.bool_] | None = None,
) -> Vector:
    """What every client contributes, [clients, d]."""
    mask = np.ones(len(work.units), dtype=np.bool_) if selected is None else selected
    return np.stack([s.value for s in work.clipped_sums(parameters, mask, RoundClipping(bound))])


def train_adapter(recipe: Recipe, *, resume: bool = False) -> Vector:
    """The rounds alone, in ``recipe.output_dir``: no figures, no release. ``run.json`` stays at `started`."""
    plan, folder = make_plan(recipe), RunFolder(Path(recipe.output_dir))
    folder.begin(recipe, plan.digest, resume=resume)
    data = load_federated(recipe, lambda _: None)
    trainee = make_trainee(recipe, make_runtime(recipe), len(data.clients))
    return train(RunInput(plan, data), trainee, folder, [], lambda _: None)
