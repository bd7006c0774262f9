"""Every objective: one loss per record, which no other record of the batch can move."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from policy.losses import group_advantages, grpo_loss
from reward.head import RewardHead, bradley_terry_objective, debiased_objective
from reward.pairs import FeaturePairs

N, D = 7, 5


class ObjectiveContract(ABC):
    """Records are numbered 0 to size - 1; ``losses`` are those of the records asked for, in that order."""

    size = N

    @abstractmethod
    def losses(self, records: Tensor) -> Tensor:
        """Loss of every record asked for, shape [len(records)], with gradients."""

    @abstractmethod
    def parameter(self) -> Tensor:
        """What the loss is differentiated by."""

    def gradient(self, records: Tensor, place: int) -> Tensor:
        (gradient,) = torch.autograd.grad(self.losses(records)[place], self.parameter())
        return gradient

    def test_there_is_one_finite_loss_per_record(self) -> None:
        losses = self.losses(torch.arange(self.size))
        assert losses.shape == (self.size,)
        assert losses.isfinite().all()
        assert len(set(losses.tolist())) > 1

    def test_a_permutation_of_records_permutes_their_losses(self) -> None:
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(
            self.losses(order), self.losses(torch.arange(self.size))[order], rtol=1e-6, atol=1e-7
        )

    def test_dropping_the_neighbours_changes_neither_loss_nor_gradient(self) -> None:
        whole = self.losses(torch.arange(self.size))
        for record in range(self.size):
            alone = torch.tensor([record])
            torch.testing.assert_close(self.losses(alone)[0], whole[record], rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(
                self.gradient(alone, 0), self.gradient(torch.arange(self.size), record), rtol=1e-5, atol=1e-7
            )

    def test_no_record_gives_no_loss(self) -> None:
        assert self.losses(torch.arange(0)).shape == (0,)


class TestBradleyTerry(ObjectiveContract):
    def setup_method(self) -> None:
        torch.manual_seed(1)
        self.head = RewardHead(D)
        torch.nn.init.normal_(self.head.score.weight)
        self.chosen, self.rejected, self.weight = torch.randn(N, D), torch.randn(N, D), torch.rand(N)

    def parameter(self) -> Tensor:
        return self.head.score.weight

    def batch(self, records: Tensor) -> FeaturePairs:
        return FeaturePairs(self.chosen[records], self.rejected[records], self.weight[records], records)

    def losses(self, records: Tensor) -> Tensor:
        return bradley_terry_objective(self.head, self.batch(records))


class TestDebiasedBradleyTerry(TestBradleyTerry):
    def losses(self, records: Tensor) -> Tensor:
        return debiased_objective(0.2)(self.head, self.batch(records))


class TestMlpHead(TestBradleyTerry):
    hidden_dim: int | None = 4
    num_layers: int | None = None

    def setup_method(self) -> None:
        torch.manual_seed(3)
        self.head = RewardHead(D, self.hidden_dim, self.num_layers)
        for parameter in self.head.parameters():
            torch.nn.init.normal_(parameter)
        shape = (N, D) if self.num_layers is None else (N, self.num_layers, D)
        self.chosen, self.rejected, self.weight = torch.randn(shape), torch.randn(shape), torch.rand(N)

    def parameter(self) -> Tensor:
        assert self.head.hidden is not None
        return self.head.hidden.weight


class TestMixedLayers(TestMlpHead):
    hidden_dim, num_layers = None, 3

    def parameter(self) -> Tensor:
        assert self.head.mix is not None
        return self.head.mix.weight


class TestDebiasedMlpHeadOnMixedLayers(TestMlpHead):
    hidden_dim, num_layers = 4, 2

    def losses(self, records: Tensor) -> Tensor:
        return debiased_objective(0.2)(self.head, self.batch(records))


class TestGrpo(ObjectiveContract):
    """The record is a prompt's whole group (guarantees.md rule 13): 3 completions of 4 tokens."""

    def setup_method(self) -> None:
        torch.manual_seed(2)
        self.scale = torch.ones(1, requires_grad=True)
        self.logprobs, self.rewards = -torch.rand(N, 3, 4), torch.randn(N, 3)
        self.mask = (torch.arange(4) < torch.randint(1, 5, (N, 3, 1))).long()

    def parameter(self) -> Tensor:
        return self.scale

    def losses(self, records: Tensor) -> Tensor:
        groups = [
            grpo_loss(
                self.logprobs[i] * self.scale,
                self.mask[i],
                group_advantages(self.rewards[i]),
                loss_type="grpo",
                max_completion_length=4,
            ).sum()
            for i in records.tolist()
        ]
        return torch.stack(groups) if groups else torch.zeros(0)
