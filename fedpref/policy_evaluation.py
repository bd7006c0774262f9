"""A policy beside its base model on public prompts: win rates by a held-out judge, rewards, KL, samples side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedpref.data.preferences import Preferences
from fedpref.data.split import hash_fraction
from fedpref.win_rate import paired_means, win_table
from policy.evaluate import kl_to_base, wins
from policy.improve import PolicyTask, reward_rollout
from policy.rollout import Rollout, as_messages, sample_rollout
from reward.evaluate import pair_correct
from reward.judge import Judge, fit_judge
from reward.pairs import Conversation, as_conversation

Row = Mapping[str, Any]
Features = Callable[[Sequence[Conversation]], npt.NDArray[np.float32]]
Progress = Callable[[int, int], None]
PROMPTS_AT_ONCE = 8


@dataclass(frozen=True)
class HeldOutJudge:
    """A judge that never saw the reward model: other features, fitted on evaluation users' votes. It is no human."""

    name: str
    features: Features
    judge: Judge
    accuracy: float
    """On evaluation users that it was not fitted on (5 folds of users)."""

    def scores(self, texts: Sequence[Conversation]) -> npt.NDArray[np.float64]:
        """Scores, shape [n]."""
        return self.judge.score(self.features(texts))


def held_out_judge(name: str, features: Features, votes: Preferences) -> HeldOutJudge:
    """Fit a judge on evaluation users' votes, who are not protected and said to be so."""
    used = np.unique(np.concatenate([votes.chosen, votes.rejected])) if len(votes) else np.zeros(0, dtype=np.int64)
    table = features([votes.texts[i] for i in used])
    row = np.zeros(len(votes.texts), dtype=np.int64)
    row[used] = np.arange(len(used))
    chosen, rejected = table[row[votes.chosen]], table[row[votes.rejected]]
    fold = np.array([int(hash_fraction(f"judge:{user}") * 5) for user in votes.user])
    correct = np.full(len(votes), np.nan)
    for k in range(5):
        judge = fit_judge(chosen[fold != k], rejected[fold != k])
        correct[fold == k] = pair_correct(judge.score(chosen[fold == k]), judge.score(rejected[fold == k]))
    accuracy = float(correct.mean()) if len(votes) else float("nan")
    return HeldOutJudge(name, features, fit_judge(chosen, rejected), accuracy)


@dataclass(frozen=True)
class Samples:
    """Completions of the same prompts by the policy and by its base model, ``n`` of each per prompt."""

    rows: list[Row]
    n: int
    policy: list[Rollout]
    base: list[Rollout]

    def texts(self, side: str) -> list[Conversation]:
        """All completions of one side, prompt by prompt."""
        rollouts: list[Rollout] = getattr(self, side)
        return [
            as_conversation(r["prompt"], c) for one in rollouts for r, c in zip(one.rows, one.completions, strict=True)
        ]

    def lengths(self, side: str) -> npt.NDArray[np.float64]:
        """Tokens, shape [prompts, n]."""
        rollouts: list[Rollout] = getattr(self, side)
        return np.concatenate([one.lengths.cpu().numpy() for one in rollouts]).reshape(-1, self.n).astype(np.float64)


def sample_both(task: PolicyTask, rows: Sequence[Row], n: int, progress: Progress) -> Samples:
    """Completions by the policy, and by the base model (the adapter switched off), with fixed seeds."""
    result = Samples(list(rows), n, [], [])
    batches = [rows[i : i + PROMPTS_AT_ONCE] for i in range(0, len(rows), PROMPTS_AT_ONCE)]
    for number, batch in enumerate(batches):
        result.policy.append(_sample(task, batch, n, 2_000_003 + number))
        with task.model.disable_adapter():
            result.base.append(_sample(task, batch, n, 3_000_017 + number))
        progress(number + 1, len(batches))
    return result


def _sample(task: PolicyTask, rows: Sequence[Row], n: int, seed: int) -> Rollout:
    length = task.settings.max_completion_length
    return sample_rollout(
        task.backbone, task.model, rows, num_generations=n, max_completion_length=length, seed=task.settings.seed + seed
    )


def evaluate_policy(
    task: PolicyTask, samples: Samples, judges: Sequence[HeldOutJudge], draws: int, seed: int
) -> dict[str, Any]:
    """All figures on one group of prompts."""
    topics = [str(row.get("topic", "")) for row in samples.rows]
    lengths = {side: samples.lengths(side) for side in ("policy", "base")}
    longer = lengths["policy"][:, :, None] - lengths["base"][:, None, :]
    kl = np.concatenate([kl_to_base(task.model, one, samples.n) for one in samples.policy]).reshape(-1, samples.n)
    result: dict[str, Any] = {
        "prompts": len(samples.rows),
        "completions": len(samples.rows) * samples.n,
        "judges": {},
        "rewards": _rewards(task, samples, draws, seed),
        "length": paired_means(lengths["policy"].mean(1), lengths["base"].mean(1), draws, seed),
        "kl_to_base": {"nats_per_completion": float(kl.mean()), "standard_error": _standard_error(kl.mean(1))},
    }
    for judge in judges:
        scores = {side: judge.scores(samples.texts(side)).reshape(-1, samples.n) for side in ("policy", "base")}
        table = win_table(wins(scores["policy"], scores["base"]), longer, topics, draws, seed)
        result["judges"][judge.name] = {"accuracy_on_held_out_votes": judge.accuracy, **table}
    return result


def _rewards(task: PolicyTask, samples: Samples, draws: int, seed: int) -> dict[str, Any]:
    by_side = {}
    for side in ("policy", "base"):
        tables = [reward_rollout(task.rewards, rollout) for rollout in getattr(samples, side)]
        totals = np.concatenate([task.rewards.total(t).numpy() for t in tables])
        columns = np.concatenate([t.numpy() for t in tables])
        by_side[side] = {"total": totals, **dict(zip(task.rewards.funcs, columns.T, strict=True))}
    return {
        name: paired_means(
            _mean_by_prompt(values, samples.n), _mean_by_prompt(by_side["base"][name], samples.n), draws, seed
        )
        for name, values in by_side["policy"].items()
    }


def _mean_by_prompt(values: npt.NDArray[np.floating], n: int) -> npt.NDArray[np.float64]:
    by_prompt = values.astype(np.float64).reshape(-1, n)
    counted = np.isfinite(by_prompt)
    total = np.where(counted, by_prompt, 0).sum(1)
    return np.where(counted.any(1), total / np.maximum(counted.sum(1), 1), np.nan)


def _standard_error(values: npt.NDArray[np.float64]) -> float | None:
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None


def side_by_side(samples: Samples) -> list[dict[str, str]]:
    """Per prompt, the first completion of the base model and of the policy."""
    first = [(i // PROMPTS_AT_ONCE, i % PROMPTS_AT_ONCE * samples.n) for i in range(len(samples.rows))]
    return [
        {
            "prompt": as_messages(row["prompt"])[-1]["content"],
            "topic": str(row.get("topic", "")),
            "base": samples.base[batch].completions[at],
            "policy": samples.policy[batch].completions[at],
        }
        for row, (batch, at) in zip(samples.rows, first, strict=True)
    ]
