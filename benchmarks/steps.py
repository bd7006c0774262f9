"""One training step on preference pairs, non-private and private by three methods, on the same model and batch.

``plain``         mean loss, backward, clip the batch's norm, AdamW
``book_keeping``  ``privacy.gradients``: one backward pass, pairs clipped, summed, noised, AdamW
``opacus``        GradSampleHooks (attached once), rows summed into pairs, clipped, summed, noised, AdamW
``ghost``         norms of pairs from Gram matrices in a first backward pass, weighted losses in a second, noised, AdamW

The objective is DPO's with precomputed reference log-probabilities and the LM head on completion tokens only.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from privacy.clipping import grid_step
from privacy.gradients import UnitGradientEngine, select_trainable
from privacy.noise import sample
from privacy.rng import SystemRandom

PAIRS, TOKENS, COMPLETION, RANK = 4, 128, 64, 8
CLIP, NOISE_MULTIPLIER, BETA, LEARNING_RATE = 1.0, 1.0, 0.1, 1e-5
ADAPTERS: dict[str, list[str] | str] = {"q,v": ["q_proj", "v_proj"], "all linears": "all-linear"}


@dataclass(frozen=True)
class Pairs:
    """``input_ids`` [2n, T] as [chosen; rejected], ``reference`` [n], ``row_unit`` [n]: the pair is the unit."""

    input_ids: Tensor
    reference: Tensor
    row_unit: Tensor

    @property
    def model_row_unit(self) -> Tensor:
        """The unit of every model row, [2n]."""
        return torch.cat([self.row_unit, self.row_unit])

    def select(self, records: Tensor) -> Pairs:
        """The pairs where the mask is true."""
        return Pairs(self.input_ids[torch.cat([records, records])], self.reference[records], self.row_unit[records])


def random_pairs(vocabulary: int) -> Pairs:
    """Pairs with one prompt each and two completions, without padding."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, vocabulary, (2 * PAIRS, TOKENS), generator=generator)
    ids[PAIRS:, : TOKENS - COMPLETION] = ids[:PAIRS, : TOKENS - COMPLETION]
    return Pairs(ids, torch.randn(PAIRS, generator=generator), torch.arange(PAIRS))


def dpo(model: Any, batch: Pairs) -> Tensor:
    """DPO's sigmoid loss of every pair, [n]."""
    base = model.get_base_model()
    hidden = base.model(input_ids=batch.input_ids, use_cache=False).last_hidden_state[:, -COMPLETION - 1 : -1]
    logits = base.lm_head(hidden).float()
    tokens = functional.cross_entropy(
        logits.flatten(0, 1), batch.input_ids[:, -COMPLETION:].flatten(), reduction="none"
    )
    chosen, rejected = -tokens.view(-1, COMPLETION).sum(dim=1).view(2, -1)
    return -functional.logsigmoid(BETA * (chosen - rejected - batch.reference))


class Steps:
    """The four steps on one adapted model; each leaves the private or plain gradient in ``.grad`` before AdamW moves."""

    def __init__(self, base: Any, adapter: str) -> None:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        config = LoraConfig(r=RANK, target_modules=ADAPTERS[adapter], init_lora_weights=False)
        self.model: Any = get_peft_model(base, config)
        names = [name for name, _ in self.model.named_parameters() if ".lora_" in name]
        self.trainable = select_trainable(self.model, names)
        self.parameters = list(self.trainable.values())
        self.dimension = sum(p.numel() for p in self.parameters)
        self.batch = random_pairs(base.config.vocab_size)
        self.engine = UnitGradientEngine(self.model, dpo, self.trainable)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=LEARNING_RATE)
        self.noise = SystemRandom()

    def plain(self) -> None:
        """Non-private."""
        self.optimizer.zero_grad()
        dpo(self.model, self.batch).mean().backward()
        nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimizer.step()

    def private(self, clipped_sum: Callable[[], Tensor]) -> None:
        """Clipped sum, noise, public divisor, AdamW."""
        self.optimizer.zero_grad()
        total = clipped_sum()
        step = grid_step(CLIP, self.dimension)  # the grid of the mechanism: every backend pays for the same noise
        noise = sample(NOISE_MULTIPLIER * CLIP / step, self.dimension, self.noise.stream("noise"))
        total += torch.from_numpy(noise * step)
        total /= PAIRS
        sizes = [p.numel() for p in self.parameters]
        for p, part in zip(self.parameters, total.split(sizes), strict=True):
            p.grad = part.view_as(p).to(p.dtype)
        self.optimizer.step()

    def book_keeping(self) -> Tensor:
        """The clipped sum by this project's engine, fp64 [d]."""
        return torch.from_numpy(self.engine(self.batch, PAIRS).clip_and_sum(CLIP)[0].value)

    def loop(self) -> Tensor:
        """The definition: a backward pass for every pair."""
        total = torch.zeros(self.dimension, dtype=torch.float64)
        for pair in range(PAIRS):
            losses = dpo(self.model, self.batch.select(self.batch.row_unit == pair))
            gradient = torch.cat([g.flatten() for g in torch.autograd.grad(losses.sum(), self.parameters)]).double()
            total += gradient * (CLIP / gradient.norm()).clamp(max=1.0)
        return total

    def opacus(self) -> Tensor:
        """The clipped sum from Opacus' gradients per row; needs ``opacus_hooks``."""
        dpo(self.model, self.batch).sum().backward()
        pairs = []
        for p in self.parameters:
            rows = p.grad_sample.float()  # type: ignore[attr-defined]
            pairs.append(rows[:PAIRS] + rows[PAIRS:])
            p.grad_sample = p.grad = None  # type: ignore[attr-defined]
        norm = torch.stack([g.flatten(1).norm(dim=1) for g in pairs]).norm(dim=0)
        factor = (CLIP / norm).clamp(max=1.0)
        return torch.cat([(factor @ g.flatten(1)) for g in pairs]).double()

    @contextmanager
    def opacus_hooks(self) -> Iterator[None]:
        """Opacus' hooks, attached for as long as they are needed; they want layers in training mode."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from opacus.grad_sample import GradSampleHooks

            self.model.train()
            hooks = GradSampleHooks(self.model, strict=False, loss_reduction="sum")
            try:
                yield
            finally:
                hooks.cleanup()
                self.model.eval()

    def ghost(self) -> Tensor:
        """The clipped sum by ghost clipping (Li et al. 2022, arXiv 2110.05679, eq. 4), with the pair as one sequence."""
        outputs, taps, squares = list[Tensor](), list[Any](), torch.zeros(PAIRS)

        def tap(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            x = inputs[0].detach()

            def add(gy: Tensor) -> None:
                squares.add_(_gram(x, gy))

            taps.append(output.register_hook(add))
            outputs.append(output)

        held = {id(p) for p in self.parameters}
        layers = [m for m in self.model.modules() if isinstance(m, nn.Linear) and id(m.weight) in held]
        hooks = [layer.register_forward_hook(tap) for layer in layers]
        losses = dpo(self.model, self.batch)
        for hook in hooks:
            hook.remove()
        torch.autograd.grad(losses.sum(), outputs, retain_graph=True)
        for hook in taps:
            hook.remove()
        factor = (CLIP / squares.sqrt()).clamp(max=1.0)
        torch.autograd.backward((factor * losses).sum(), inputs=self.parameters)
        total = torch.cat([p.grad.flatten() for p in self.parameters if p.grad is not None]).double()
        self.optimizer.zero_grad()
        return total


def _gram(x: Tensor, gy: Tensor) -> Tensor:
    """Squared norms of the pairs' weight gradients, [n], from [2n, T, i] and [2n, T, o]."""
    x, gy = (v.float().view(2, PAIRS, TOKENS, -1).transpose(0, 1).reshape(PAIRS, 2 * TOKENS, -1) for v in (x, gy))
    return (torch.bmm(x, x.mT) * torch.bmm(gy, gy.mT)).sum(dim=(1, 2))
