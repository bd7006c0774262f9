"""A tiny random Llama with PEFT adapters, preference pairs of tokens, and the slow definition of per-unit gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

PAD, LENGTH = 0, 9
Objective = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class TokenPairs:
    """Model rows [chosen; rejected]: ids, attention and completion masks [2n, T]; reference [n]; units [n]."""

    input_ids: Tensor
    attention_mask: Tensor
    completion_mask: Tensor
    reference: Tensor
    row_unit: Tensor

    @property
    def model_row_unit(self) -> Tensor:
        return torch.cat([self.row_unit, self.row_unit])

    def select(self, records: Tensor) -> TokenPairs:
        rows = torch.cat([records, records])
        return TokenPairs(
            self.input_ids[rows],
            self.attention_mask[rows],
            self.completion_mask[rows],
            self.reference[records],
            self.row_unit[records],
        )


def token_pairs(row_unit: Sequence[int], side: str = "right", dtype: torch.dtype = torch.float64) -> TokenPairs:
    """Random pairs of unequal lengths, padded on one side."""
    generator = torch.Generator().manual_seed(3)
    n = len(row_unit)
    ids = torch.full((2 * n, LENGTH), PAD)
    attention, completion = torch.zeros(2 * n, LENGTH, dtype=torch.int64), torch.zeros(2 * n, LENGTH, dtype=torch.int64)
    for row in range(2 * n):
        length = int(torch.randint(4, LENGTH + 1, (1,), generator=generator))
        prompt = int(torch.randint(1, length - 1, (1,), generator=generator))
        begin = 0 if side == "right" else LENGTH - length
        ids[row, begin : begin + length] = torch.randint(1, 40, (length,), generator=generator)
        attention[row, begin : begin + length] = 1
        completion[row, begin + prompt : begin + length] = 1
    reference = torch.randn(n, generator=generator, dtype=torch.float64).to(dtype)
    return TokenPairs(ids, attention, completion, reference, torch.tensor(row_unit, dtype=torch.int64))


def llama(dtype: torch.dtype = torch.float64, *, tied: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        pad_token_id=PAD,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).to(dtype)


def lora(model: nn.Module, targets: list[str] | str) -> Any:
    """LoRA of rank 3 with both matrices random (PEFT starts B at zero, where A has no gradient)."""
    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(r=3, target_modules=targets, init_lora_weights=False))  # type: ignore[arg-type]


class Core(nn.Module):
    """A frozen linear layer with B R A beside it, of which the r x r matrix R is trained (LoRA-XS)."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.a, self.core = nn.Linear(base.in_features, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.b = nn.Linear(3, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.b(self.core(self.a(x)))
        return out


class RewardModel(nn.Module):
    """LoRA in the trunk, and a score head with a bias on the mean of the hidden states."""

    def __init__(self, trunk: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.trunk, self.score = trunk, nn.Linear(16, 1).to(dtype)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.trunk.get_base_model().model(input_ids=input_ids, attention_mask=attention_mask)[0]
        weight = attention_mask[..., None].to(hidden.dtype)
        scores: Tensor = self.score((hidden * weight).sum(1) / weight.sum(1)).squeeze(-1)
        return scores


def dpo(model: Any, batch: TokenPairs) -> Tensor:
    """DPO with the LM head on completion tokens only (flattened), after a reference pass that thaws what was frozen."""
    with torch.no_grad(), model.disable_adapter():
        sequence_logprobs(model, batch)
    logps = sequence_logprobs(model, batch)
    chosen, rejected = logps.chunk(2)
    return -functional.logsigmoid(0.3 * (chosen - rejected - batch.reference))


def sequence_logprobs(model: Any, batch: TokenPairs) -> Tensor:
    base = model.get_base_model()
    hidden = base.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)[0]
    where = batch.completion_mask[:, 1:].bool()
    logits = base.lm_head(hidden[:, :-1][where])
    return _summed(logits, batch, where)


def dpo_by_logits(model: Any, batch: TokenPairs) -> Tensor:
    """DPO through the whole model, as soft prompts need it."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    where = batch.completion_mask[:, 1:].bool()
    logps = _summed(logits[:, -LENGTH:-1][where], batch, where)
    chosen, rejected = logps.chunk(2)
    return -functional.logsigmoid(0.3 * (chosen - rejected - batch.reference))


def _summed(logits: Tensor, batch: TokenPairs, where: Tensor) -> Tensor:
    wide = torch.promote_types(logits.dtype, torch.float32)
    token = -functional.cross_entropy(logits.to(wide), batch.input_ids[:, 1:][where], reduction="none")
    return torch.zeros(len(where), dtype=wide).index_add(0, where.nonzero()[:, 0], token)


def bradley_terry_rows(model: Any, batch: TokenPairs) -> Tensor:
    chosen, rejected = model(batch.input_ids, batch.attention_mask).chunk(2)
    return -functional.logsigmoid(chosen - rejected - batch.reference)


@dataclass(frozen=True)
class Adapted:
    """A model, what is trained of it, and an objective."""

    model: Any
    trainable: dict[str, nn.Parameter]
    objective: Objective


def _pick(model: nn.Module, objective: Objective, *parts: str) -> Adapted:
    named = {n: p for n, p in model.named_parameters() if any(part in n for part in parts)}
    for p in named.values():
        p.requires_grad_(True)
    return Adapted(model, named, objective)


def _lora_q_v(dtype: torch.dtype) -> Adapted:
    return _pick(lora(llama(dtype), ["q_proj", "v_proj"]).to(dtype), dpo, "lora_")


def _lora_all_linears(dtype: torch.dtype) -> Adapted:
    return _pick(lora(llama(dtype), "all-linear").to(dtype), dpo, "lora_")


def _frozen_a(dtype: torch.dtype) -> Adapted:
    return _pick(lora(llama(dtype), ["q_proj", "v_proj"]).to(dtype), dpo, "lora_B")


def _core(dtype: torch.dtype) -> Adapted:
    base = llama(dtype).requires_grad_(False)
    for layer in base.model.layers:
        layer.self_attn.q_proj = Core(layer.self_attn.q_proj)
    return _pick(base.to(dtype), dpo_by_logits, ".core.")


def _lora_and_score_head(dtype: torch.dtype) -> Adapted:
    trunk = lora(llama(dtype), ["q_proj", "v_proj"])
    return _pick(RewardModel(trunk, dtype).to(dtype), bradley_terry_rows, "lora_", "score")


def _soft_prompt(dtype: torch.dtype) -> Adapted:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    return _pick(get_peft_model(llama(dtype), config).to(dtype), dpo_by_logits, "prompt_encoder")  # type: ignore[arg-type]


def _ia3(dtype: torch.dtype) -> Adapted:
    config = IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    return _pick(get_peft_model(llama(dtype), config).to(dtype), dpo_by_logits, "ia3_")  # type: ignore[arg-type]


def _norms(dtype: torch.dtype) -> Adapted:
    return _pick(llama(dtype).requires_grad_(False), dpo_by_logits, "norm.weight")


def _tied_embeddings(dtype: torch.dtype) -> Adapted:
    return _pick(llama(dtype).requires_grad_(False), dpo_by_logits, "embed_tokens")


LINEAR: dict[str, Callable[[torch.dtype], Adapted]] = {
    "lora q,v": _lora_q_v,
    "lora all linears": _lora_all_linears,
    "frozen A": _frozen_a,
    "core": _core,
    "lora and score head": _lora_and_score_head,
}
OTHERS: dict[str, Callable[[torch.dtype], Adapted]] = {
    "soft prompt": _soft_prompt,
    "ia3": _ia3,
    "norms": _norms,
    "tied embeddings": _tied_embeddings,
}


def adapted(kind: str, dtype: torch.dtype = torch.float64) -> Adapted:
    """A kind of ``LINEAR`` or ``OTHERS``."""
    return {**LINEAR, **OTHERS}[kind](dtype)


def by_loop(case: Adapted, batch: TokenPairs, num_units: int) -> Tensor:
    """The definition: one ordinary backward pass over the pairs of each unit alone; [num_units, d]."""
    result = []
    for unit in range(num_units):
        mine = [i for i, u in enumerate(batch.row_unit.tolist()) if u == unit]
        for p in case.trainable.values():
            p.grad = None
        if mine:
            rows = [*mine, *(len(batch.row_unit) + i for i in mine)]
            tokens = (batch.input_ids[rows], batch.attention_mask[rows], batch.completion_mask[rows])
            alone = TokenPairs(*tokens, batch.reference[mine], batch.row_unit[mine])
            case.objective(case.model, alone).sum().backward()  # type: ignore[no-untyped-call]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in case.trainable.values()]
        result.append(torch.cat([g.flatten() for g in gradients]))
    for p in case.model.parameters():
        p.grad = None
    return torch.stack(result)
