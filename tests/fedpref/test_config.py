"""Recipes are closed, frozen and say what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydantic
import pytest

import fedpref
from fedpref.errors import RecipeError, RecipeNotFoundError
from fedpref.plan import make_plan
from fedpref.recipes import (
    all_keys,
    dump_recipe,
    find_recipe,
    list_recipes,
    parse_override,
    purpose,
    read_recipe,
    recipes_folder,
    validate_recipe,
)
from privacy.errors import CalibrationError, ParameterError
from privacy.units import PrivacyUnit
from tests.tiny import make_recipe, recipe_tree, write_recipe


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.slow] if p.name.startswith("fed-") else []) for p in list_recipes()],
    ids=lambda path: str(path.relative_to(recipes_folder())),
)
def test_every_shipped_recipe_loads_plans_and_states_its_purpose(path: Path) -> None:
    plan = make_plan(read_recipe(path))
    assert plan.rows
    assert plan.noise_multiplier > 0
    assert len(purpose(path)) > 20
    target = plan.recipe.privacy.target_epsilon
    if target is not None:
        reader = plan.rows[0]
        assert 0.9 * target < reader.epsilon_total <= target
        assert reader.epsilon_per_round < reader.epsilon_total


def test_every_yaml_under_recipes_is_a_recipe_or_a_data_set_description() -> None:
    folder = recipes_folder()
    descriptions = set((folder / "datasets").glob("*.yaml"))
    assert {*list_recipes(), *descriptions} == set(folder.rglob("*.y*ml"))


def _problem(tmp_path: Path, **changes: Any) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        validate_recipe(recipe_tree(tmp_path, Path("m"), **changes), "recipe.yaml")
    assert caught.value.code == "FP101"
    return caught.value


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("privacy__target_epsilom", "privacy.target_epsilon"),
        ("learning_rate", "reward.learning_rate"),
        ("federation__partition__num_client", "federation.partition.num_clients"),
        ("outptu_dir", "output_dir"),
    ],
)
def test_an_unknown_key_is_refused_with_the_key_that_was_meant(tmp_path: Path, key: str, meant: str) -> None:
    what = _problem(tmp_path, **{key: 3}).what
    assert f"unknown key {key.replace('__', '.')!r}" in what
    assert f"did you mean {meant!r}?" in what


def test_both_and_neither_of_epsilon_and_noise_are_refused(tmp_path: Path) -> None:
    for privacy in ({"target_epsilon": 2.0, "noise_multiplier": 1.0}, {}):
        error = _problem(tmp_path, privacy=privacy)
        assert "exactly one of privacy.target_epsilon and privacy.noise_multiplier" in error.what


def test_every_problem_of_a_recipe_is_named_at_once(tmp_path: Path) -> None:
    error = _problem(tmp_path, max_length="long", privacy__sample_rate=2, seedd=1)
    assert "(and 2 more)" in error.what
    assert "seedd" in error.what + error.why
    assert "privacy.sample_rate" in error.what + error.why


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"privacy__sample_rate": 0}, "privacy.sample_rate"),
        ({"privacy__max_grad_norm": float("nan")}, "privacy.max_grad_norm"),
        ({"privacy__noise_multiplier": float("inf")}, "privacy.noise_multiplier"),
        ({"privacy__noise_multiplier": -1.0}, "privacy.noise_multiplier"),
        ({"privacy__target_delta": 0.0}, "privacy.target_delta"),
        ({"privacy__unit": "client"}, "DP-FedAvg"),
        ({"privacy__unit": "household"}, "privacy.unit"),
        ({"privacy__unit": "example", "federation__partition__by": "natural"}, "natural needs privacy.unit: user"),
        ({"federation__partition__num_clients": None}, "needs partition.num_clients"),
        ({"federation__num_rounds": 0}, "federation.num_rounds"),
        ({"datasets": []}, "datasets"),
        ({"reward__optim": "adagrad", "reward__momentum": 0.9}, "reward.momentum does nothing under optim: adagrad"),
        ({"reward__optim": "adam", "reward__momentum": 0.5}, "reward.momentum does nothing under optim: adam"),
        ({"reward__adam_beta2": 0.9}, "reward.adam_beta2 does nothing under optim: sgd"),
        ({"reward__optim": ["sgd"]}, "reward.optim"),
        ({"report_to": ["tensorboard"]}, "report_to"),
    ],
)
def test_values_that_make_no_run_are_refused_by_name(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    assert says in _problem(tmp_path, **changes).what


def test_a_recipe_and_its_blocks_are_frozen(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    for block, name in ((recipe, "seed"), (recipe.privacy, "noise_multiplier"), (recipe.federation.partition, "by")):
        with pytest.raises(pydantic.ValidationError, match="frozen"):
            setattr(block, name, 1)


def test_a_resolved_recipe_reads_back_as_itself(tmp_path: Path) -> None:
    policy = {"prompts": "ukpconvarg1_questions"}
    topics = ["ünï: [x]", "birds"]
    recipe = make_recipe(tmp_path, privacy__unit="example", evaluation__unseen_topics=topics, policy=policy)
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(dump_recipe(recipe), encoding="utf-8")
    assert read_recipe(resolved) == recipe
    for key in all_keys(type(recipe)):  # every default is written out, but for the block that it does not have
        assert key.startswith("training.") or key.split(".")[-1] + ":" in resolved.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("optim", "settings"),
    [("sgd", (0.9, None, None)), ("adam", (None, 0.9, 0.99)), ("adagrad", (None, None, None))],
)
def test_an_optimisers_settings_are_filled_in_and_survive_a_file(
    tmp_path: Path, optim: str, settings: tuple[float | None, ...]
) -> None:
    recipe = make_recipe(tmp_path, reward__optim=optim)
    assert (recipe.reward.momentum, recipe.reward.adam_beta1, recipe.reward.adam_beta2) == settings
    (tmp_path / "resolved.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert read_recipe(tmp_path / "resolved.yaml") == recipe


def test_overrides_reach_nested_keys_and_are_checked(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, Path("m"))
    changed = read_recipe(path, dict(map(parse_override, ["privacy.noise_multiplier=4", "privacy.unit=example"])))
    assert changed.privacy.noise_multiplier == 4
    assert changed.privacy.unit is PrivacyUnit.EXAMPLE
    by_keyword = fedpref.load_recipe(path, privacy__noise_multiplier=4, **{"privacy.unit": "example"}).recipe
    assert by_keyword == changed
    # YAML 1.1 reads 1e-5 as text; a delta must be a number all the same.
    assert read_recipe(path, dict([parse_override("privacy.target_delta=1e-6")])).privacy.target_delta == 1e-6
    with pytest.raises(RecipeError, match=r"did you mean 'privacy\.noise_multiplier'"):
        read_recipe(path, {"privacy.noise_multiplyer": 4})
    with pytest.raises(RecipeError, match="leads nowhere"):
        read_recipe(path, {"output_dir.value": 4})
    for text in ("privacy.unit", "=3", "seed=[1"):
        with pytest.raises(RecipeError, match="Not an override"):
            parse_override(text)


@pytest.mark.parametrize("content", [b"a: [1", b"- a\n- b\n", b"", b"\xff\xfe", b"just words"])
def test_a_file_that_is_no_recipe_is_coded(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"broken\.yaml"):
        read_recipe(path)


def test_a_recipe_that_does_not_exist_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(RecipeNotFoundError, match="Did you mean 'quickstart'") as caught:
        find_recipe("quickstrat")
    assert caught.value.code == "FP102"
    for name in ("quickstart", "quickstart.yaml", "recipes/quickstart.yaml"):
        assert find_recipe(name).samefile(recipes_folder() / "quickstart.yaml")


def test_an_epsilon_that_no_noise_reaches_is_coded(tmp_path: Path) -> None:
    privacy = {"target_epsilon": 1e-6, "target_delta": 1e-9, "sample_rate": 1.0}
    with pytest.raises(CalibrationError) as caught:
        make_plan(make_recipe(tmp_path, privacy=privacy, federation__num_rounds=1000))
    assert caught.value.code == "FP411"
    assert "target_epsilon" in caught.value.fix


def test_a_cohort_that_a_lying_server_could_split_is_refused_before_anything_runs(tmp_path: Path) -> None:
    changes = {"privacy__trust": "distributed", "federation__partition__num_clients": 9}
    with pytest.raises(ParameterError, match="No safe cohort") as caught:
        make_plan(make_recipe(tmp_path, federation__min_clients_per_round=6, **changes))
    assert "two thirds" in caught.value.fix
