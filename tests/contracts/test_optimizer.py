"""Every server optimiser: torch's own arithmetic, and a state that survives a file bit for bit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fedpref.aggregation.optimizers import ServerOptimizer
from fedpref.config import RewardConfig
from fedpref.journal import Checkpoints
from privacy.errors import ParameterError

D, ROUNDS = 7, 12
GRADIENTS = np.random.default_rng(0).normal(size=(ROUNDS, D))
Vector = npt.NDArray[np.float64]


class OptimizerContract(ABC):
    """What holds for every choice of ``reward.optim``."""

    @abstractmethod
    def config(self) -> RewardConfig:
        """The recipe's block."""

    @abstractmethod
    def oracle(self, parameter: torch.nn.Parameter) -> torch.optim.Optimizer:
        """The same optimiser, made by hand from torch.optim."""

    def make(self) -> ServerOptimizer:
        return ServerOptimizer(self.config(), D, ROUNDS)

    def test_it_takes_the_steps_of_torch(self) -> None:
        ours, parameter = self.make(), torch.nn.Parameter(torch.zeros(D, dtype=torch.float64))
        theirs = self.oracle(parameter)
        for gradient in GRADIENTS:
            ours.step(gradient)
            parameter.grad = torch.tensor(gradient)
            theirs.step()
            assert np.array_equal(ours.parameters, parameter.detach().numpy())

    @pytest.mark.parametrize("after", [0, 1, 5, 9, ROUNDS])
    def test_a_restored_one_goes_on_bit_for_bit(self, after: int, tmp_path: Path) -> None:
        unbroken, first, second = self.make(), self.make(), self.make()
        for gradient in GRADIENTS[:after]:
            unbroken.step(gradient)
            first.step(gradient)
        Checkpoints(tmp_path / "c").prepare(1, first.state())
        assert Checkpoints(tmp_path / "c").publish(1)
        _, state = Checkpoints(tmp_path / "c").last()
        assert state is not None
        second.restore(state)
        for gradient in GRADIENTS[after:]:
            unbroken.step(gradient)
            second.step(gradient)
        assert np.array_equal(second.parameters, unbroken.parameters)
        assert np.array_equal(second.averaged, unbroken.averaged)
        assert {k: v.tobytes() for k, v in second.state().items()} == {
            k: v.tobytes() for k, v in unbroken.state().items()
        }

    def test_a_gradient_is_copied_and_a_state_is_a_copy(self) -> None:
        ours, gradient = self.make(), GRADIENTS[0].copy()
        ours.step(gradient)
        state, before = ours.state(), ours.parameters
        gradient[:] = 100.0
        for value in state.values():
            value.fill(100.0)
        assert np.array_equal(ours.parameters, before)
        other = self.make()
        other.step(GRADIENTS[0])
        for optimizer in (ours, other):
            optimizer.step(GRADIENTS[1])
        assert np.array_equal(ours.parameters, other.parameters)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_what_is_not_finite_is_refused_and_changes_nothing(self, bad: float) -> None:
        ours = self.make()
        ours.step(GRADIENTS[0])
        before = {k: v.tobytes() for k, v in ours.state().items()}
        with pytest.raises(ParameterError, match="not finite"):
            ours.step(np.where(np.arange(D) == 2, bad, GRADIENTS[1]))
        assert {k: v.tobytes() for k, v in ours.state().items()} == before

    def test_the_edges_of_the_mean_and_of_a_zero_gradient(self) -> None:
        ours = self.make()
        assert np.array_equal(ours.parameters, np.zeros(D))
        assert np.array_equal(ours.averaged, np.zeros(D))
        ours.step(GRADIENTS[0])
        assert np.array_equal(ours.averaged, ours.parameters)  # one early step: the last iterate
        ours.step(np.zeros(D))
        assert np.isfinite(ours.parameters).all()

    def test_every_figure_of_a_state_is_a_64_bit_float(self) -> None:
        ours = self.make()
        ours.step(GRADIENTS[0])
        assert {value.dtype for value in ours.state().values()} == {np.dtype(np.float64)}


class TestSgd(OptimizerContract):
    def config(self) -> RewardConfig:
        return RewardConfig(public_data="p", optim="sgd", learning_rate=0.3, momentum=0.9)

    def oracle(self, parameter: torch.nn.Parameter) -> torch.optim.Optimizer:
        return torch.optim.SGD([parameter], lr=0.3, momentum=0.9)


class TestSgdWithoutMomentum(OptimizerContract):
    def config(self) -> RewardConfig:
        return RewardConfig(public_data="p", optim="sgd", learning_rate=0.3, momentum=0.0)

    def oracle(self, parameter: torch.nn.Parameter) -> torch.optim.Optimizer:
        return torch.optim.SGD([parameter], lr=0.3)


class TestAdam(OptimizerContract):
    def config(self) -> RewardConfig:
        return RewardConfig(public_data="p", optim="adam", learning_rate=0.05)

    def oracle(self, parameter: torch.nn.Parameter) -> torch.optim.Optimizer:
        return torch.optim.Adam([parameter], lr=0.05, betas=(0.9, 0.99))


class TestAdamWithOtherBetas(OptimizerContract):
    def config(self) -> RewardConfig:
        return RewardConfig(public_data="p", optim="adam", learning_rate=0.05, adam_beta1=0.0, adam_beta2=0.999)

    def oracle(self, parameter: torch.nn.Parameter) -> torch.optim.Optimizer:
        return torch.optim.Adam([parameter], lr=0.05, betas=(0.0, 0.999))


class TestAdagrad(OptimizerContract):
    def config(self) -> RewardConfig:
        return RewardConfig(public_data="p", optim="adagrad", learning_rate=0.2)

    def oracle(self, parameter: torch.nn.Parameter) -> torch.optim.Optimizer:
        return torch.optim.Adagrad([parameter], lr=0.2)


class SlowYogi(torch.optim.Optimizer):
    """Zaheer et al. 2018, algorithm 2, a coordinate at a time; v starts at eps^2 (Reddi et al. 2021)."""

    def __init__(self, parameter: torch.nn.Parameter) -> None:
        super().__init__([parameter], {})
        self.m, self.v = [0.0] * D, [1e-6] * D

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        (parameter,) = self.param_groups[0]["params"]
        for i, g in enumerate(parameter.grad.tolist()):
            self.m[i] = 0.9 * self.m[i] + (1 - 0.9) * g
            sign = float(np.sign(self.v[i] - g * g))
            self.v[i] -= (1 - 0.99) * (g * g) * sign
            parameter.data[i] -= 0.05 * self.m[i] / (self.v[i] ** 0.5 + 1e-3)


class TestYogi(OptimizerContract):
    def config(self) -> RewardConfig:
        return RewardConfig(public_data="p", optim="yogi", learning_rate=0.05)

    def oracle(self, parameter: torch.nn.Parameter) -> torch.optim.Optimizer:
        return SlowYogi(parameter)

    def test_it_takes_the_steps_of_torch(self) -> None:
        """Torch has none: those of the slow one, to the last bits."""
        ours, parameter = self.make(), torch.nn.Parameter(torch.zeros(D, dtype=torch.float64))
        theirs = self.oracle(parameter)
        for gradient in GRADIENTS:
            ours.step(gradient)
            parameter.grad = torch.tensor(gradient)
            theirs.step()
            np.testing.assert_allclose(ours.parameters, parameter.detach().numpy(), rtol=1e-12)


def test_it_starts_where_it_is_told_and_keeps_no_hold_on_it() -> None:
    start = np.arange(D, dtype=np.float64)
    ours = ServerOptimizer(RewardConfig(public_data="p", momentum=0.0, average_from=1.0), D, ROUNDS, start)
    assert np.array_equal(ours.averaged, start)
    ours.step(GRADIENTS[0])
    assert np.array_equal(start, np.arange(D))
    np.testing.assert_array_equal(ours.averaged, start - GRADIENTS[0])  # the last iterate: no mean
