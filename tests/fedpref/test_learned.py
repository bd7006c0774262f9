"""Learned representations from the recipe to the released folder: trained, averaged, evaluated, verified, with a policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import fedpref
from fedpref.aggregation.optimizers import ServerOptimizer
from fedpref.errors import RecipeError
from fedpref.manifest import reward_layout, reward_manifest
from fedpref.plan import make_plan
from fedpref.recipes import dump_recipe, validate_recipe
from privacy.report import verify
from privacy.sealed import size_of
from tests.fedpref.conftest import speak
from tests.tiny import make_recipe, recipe_tree, train, votes, write_jsonl, write_prompts, write_recipe

MLP: dict[str, Any] = {"reward__trainable": "mlp_head", "reward__mlp_hidden_dim": 3}
MIX: dict[str, Any] = {"reward__layer": None, "reward__layers": [1, 2]}


def problem(tmp_path: Path, **changes: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        validate_recipe(recipe_tree(tmp_path, Path("m"), **changes), "recipe.yaml")
    return caught.value.what


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"reward__trainabel": "head"}, "did you mean 'reward.trainable'?"),
        ({"reward__mlp_hidden": 3}, "did you mean 'reward.mlp_hidden_dim'?"),
        ({"reward__trainable": "adapter"}, "'head' or 'mlp_head'"),
        ({"reward__mlp_hidden_dim": 3}, "it is for mlp_head"),
        ({**MLP, "reward__mlp_hidden_dim": 0}, "greater than or equal to 1"),
        ({"reward__layers": [1, 2]}, "give reward.layer or reward.layers, not both"),
        ({**MIX, "reward__layers": [2, 1]}, "the lowest first"),
        ({**MIX, "reward__layers": [1, 1]}, "names each layer once"),
        ({**MIX, "reward__layers": [2]}, "at least 2 items"),
        ({**MIX, "reward__layers": [0, 2]}, "greater than or equal to 1"),
        ({**MIX, "policy": {"prompts": "p"}, "evaluation__judge_layer": 2}, "no held-out judge"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    assert says in problem(tmp_path, **changes)


def test_defaults_are_filled_in_and_survive_the_resolved_recipe(tmp_path: Path) -> None:
    import yaml

    recipe = make_recipe(tmp_path, **MIX, reward__trainable="mlp_head")
    assert (recipe.reward.mlp_hidden_dim, recipe.reward.layer, recipe.reward.layers) == (16, 2, (1, 2))
    assert validate_recipe(yaml.safe_load(dump_recipe(recipe)), "again") == recipe
    plain = make_recipe(tmp_path)
    assert (plain.reward.trainable, plain.reward.mlp_hidden_dim, plain.reward.layers) == ("head", None, None)


def test_the_plan_counts_what_is_trained(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, **MLP, **MIX)
    d = 2 + 3 * 8 + 3 + 3
    assert reward_manifest(recipe.reward).dimension == d
    assert make_plan(recipe).bytes_per_client == recipe.federation.num_rounds * (size_of(d) + 8 * d)


def test_the_optimiser_starts_where_the_seed_says(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, **MLP, seed=5)
    initial = reward_layout(recipe.reward).initial(5)
    optimizer = ServerOptimizer(recipe.reward, len(initial), 4, initial)
    assert np.array_equal(optimizer.parameters, initial)
    assert np.array_equal(optimizer.averaged, initial)
    optimizer.step(np.ones(len(initial)))
    np.testing.assert_allclose(optimizer.parameters, initial - 1.0)
    assert np.array_equal(initial, reward_layout(recipe.reward).initial(5))  # a copy


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["user", "example", "client"])
def test_training_moves_every_part_and_resumes_to_the_same_bits(tmp_path: Path, unit: str) -> None:
    (tmp_path / "a").mkdir()
    local: dict[str, Any] = {"reward__local": {"max_steps": 3}, "privacy__sample_rate": 0.7} if unit == "client" else {}
    changes: dict[str, Any] = {**MLP, **local, "privacy__rng": "seeded", "privacy__unit": unit}
    recipe = make_recipe(tmp_path / "a", **changes, output_dir=str(tmp_path / "one"))
    trained = train(recipe)
    layout = reward_layout(recipe.reward)
    start, end = layout.split(layout.initial(recipe.seed)), layout.split(trained)
    assert all((start[name] != end[name]).all() for name in start)
    rounds = [safetensors.numpy.load_file(p)["parameters"] for p in sorted((tmp_path / "one/checkpoints").iterdir())]
    np.testing.assert_allclose(trained, np.mean(rounds[3:], axis=0), rtol=1e-12)
    assert np.array_equal(train(recipe, resume=True), trained)


def run_recipe(folder: Path, model: Path, **changes: Any) -> Path:
    policy = {
        "prompts": str(write_prompts(folder)),
        "max_steps": 1,
        "prompts_per_step": 2,
        "num_generations": 2,
        "max_completion_length": 4,
        "lora_r": 2,
    }
    options = {"evaluation__judge_layer": 3, "evaluation__policy_samples": 2}
    return write_recipe(folder, model, policy=policy, **options, **changes)


@pytest.fixture(scope="module")
def three_layers(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The tiny model with one block more, so that a judge's layer is left beside two that are mixed."""
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("three-layers")
    config = AutoConfig.from_pretrained(tiny_model)
    config.num_hidden_layers = 3
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def test_a_whole_run_is_released_evaluated_reported_and_verified(tmp_path: Path, three_layers: Path) -> None:
    spoken = speak("run", str(run_recipe(tmp_path, three_layers, **MLP, **MIX, privacy__clipping="adaptive")))
    assert spoken.code == 0, spoken.err
    run = tmp_path / "run"
    tensors = safetensors.numpy.load_file(run / "release/reward/reward_head.safetensors")
    assert {name: tensors[name].shape for name in ("mix.weight", "hidden.weight", "hidden.bias", "score.weight")} == {
        "mix.weight": (2, 1),
        "hidden.weight": (3, 8),
        "hidden.bias": (3,),
        "score.weight": (1, 3),
    }
    card = (run / "release/reward/README.md").read_text()
    assert "3-unit MLP Bradley-Terry head on the mean of layers 1, 2, mixed by trained weights" in card
    assert "32 trained numbers" in card
    assert verify(run).ok
    assert speak("report", str(run)).code == 0
    model = fedpref.Run(run).reward_model()
    assert np.isfinite(model.score(["Why?"] * 2, ["Because.", "!!!!"])).all()
    others = [{**row, "user_id": f"new-{row['user_id']}"} for row in votes(20, 2, seed=9)]
    spoken = speak("eval", str(run), "--data", str(write_jsonl(tmp_path / "other.jsonl", others)), "--json")
    assert spoken.code == 0, spoken.err
    assert 0 <= json.loads(spoken.out.splitlines()[-1])["reward_accuracy"] <= 1
    assert (run / "release/policy/adapter_model.safetensors").exists()


def test_the_full_width_runs(tmp_path: Path, tiny_model: Path) -> None:
    path = write_recipe(tmp_path, tiny_model, **MIX, reward__projection_dim=32, federation__num_rounds=2)
    spoken = speak("run", str(path))
    assert spoken.code == 0, spoken.err
    assert verify(tmp_path / "run").ok
