"""The language-model head as log-probabilities of given tokens, without keeping the logits of the vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CHUNK = 256  # tokens whose logits exist at one time: 50 MB in fp32 for a vocabulary of 49,152


def head_logprobs(head: nn.Module, hidden: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(head(hidden) / temperature)[target], [tokens] from [tokens, hidden] and [tokens], fp32 or wider.

    A frozen linear head takes the gradient on the way forward (softmax minus the target, times the head), so that the
    backward pass is an elementwise product: the arithmetic of cross-entropy and its backward pass, but logits of ``CHUNK``
    tokens at a time, and none kept. Any other head (trained, adapted, not linear) is differentiated as usual.
    """
    if _plain(head):
        logprobs: Tensor = _FrozenHead.apply(hidden, head, target, temperature)  # type: ignore[no-untyped-call]
        return logprobs
    logits = head(hidden)
    return _picked(logits, target, temperature)


def _plain(head: nn.Module) -> bool:
    return (
        type(head) is nn.Linear and "forward" not in vars(head) and not any(p.requires_grad for p in head.parameters())
    )


def _picked(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    return -functional.cross_entropy(wide, target, reduction="none")


class _FrozenHead(torch.autograd.Function):
    """Saves d log p / d hidden, [tokens, hidden]."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: nn.Linear, target: Tensor, temperature: float) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        slopes, results = [], []
        for x, t in zip(hidden.split(CHUNK), target.split(CHUNK), strict=True):
            logits = head(x)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            if temperature != 1.0:
                logits.div_(temperature)
            norm = logits.logsumexp(1)
            results.append(logits.gather(1, t[:, None])[:, 0] - norm)
            if wanted:
                slope = logits.sub_(norm[:, None]).exp_().neg_()
                slope[torch.arange(len(t), device=t.device), t] += 1
                slopes.append(slope.to(head.weight.dtype) @ head.weight / temperature)
        if wanted:
            ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(results)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return (grad_outputs[0][:, None] * slope).to(slope.dtype), None, None, None
