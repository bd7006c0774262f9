"""GRPO on private prompts: a client samples completions of its prompts, scores them, and sends one clipped gradient a unit.

Completions, rewards and advantages never leave; a prompt's whole group is one record (guarantees.md rule 13). Every group
is sampled by itself under a seed of its own, drawn afresh: were one generator shared, another person's prompt would decide
what is sampled for this one, and clipping would bound neither.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedpref.client.material import MATERIALS, Material, Runtime
from fedpref.client.records import Index, NodeRecords
from fedpref.config_training import TrainingConfig
from policy.batches import GroupBatch
from policy.improve import reward_rollout
from policy.logprobs import token_logps
from policy.losses import group_advantages
from policy.rewards import WeightedRewards
from policy.rollout import sample_rollout
from reward.errors import RewardError
from reward.tokens import TokenRecord, collate


def check_rewards(rewards: WeightedRewards) -> None:
    """Score a public prompt once, before anything is read or booked: afterwards a failing record is silently left out.

    Raises:
        RewardFunctionError: a function raises, or none of them has a reward for it.
    """
    prompt, completion = "What is 1 + 1?", "1 + 1 = \\boxed{2}"
    scored = rewards(
        [[{"role": "user", "content": prompt}]],
        [[{"role": "assistant", "content": completion}]],
        completion_ids=[[0]],
        answer=["2"],
    )
    rewards.total(scored)


class Group(NamedTuple):
    """One record's prompt and completions, their rewards [num_generations], and whether it counts at all."""

    tokens: TokenRecord
    rewards: Tensor
    counts: bool = True


@dataclass
class GroupMaterial:
    """Records are prompts; a text's completion is the answer that a verifiable reward compares with (empty: none).

    | record | its group |
    |---|---|
    | a prompt that is empty or longer than the model's context | weighs nothing |
    | a reward function raises, says NaN, or nothing of it | weighs nothing; as a figure its reward is zero |

    Nothing of this is told: an error, or a count, would say whose coin fell and what the text is like (rules 5 and 8). That
    reward functions work at all is found out on public text before a run; see ``check_rewards``.
    """

    runtime: Runtime
    records: NodeRecords
    rewards: WeightedRewards
    config: TrainingConfig
    seeds: Callable[[], int]
    _groups: dict[int, Group] = field(default_factory=dict, repr=False)

    def prepare(self, records: Index) -> None:
        """Sample and score anew at the parameters that are loaded: the groups of one round."""
        self._groups = {int(i): self._sample(int(i)) for i in records}

    def sizes(self, records: Index) -> list[int]:
        """Tokens of the prompt and all its completions."""
        return [self._groups[int(i)].tokens.num_tokens for i in records]

    def batch(self, records: Index, row_unit: Tensor, weight: Tensor) -> GroupBatch:
        """The groups with their advantages."""
        groups = [self._groups[int(i)] for i in records]
        number = self.config.num_generations
        rows = collate([g.tokens for g in groups], num_answers=number, layout=self.runtime.layout)
        advantages = [group_advantages(g.rewards, self.config.scale_rewards) for g in groups]
        weight = weight * torch.tensor([g.counts for g in groups], dtype=weight.dtype)
        rows = rows.to(self.runtime.device)
        return GroupBatch(
            rows=rows,
            row_unit=row_unit.to(self.runtime.device),
            weight=weight.to(self.runtime.device),
            advantages=torch.stack(advantages).to(self.runtime.device),
            ref_token_logps=self._reference(rows) if self.config.beta else None,
        )

    def rewards_of(self, record: int) -> Tensor:
        """Weighted rewards of a fresh group, [num_generations]."""
        return self._sample(record).rewards

    def _sample(self, record: int) -> Group:
        try:
            return self._sampled(record)
        except RewardError:
            end, number = int(self.runtime.backbone.tokenizer.eos_token_id), self.config.num_generations
            return Group(TokenRecord((end,), ((end,),) * number), torch.zeros(number), counts=False)

    def _sampled(self, record: int) -> Group:
        said, s = self.records.texts[int(self.records.first[record])], self.config
        *earlier, (role, content) = said.prompt
        prompt = [{"role": r, "content": c} for r, c in (*earlier, (role, content + s.prompt_suffix))]
        row = {"prompt": prompt, **({"answer": said.completion} if said.completion else {})}
        rollout = sample_rollout(
            self.runtime.backbone,
            self.runtime.part.model,
            [row],
            num_generations=s.num_generations,
            max_completion_length=s.max_completion_length,
            temperature=s.temperature,
            seed=self.seeds(),
        )
        rewards = self.rewards.total(reward_rollout(self.rewards, rollout))
        answers = tuple(
            tuple(ids[: int(n)].tolist()) for ids, n in zip(rollout.completion_ids, rollout.lengths, strict=True)
        )
        return Group(TokenRecord(tuple(rollout.prompt_ids[0].tolist()), answers), rewards)

    @torch.no_grad()
    def _reference(self, rows: Any) -> Tensor:
        if self.runtime.ref_model == "global":
            return token_logps(self.runtime.part.model, rows, self.config.temperature)[0]
        with self.runtime.part.as_base() as reference:
            values = token_logps(reference, rows, self.config.temperature)[0]
        self.runtime.part.thaw()
        return values


def make_material(
    config: TrainingConfig,
    runtime: Runtime,
    records: NodeRecords,
    rewards: WeightedRewards | None,
    seeds: Callable[[], int],
) -> Material:
    """What the recipe's objective takes, by the kind of its batches; ``rewards`` and ``seeds`` are of groups alone."""
    if rewards is not None:
        return GroupMaterial(runtime, records, rewards, config, seeds)
    return MATERIALS[config.spec.batch](runtime, records, reference=config.spec.reference)
