"""The adapter on evaluation users' records, before and after training, on the measure of its own objective (rule 18)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpref.client.groups import GroupMaterial
from fedpref.client.material import MATERIALS, CompletionMaterial, Material, PairMaterial, Runtime, SelectorMaterial
from fedpref.client.records import NodeRecords
from fedpref.client.work import pair_name
from fedpref.config import Recipe
from fedpref.config_training import TrainingConfig
from fedpref.data.preferences import Preferences
from fedpref.data.split import Split, hash_fraction
from fedpref.evaluation import interval
from policy.batches import CompletionBatch
from policy.logprobs import answer_logps
from policy.registry import MeasureKind
from policy.rewards import WeightedRewards
from reward.batches import PairBatch, SelectorBatch
from reward.evaluate import pair_correct
from reward.model import answer_scores
from reward.objectives import choice_logits

Figures = npt.NDArray[np.float64]
Measure = Callable[[Runtime, NodeRecords], dict[str, Figures]]
HIGHER, LOWER = "higher is better", "lower is better"


@dataclass(frozen=True)
class EvaluationTask:
    """What is measured on, by the name of its group; nothing of it ever reaches a client's training."""

    runtime: Runtime
    groups: dict[str, Preferences]
    measure: Measure

    def figures(self) -> dict[str, dict[str, Figures]]:
        """Group -> measure -> one figure per record, at the parameters that are loaded."""
        return {name: self.measure(self.runtime, as_records(data)) for name, data in self.groups.items() if len(data)}


def make_evaluation(
    runtime: Runtime, recipe: Recipe, split: Split, rewards: WeightedRewards | None = None
) -> EvaluationTask:
    """The first ``max_eval_records`` records of every group of evaluation users, in a hash order of user and text."""
    most = recipe.adapter.max_eval_records
    groups = {"seen topics": split.seen, "unseen topics": split.unseen}
    chosen = {name: _first(data, most) for name, data in groups.items()}
    return EvaluationTask(replace(runtime, ref_model="base"), chosen, make_measure(recipe, rewards))


def _first(data: Preferences, most: int) -> Preferences:
    order = [hash_fraction(f"evaluate:{data.user[i]}:{pair_name(data, i)}") for i in range(len(data))]
    return data.select(np.argsort(order, kind="stable")[:most])


def as_records(data: Preferences) -> NodeRecords:
    """Every record by itself, in order."""
    n = len(data)
    return NodeRecords(
        data.texts,
        data.chosen,
        data.rejected,
        np.ones(n, dtype=np.float32),
        np.arange(n + 1),
        np.zeros(n, dtype=np.int64),
        np.zeros(n),
    )


def compare(
    task: EvaluationTask,
    before: dict[str, dict[str, Figures]],
    after: dict[str, dict[str, Figures]],
    *,
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """Means before and after, and their difference with a 95 % bootstrap interval over whole users.

    | group | result |
    |---|---|
    | no records | ``{"records": 0}`` |
    | one user | no interval (``null``) |
    """
    result: dict[str, Any] = {name: {"records": 0} for name, data in task.groups.items() if not len(data)}
    for name, figures in after.items():
        users = task.groups[name].user
        measures = {}
        for key, then in figures.items():
            gain = then - before[name][key]
            measures[key] = {
                "before": float(before[name][key].mean()),
                "after": float(then.mean()),
                "difference": float(gain.mean()),
                "interval": interval(gain, users, samples, seed),
                "better": HIGHER if key.endswith(("accuracy", "reward", "margin")) else LOWER,
            }
        result[name] = {"records": len(users), "users": len(np.unique(users)), "measures": measures}
    return result


@torch.no_grad()
def _by_record(runtime: Runtime, material: Material, number: int, of: Callable[[Any], Tensor]) -> Figures:
    """``of`` every record's batch, in the records' order, fp64 [n, 2]; of a record with several rows their sum."""
    every, parts = np.arange(number), [np.zeros((0, 2))]
    order = [np.zeros(0, dtype=np.int64)]
    for places in runtime.by_tokens(material.sizes(every)):
        batch = material.batch(every[places], torch.arange(len(places)), torch.ones(len(places)))
        answers = of(batch).double().cpu()
        total = answers.new_zeros(len(places), *answers.shape[1:])
        found = total.index_add(0, batch.row_unit.cpu(), answers).numpy()
        parts.append(found if found.ndim > 1 else np.stack([found, found], axis=1))
        order.append(places)
    return np.asarray(np.concatenate(parts)[np.argsort(np.concatenate(order))])


@dataclass
class ImplicitRewards:
    """Log-ratios: is log pi/pi_ref of the better answer above that of the worse one (1, a tie 1/2), and by how much.

    Policy and reference are computed on the same rows, so that equal models give exact ties; the reference once.
    """

    _reference: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def __call__(self, runtime: Runtime, records: NodeRecords) -> dict[str, Figures]:
        """The measure."""

        def ratios(batch: PairBatch) -> Tensor:
            rows, key = batch.rows, hash(batch.rows.input_ids.cpu().numpy().tobytes())
            if key not in self._reference:
                with runtime.part.as_base() as reference:
                    self._reference[key] = answer_logps(reference, rows)
            return answer_logps(runtime.part.model, rows) - self._reference[key]

        both = _by_record(runtime, PairMaterial(runtime, records), len(records.first), ratios)
        return {"reward accuracy": pair_correct(both[:, 0], both[:, 1]), "log-ratio margin": both[:, 0] - both[:, 1]}


def scores(runtime: Runtime, records: NodeRecords) -> dict[str, Figures]:
    """A reward model: is the better answer's score above the worse one's; a tie is 1/2."""

    def of(batch: PairBatch) -> Tensor:
        return answer_scores(runtime.part.model, batch.rows)

    both = _by_record(runtime, PairMaterial(runtime, records), len(records.first), of)
    return {"reward accuracy": pair_correct(both[:, 0], both[:, 1])}


def choices(runtime: Runtime, records: NodeRecords) -> dict[str, Figures]:
    """A binary selector: does it name the better answer; a tie is 1/2."""

    def of(batch: SelectorBatch) -> Tensor:
        logits = choice_logits(runtime.part.model, batch)
        return logits.gather(1, torch.stack([batch.label, 1 - batch.label], dim=1))

    both = _by_record(runtime, SelectorMaterial(runtime, records), len(records.first), of)
    return {"reward accuracy": pair_correct(both[:, 0], both[:, 1])}


def token_loss(runtime: Runtime, records: NodeRecords) -> dict[str, Figures]:
    """SFT: -log p of the better answer, nats per token of it."""

    def of(batch: CompletionBatch) -> Tensor:
        return -answer_logps(runtime.part.model, batch.rows)[:, 0] / batch.rows.answer_lengths[:, 0].clamp_min(1)

    material = CompletionMaterial(runtime, records)
    return {"loss per token": _by_record(runtime, material, len(records.first), of)[:, 0]}


def mean_reward(rewards: WeightedRewards, config: TrainingConfig, seed: int) -> Measure:
    """The mean weighted reward of a prompt's completions, sampled as clients do, with the same seeds before and after."""

    def measure(runtime: Runtime, records: NodeRecords) -> dict[str, Figures]:
        counter = itertools.count(seed)
        material = GroupMaterial(runtime, records, rewards, config, lambda: next(counter))
        return {"mean reward": np.array([material.rewards_of(i).mean() for i in range(len(records.first))])}

    return measure


def mean_loss(config: TrainingConfig) -> Measure:
    """An objective of another package: its own loss, that of all answers of a record together."""
    objective = config.spec(config.settings)

    def measure(runtime: Runtime, records: NodeRecords) -> dict[str, Figures]:
        material = MATERIALS[config.spec.batch](runtime, records, reference=config.spec.reference)
        material.prepare(np.arange(len(records.first)))

        def of(batch: Any) -> Tensor:
            return torch.as_tensor(objective(runtime.part.model, batch))

        return {"loss per record": _by_record(runtime, material, len(records.first), of)[:, 0]}

    return measure


def make_measure(recipe: Recipe, rewards: WeightedRewards | None) -> Measure:
    """The measure of the recipe's objective; ``rewards`` are those of clients that sample completions."""
    config = recipe.adapter
    if rewards is not None:
        return mean_reward(rewards, config, recipe.seed)
    if config.spec.measure == "loss":
        return mean_loss(config)
    return _MEASURES[config.spec.measure]()


_MEASURES: dict[MeasureKind, Callable[[], Measure]] = {
    "log_ratios": ImplicitRewards,
    "scores": lambda: scores,
    "choices": lambda: choices,
    "token_loss": lambda: token_loss,
}
