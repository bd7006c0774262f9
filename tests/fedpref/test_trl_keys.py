"""TRL's flat keys in a recipe: taken where they mean the same, named where they do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedpref.config import PolicyConfig
from fedpref.errors import RecipeError
from fedpref.recipes import validate_recipe
from fedpref.trl_keys import OTHERWISE, SAME
from tests.tiny import recipe_tree


def test_flat_keys_move_into_the_policy_block(tmp_path: Path) -> None:
    tree = recipe_tree(tmp_path, Path("model"), policy={"prompts": "ukpconvarg1_questions"})
    recipe = validate_recipe({**tree, "num_generations": 4, "beta": 0.2, "lora_r": 8}, "tiny")
    assert recipe.policy is not None
    assert (recipe.policy.num_generations, recipe.policy.beta, recipe.policy.lora_r) == (4, 0.2, 8)


def test_every_key_that_is_taken_exists_here_and_in_trl() -> None:
    from peft import LoraConfig
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.model_config import ModelConfig

    theirs = {name for c in (GRPOConfig, DPOConfig, ModelConfig, LoraConfig) for name in c.__dataclass_fields__} | {
        "reward_funcs",
        "dataset_name",
    }  # arguments of the script
    assert {f"policy.{name}" for name in PolicyConfig.model_fields} >= set(SAME.values())
    assert set(SAME) <= theirs
    assert set(OTHERWISE) <= theirs


@pytest.mark.parametrize("key", OTHERWISE)
def test_other_keys_are_named_with_the_reason(tmp_path: Path, key: str) -> None:
    with pytest.raises(RecipeError, match=f"'{key}' has no counterpart") as caught:
        validate_recipe({**recipe_tree(tmp_path, Path("model"), policy={"prompts": "x"}), key: 1}, "tiny")
    assert OTHERWISE[key] in caught.value.why


def test_the_same_thing_twice_is_refused(tmp_path: Path) -> None:
    tree = recipe_tree(tmp_path, Path("model"), policy={"prompts": "ukpconvarg1_questions", "beta": 0.1})
    with pytest.raises(RecipeError, match="given twice"):
        validate_recipe({**tree, "beta": 0.2}, "tiny")
