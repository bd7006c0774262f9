"""One client, privacy off, one local step: the federation's trajectory is that of TRL's trainer on the same batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from fedpref.adapter_stage import make_runtime
from fedpref.aggregation.optimizers import ServerOptimizer
from fedpref.client.adapter import GradientWork
from fedpref.client.contribution import RoundClipping
from fedpref.client.material import MATERIALS, Runtime
from fedpref.client.records import prepare_records
from fedpref.config import Recipe
from privacy.clipping import ClippedSum
from privacy.gradients import UnitGradients
from privacy.units import PrivacyUnit
from tests.fedpref.adapters import adapter_recipe
from tests.tiny import preferences

STEPS, BATCH, LEARNING_RATE, PROMPT = 20, 2, 3e-3, "Say something."
WORDS = [
    "yes",
    "no",
    "more",
    "less",
    "hello",
    "there",
    "good",
    "bad",
    "cats",
    "dogs",
    "birds",
    "fly",
    "run",
    "sit",
    "stand",
]

pytestmark = pytest.mark.slow


def pairs() -> list[tuple[str, str, str]]:
    rng = np.random.default_rng(0)
    return [
        ("ann", f"{n} " + " ".join(rng.choice(WORDS, 3 + n % 4)), f"{n} " + " ".join(rng.choice(WORDS, 2 + n % 5)))
        for n in range(STEPS * BATCH)
    ]


def recipe_of(tmp_path: Path, model: Path, **changes: Any) -> Recipe:
    optimizer = {"optim": "adam", "learning_rate": LEARNING_RATE, "adam_beta2": 0.999}
    given = {f"training__{key}": value for key, value in {**optimizer, "adapter": "lora"}.items()}
    return adapter_recipe(tmp_path, model, privacy__unit="example", max_length=128, **given, **changes)


class Unclipped(RoundClipping):
    """Privacy off: the very sum. The grid of real sums would cut Adam's smallest gradients off."""

    def of(self, gradients: UnitGradients, group: Any, num_groups: int) -> list[ClippedSum]:
        return [ClippedSum(gradients.flat().double().sum(0).numpy(), 1.0)]


def our_losses(recipe: Recipe) -> tuple[Runtime, list[float]]:
    """Loss of every batch before its step, each batch a round of one client."""
    runtime = make_runtime(recipe)
    records = prepare_records({"one": preferences(pairs())}, PrivacyUnit.EXAMPLE, 1)
    objective = recipe.adapter.spec(recipe.adapter.settings)
    material = MATERIALS[recipe.adapter.spec.batch](runtime, records, reference=recipe.adapter.spec.reference)
    work = GradientWork(runtime, material, objective, records, 1)
    server = ServerOptimizer(recipe.server, len(runtime.part.start), STEPS, runtime.part.start.double().numpy())
    chosen = [records.texts[i].completion for i in records.first]
    losses = []
    for step in range(STEPS):
        mine = np.array([chosen.index(pairs()[step * BATCH + i][1]) for i in range(BATCH)])
        selected = np.isin(np.arange(len(chosen)), mine)
        (total,) = work.clipped_sums(server.parameters, selected, Unclipped(1.0))
        with torch.no_grad():
            batch = material.batch(mine, torch.arange(BATCH), torch.ones(BATCH))
            losses.append(float(objective(runtime.part.model, batch).mean()))
        server.step(total.value / BATCH)
    runtime.part.load(torch.from_numpy(server.parameters).float())
    return runtime, losses


def common(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": BATCH,
        "max_steps": STEPS,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1e9,
        "save_strategy": "no",
        "logging_steps": 1000,
        "report_to": [],
        "disable_tqdm": True,
        "max_length": 128,  # TRL drops longer pairs of reward models, so that later batches are others
    }


def trl_losses(kind: Any, config: Any, model: Any, tokenizer: Any) -> list[float]:
    """The same by one of TRL's trainers, in the given order."""
    losses: list[float] = []

    class InOrder(kind):  # type: ignore[misc]
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            found = super().compute_loss(*args, **kwargs)
            losses.append(float(found[0] if isinstance(found, tuple) else found))
            return found

    rows = [
        {
            "prompt": [{"role": "user", "content": PROMPT}],
            "chosen": [{"role": "assistant", "content": c}],
            "rejected": [{"role": "assistant", "content": r}],
        }
        for _, c, r in pairs()
    ]
    trainer = InOrder(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.train()
    return losses


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_dpo_is_trls_step_by_step(
    tmp_path: Path, tiny_model: Path, loss_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl import DPOConfig, DPOTrainer

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    recipe = recipe_of(tmp_path, tiny_model, training__loss_type=loss_type)
    _, ours = our_losses(recipe)
    other = make_runtime(recipe)
    config = DPOConfig(**common(tmp_path / "trl"), beta=0.1, loss_type=[loss_type])
    theirs = trl_losses(DPOTrainer, config, other.part.model, other.backbone.tokenizer)
    assert len(ours) == len(theirs) == STEPS
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-5)
    assert max(theirs) - min(theirs) > 0.01  # something was learnt, so that equal steps say something


@pytest.mark.filterwarnings("ignore")
def test_the_reward_model_is_trls_step_by_step(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl import RewardConfig, RewardTrainer

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    recipe = recipe_of(tmp_path, tiny_model, training__objective="bradley_terry")
    _, ours = our_losses(recipe)
    other = make_runtime(recipe)
    config = RewardConfig(**common(tmp_path / "trl"))
    theirs = trl_losses(RewardTrainer, config, other.part.model, other.backbone.tokenizer)
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-5)
    assert max(theirs) - min(theirs) > 0.01
