"""Objectives of other packages: by installed entry point in a recipe, by object in Python; refused if they couple records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import fedpref
from fedpref.adapter_stage import make_runtime
from fedpref.api import Run, run
from fedpref.errors import RecipeError
from fedpref.objective_check import check_objective
from fedpref.recipes import dump_recipe, read_recipe, validate_recipe
from policy.logprobs import answer_logps
from policy.registry import OBJECTIVES, ObjectiveSpec
from privacy.errors import CodedError
from reward.errors import ObjectiveNameError
from reward.model import answer_scores
from tests.fedpref.adapters import adapter_recipe
from tests.fedpref.conftest import speak

PACKAGE = """
from policy.registry import ObjectiveSpec


def build(loss_type, beta):
    import torch
    from policy.logprobs import answer_logps

    def loss(model, batch):
        margin = (answer_logps(model, batch.rows) - batch.ref_logps) @ torch.tensor([1.0, -1.0])
        return batch.weighted((margin - 1 / beta).square() if loss_type == "square" else -beta * margin)

    return loss


SPEC = ObjectiveSpec("square_dpo", "pairs", build, ("square", "line"), beta=0.5, measure="log_ratios", reference=True)
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package on the path with the metadata of an installation."""
    site = tmp_path / "site"
    info = site / "square_dpo-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "square_dpo.py").write_text(PACKAGE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: square-dpo\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fedpref.objectives]\nsquare_dpo = square_dpo:SPEC\n")
    monkeypatch.syspath_prepend(str(site))


def recipe_of(
    spec: ObjectiveSpec, folder: Path, model: Path, **changes: Any
) -> tuple[fedpref.config.Recipe, dict[str, ObjectiveSpec]]:
    own = {spec.name: spec}
    return adapter_recipe(folder, model, own, training__objective=spec.name, **changes), own


def test_an_installed_objective_is_named_in_a_recipe_planned_run_and_measured(
    installed: None, tmp_path: Path, tiny_model: Path
) -> None:
    recipe = adapter_recipe(tmp_path, tiny_model, training__objective="square_dpo", federation__num_rounds=1)
    assert (recipe.adapter.loss_type, recipe.adapter.beta) == ("square", 0.5)
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    spoken = speak("run", str(path))
    assert spoken.code == 0, spoken.err
    assert "clients train lora_frozen_a by square_dpo (square)" in spoken.err
    finished = Run(recipe.output_dir)
    assert finished.recipe == recipe
    assert set(finished.evaluation["seen topics"]["measures"]) == {"reward accuracy", "log-ratio margin"}
    assert (finished.path / "release" / "policy" / "adapter_config.json").exists()


def test_names_that_nobody_offers_are_refused_with_the_nearest(
    installed: None, tmp_path: Path, tiny_model: Path
) -> None:
    for name, near in (("square_dpoo", "square_dpo"), ("bradley_tery", "bradley_terry")):
        with pytest.raises(RecipeError, match=f"Did you mean '{near}'"):
            adapter_recipe(tmp_path, tiny_model, training__objective=name)
    for path in ("square_dpo:SPEC", "policy.registry.OBJECTIVES"):
        with pytest.raises(RecipeError, match="There is no objective"):
            adapter_recipe(tmp_path, tiny_model, training__objective=path)
    with pytest.raises(RecipeError, match="none of square_dpo's: square, line"):
        adapter_recipe(tmp_path, tiny_model, training__objective="square_dpo", training__loss_type="sigmoid")
    with pytest.raises(RecipeError, match="label_smoothing does nothing under objective: square_dpo"):
        adapter_recipe(tmp_path, tiny_model, training__objective="square_dpo", training__label_smoothing=0.1)


def test_an_objective_is_given_as_an_object(tmp_path: Path, tiny_model: Path) -> None:
    """A reward model under a loss of one's own: trained, measured by that loss, released as a reward model."""

    def build(loss_type: str, label_smoothing: float) -> Callable[..., Any]:
        assert (loss_type, label_smoothing) == ("hinge_score", 0.25)

        def loss(model: Any, batch: Any) -> Any:
            scores = answer_scores(model, batch.rows)
            return batch.weighted((1 - label_smoothing - scores[:, 0] + scores[:, 1]).clamp_min(0))

        return loss

    spec = ObjectiveSpec("hinge_score", "pairs", build, ("hinge_score",), ("label_smoothing",), score=True)
    recipe, own = recipe_of(spec, tmp_path, tiny_model, training__label_smoothing=0.25, federation__num_rounds=1)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    loaded = fedpref.load_recipe(path, objectives=own)
    assert loaded.plan().num_rounds == 1
    finished = loaded.run(display=fedpref.Display())
    assert set(finished.evaluation["seen topics"]["measures"]) == {"loss per record"}
    assert (finished.path / "release" / "reward" / "adapter_config.json").exists()
    assert finished.recipe == recipe == Run(finished.path, objectives=own).recipe
    with pytest.raises(RecipeError, match="There is no objective 'hinge_score'"):
        read_recipe(path)


def test_what_is_offered_must_be_a_whole_objective_of_that_name(tmp_path: Path, tiny_model: Path) -> None:
    spec = OBJECTIVES["sft"]
    for offered, why in ((spec, "named 'sft'"), (spec.build, "is a function")):
        with pytest.raises(RecipeError, match=why):
            validate_recipe(
                {"training": {"objective": "mine"}, "output_dir": "x"},
                "r",
                {"mine": offered},  # type: ignore[dict-item]
            )
    for parts, why in (
        ({"reference": True}, "reference is for pairs"),
        ({"measure": "mean_reward"}, "measure of groups"),
        ({"score": True}, "learns from pairs"),
        ({"measure": "scores"}, "a model with a score"),
        ({"batch": "sentences"}, "no choice 'sentences'"),
    ):
        with pytest.raises(ObjectiveNameError, match=f"(?i){why}"):
            replace(spec, **parts)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="reads gamma, which is no key"):
        recipe_of(ObjectiveSpec("mine", "pairs", spec.build, settings=("gamma",)), tmp_path, tiny_model)


def margins(model: Any, batch: Any) -> Any:
    ratios = answer_logps(model, batch.rows) - batch.ref_logps
    return ratios[:, 0] - ratios[:, 1]


class Running:
    """A loss shifted by a running mean over batches, as BCO's."""

    mean = 0.0

    def __call__(self, model: Any, batch: Any) -> Any:
        losses = -margins(model, batch)
        self.mean = 0.5 * self.mean + 0.5 * float(losses.mean())
        return batch.weighted(losses - self.mean)


COUPLING: dict[str, Callable[[Any, Any], Any]] = {
    "its neighbours' mean": lambda m, b: b.weighted(-margins(m, b) + margins(m, b).detach().mean()),
    "sorted margins": lambda m, b: b.weighted(-margins(m, b).sort().values),
    "the others' gradient alone": lambda m, b: b.weighted(
        -margins(m, b) + margins(m, b).mean() - margins(m, b).mean().detach()
    ),
    "divided by the batch's size": lambda m, b: b.weighted(-margins(m, b)) / len(b.row_unit),
    "normalised by the batch's deviation": lambda m, b: b.weighted(
        -margins(m, b) / (1 + margins(m, b).std(correction=0))
    ),
}
WRONG: dict[str, tuple[Callable[..., Any], str]] = {
    "a state": (Running(), "asked again"),
    "a mean": (lambda m, b: -margins(m, b).mean(), "one loss per record"),
    "no weight": (lambda m, b: -margins(m, b), "batch.weighted"),
    "NaN": (lambda m, b: b.weighted(margins(m, b) * float("nan")), "NaN or infinity"),
    "an exception": (lambda m, b: b.no_such_thing, "raises AttributeError"),
    "no tensor": (lambda m, b: [0.0] * len(b.row_unit), "one loss per record"),
}


def checked(objective: Callable[..., Any], folder: Path, model: Path) -> None:
    def build(loss_type: str) -> Callable[..., Any]:
        del loss_type
        return objective

    spec = ObjectiveSpec("mine", "pairs", build, ("mine",), measure="log_ratios", reference=True)
    recipe, _ = recipe_of(spec, folder, model)
    runtime = make_runtime(recipe)
    try:
        check_objective(recipe.adapter, runtime)
    finally:
        assert torch.equal(runtime.part.flat(), runtime.part.start)


@pytest.mark.parametrize("how", COUPLING)
def test_an_objective_that_couples_records_is_refused(how: str, tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(CodedError, match="couples the records") as caught:
        checked(COUPLING[how], tmp_path, tiny_model)
    assert caught.value.code == "FP442"


@pytest.mark.parametrize("how", WRONG)
def test_an_objective_that_breaks_its_contract_is_named(how: str, tmp_path: Path, tiny_model: Path) -> None:
    objective, why = WRONG[how]
    with pytest.raises(CodedError, match=why) as caught:
        checked(objective, tmp_path, tiny_model)
    assert caught.value.code == "FP446"


def test_a_run_refuses_it_before_anything_is_booked(tmp_path: Path, tiny_model: Path) -> None:
    def build(loss_type: str) -> Callable[..., Any]:
        return COUPLING["sorted margins"]

    recipe, _ = recipe_of(ObjectiveSpec("mine", "pairs", build, ("mine",), reference=True), tmp_path, tiny_model)
    with pytest.raises(CodedError, match="couples the records"):
        run(recipe)
    assert not (Path(recipe.output_dir) / "ledger.jsonl").exists()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("adapter", ["lora_core", "prompt_tuning"])
def test_the_objectives_of_this_version_pass(objective: str, adapter: str, tmp_path: Path, tiny_model: Path) -> None:
    if objective in {"bradley_terry", "grpo"} and adapter == "prompt_tuning":
        pytest.skip("refused")
    changes: dict[str, Any] = {}
    if objective == "grpo":
        changes = {"training__num_generations": 3, "training__max_completion_length": 5, "training__beta": 0.1}
    recipe = adapter_recipe(tmp_path, tiny_model, training__objective=objective, training__adapter=adapter, **changes)
    runtime = make_runtime(recipe)
    check_objective(recipe.adapter, runtime)
    assert np.array_equal(runtime.part.flat().numpy(), runtime.part.start.numpy())
