"""The server optimiser: ``torch.optim`` on the pseudo-gradient (Reddi et al. 2021, arXiv 2003.00295), with iterate averaging.

Everything here is post-processing of noised releases.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from fedpref.aggregation.yogi import Yogi
from fedpref.config_blocks import ServerOptimizerConfig
from privacy.errors import ParameterError

Vector = npt.NDArray[np.float64]


class ServerOptimizer:
    """Holds the parameters, the moments of ``torch.optim``, and the mean of the late iterates.

    | case | result |
    |---|---|
    | no step yet | the initial values, released as they are |
    | one step | the mean is that iterate if ``average_from`` is 0, else the last iterate stands for it |
    | a zero pseudo-gradient (nobody sampled, no noise) | a step all the same: momentum goes on |
    | NaN or inf in a pseudo-gradient | refused: no honest release has them, and they would stay for ever |
    """

    def __init__(
        self, config: ServerOptimizerConfig, dimension: int, num_rounds: int, initial: Vector | None = None
    ) -> None:
        """Start at ``initial``, flat fp64 [dimension] and public; None: at zero."""
        start = torch.zeros(dimension, dtype=torch.float64)
        self._parameter = torch.nn.Parameter(start if initial is None else start + torch.from_numpy(initial))
        self._optimizer = _torch_optimizer(config, self._parameter)
        self._average_after = int(config.average_from * num_rounds)
        self._total = torch.zeros(dimension, dtype=torch.float64)
        self._counted, self._steps = 0, 0

    @property
    def parameters(self) -> Vector:
        """What is broadcast in the next round, flat fp64 [d]."""
        return np.array(self._parameter.detach().numpy())

    @property
    def averaged(self) -> Vector:
        """What is released: the mean of the iterates after ``average_from``; before that, the last iterate."""
        return np.array((self._total / self._counted).numpy()) if self._counted else self.parameters

    def step(self, pseudo_gradient: Vector) -> None:
        """One step against the pseudo-gradient, flat fp64 [d].

        Raises:
            ParameterError: it is not finite; the state is untouched.
        """
        if not np.isfinite(pseudo_gradient).all():
            raise ParameterError(
                "A pseudo-gradient is not finite.",
                "Every later round would inherit it.",
                "Look at the release of this round; clipped and noised sums are finite.",
            )
        self._parameter.grad = torch.from_numpy(pseudo_gradient.copy())
        self._optimizer.step()
        self._steps += 1
        if self._steps > self._average_after:
            self._total += self._parameter.detach()
            self._counted += 1

    def state(self) -> dict[str, Vector]:
        """All of it as named fp64 tensors, for a checkpoint."""
        moments = self._optimizer.state[self._parameter]
        return {
            "parameters": self.parameters,
            "average.total": np.array(self._total.numpy()),
            "counters": np.array([self._counted, self._steps], dtype=np.float64),
            **{f"optim.{k}": np.array(torch.as_tensor(v, dtype=torch.float64).numpy()) for k, v in moments.items()},
        }

    def restore(self, state: dict[str, Vector]) -> None:
        """Go on from ``state``."""
        with torch.no_grad():
            self._parameter.copy_(torch.from_numpy(state["parameters"]))
        self._total = torch.from_numpy(state["average.total"].copy())
        self._counted, self._steps = (int(x) for x in state["counters"])
        moments = {
            k.removeprefix("optim."): torch.from_numpy(v.copy()) for k, v in state.items() if k.startswith("optim.")
        }
        self._optimizer.state[self._parameter] = moments


def _torch_optimizer(config: ServerOptimizerConfig, parameter: torch.nn.Parameter) -> torch.optim.Optimizer:
    if config.optim == "sgd":
        return torch.optim.SGD([parameter], lr=config.learning_rate, momentum=config.momentum or 0.0)
    if config.optim == "adam":
        betas = (config.adam_beta1 or 0.0, config.adam_beta2 or 0.0)  # the schema has filled them in
        return torch.optim.Adam([parameter], lr=config.learning_rate, betas=betas)
    if config.optim == "yogi":
        betas = (config.adam_beta1 or 0.0, config.adam_beta2 or 0.0)
        return Yogi([parameter], lr=config.learning_rate, betas=betas)
    return torch.optim.Adagrad([parameter], lr=config.learning_rate)
