"""Yogi, which torch.optim does not have (Zaheer et al. 2018; FedYogi: Reddi et al. 2021, arXiv 2003.00295, algorithm 2)."""

from __future__ import annotations

from collections.abc import Iterable

import torch


class Yogi(torch.optim.Optimizer):
    """m <- b1 m + (1 - b1) g;  v <- v - (1 - b2) g^2 sign(v - g^2);  x <- x - lr m / (sqrt(v) + eps), without bias correction.

    ``v`` moves by at most (1 - b2) g^2 a step, so that one large noised gradient does not freeze the learning rate as it
    does under Adam. It starts at eps^2, as in the paper's FedOpt.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-3,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step for every tensor that has a gradient."""
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.full_like(parameter, group["eps"] ** 2)
                m, v, squared = state["exp_avg"], state["exp_avg_sq"], parameter.grad.square()
                m.mul_(b1).add_(parameter.grad, alpha=1 - b1)
                v.sub_((1 - b2) * squared * torch.sign(v - squared))
                parameter.sub_(group["lr"] * m / (v.sqrt() + group["eps"]))
