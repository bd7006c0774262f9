"""Shipped recipes on the real model, CPU minutes each: without noise each beats its own start on its own measure."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedpref.adapter_evaluation import HIGHER
from fedpref.api import run
from fedpref.recipes import find_recipe, read_recipe

pytestmark = [pytest.mark.recipes]
HEADLINE = {
    "fed-dpo": "reward accuracy",
    "fed-reward-lora": "reward accuracy",
    "fed-kto": "log-ratio margin",
    "fed-sft": "loss per token",
    "fed-prompt": "loss per token",
    "fed-grpo": "mean reward",
}


@pytest.mark.parametrize("name", HEADLINE)
def test_without_noise_a_recipe_beats_its_own_start(name: str, tmp_path: Path) -> None:
    plain = {"privacy.noise_multiplier": 0, "privacy.target_epsilon": None, "output_dir": str(tmp_path / name)}
    block = run(read_recipe(find_recipe(name), plain)).evaluation["seen topics"]
    row = block["measures"][HEADLINE[name]]
    print(f"{name}: {HEADLINE[name]} {row}")
    gain = row["difference"] if row["better"] == HIGHER else -row["difference"]
    assert gain > 0


@pytest.mark.parametrize("name", HEADLINE)
def test_at_epsilon_8_the_figure_is_printed_as_it_is(name: str, tmp_path: Path) -> None:
    finished = run(read_recipe(find_recipe(name), {"output_dir": str(tmp_path / name)}))
    for group, block in finished.evaluation.items():
        print(f"{name}, epsilon 8, {group}: {block}")
    claim = finished.report().fields["claim"][0]
    assert claim["epsilon"] <= 8.0
