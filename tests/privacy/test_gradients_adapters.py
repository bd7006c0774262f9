"""Per-unit gradients of adapters in a transformer equal a loop of single-unit backward passes."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from privacy.gradients import UnitGradientEngine
from tests.privacy.gradient_cases import LINEAR, OTHERS, Adapted, TokenPairs, adapted, by_loop, token_pairs

# PEFT 0.21 still asks transformers 5 for attributes under their old names.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*is deprecated:FutureWarning")
# fp64 and fp32 tolerances that the docstring promises, relative to the largest entry
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
# row_unit, and how many units there are; with pairs in order the engine adds products in place
UNITS = {
    "pairs": ([0, 1, 2, 3], 4),
    "pairs out of order": ([0, 2, 1, 3], 4),
    "ragged users": ([2, 0, 2, 4, 2], 6),  # units 1, 3 and 5 have no row
    "one user": ([0, 0, 0], 1),
}


def ours(case: Adapted, batch: TokenPairs, num_units: int, backend: str = "book_keeping") -> Tensor:
    engine = UnitGradientEngine(case.model, case.objective, case.trainable, backend=backend)  # type: ignore[arg-type]
    return engine(batch, num_units).flat()


def assert_equal(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype
    assert expected.abs().max() > 1e-4  # or the comparison says nothing
    assert (found - expected).abs().max() <= TOLERANCE[expected.dtype] * expected.abs().max()


@pytest.mark.slow  # seconds
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("kind", [*LINEAR, *OTHERS])
def test_adapters_equal_the_loop(kind: str, units: str, dtype: torch.dtype) -> None:
    case, (row_unit, num_units) = adapted(kind, dtype), UNITS[units]
    batch = token_pairs(row_unit, "right", dtype)
    found = ours(case, batch, num_units)
    assert_equal(found, by_loop(case, batch, num_units))
    for nobody in set(range(num_units)) - set(row_unit):
        assert not found[nobody].any()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["lora q,v", "lora all linears", "frozen A", "core", "soft prompt"])
def test_left_padding_and_gradient_checkpointing(kind: str, checkpointing: bool) -> None:
    case, batch = adapted(kind), token_pairs([1, 0, 1], "left")
    expected = by_loop(case, batch, 2)
    case.model.train()
    if checkpointing:
        inner = case.model if kind == "core" else case.model.get_base_model()
        inner.activation_checkpointing_enable({"use_reentrant": False})
        assert inner.is_activation_checkpointing
    assert_equal(ours(case, batch, 2), expected)


@pytest.mark.parametrize("kind", ["lora q,v", "lora and score head", "soft prompt"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_micro_batches_add_up_before_any_norm(kind: str, size: int) -> None:
    case, batch = adapted(kind), token_pairs([2, 0, 2, 4, 2])
    engine = UnitGradientEngine(case.model, case.objective, case.trainable)
    total = engine.zeros(5)
    for start in range(0, 5, size):
        records = torch.zeros(5, dtype=torch.bool)
        records[start : start + size] = True
        engine.accumulate(batch.select(records), total)
    assert_equal(total.flat(), by_loop(case, batch, 5))


def test_order_of_the_records_does_not_matter() -> None:
    case, batch = adapted("lora q,v"), token_pairs([2, 0, 1, 2])
    order = [3, 1, 0, 2]
    rows = [*order, *(4 + i for i in order)]
    tokens = (batch.input_ids[rows], batch.attention_mask[rows], batch.completion_mask[rows])
    shuffled = TokenPairs(*tokens, batch.reference[order], batch.row_unit[order])
    assert_equal(ours(case, shuffled, 3), ours(case, batch, 3))


@pytest.mark.parametrize("kind", ["lora q,v", "soft prompt"])
def test_no_records_are_a_normal_round(kind: str) -> None:
    case, batch = adapted(kind), token_pairs([0, 1])
    nobody = batch.select(torch.zeros(2, dtype=torch.bool))
    assert not ours(case, nobody, 3).any()
    assert ours(case, nobody, 0).shape[0] == 0


@pytest.mark.parametrize("kind", [*LINEAR, *OTHERS])
def test_a_poisoned_record_leaves_other_units_alone(kind: str) -> None:
    case, batch = adapted(kind), token_pairs([0, 1, 2, 1])
    engine = UnitGradientEngine(case.model, case.objective, case.trainable)
    healthy = engine(batch, 3)
    batch.reference[1] = torch.nan
    poisoned = engine(batch, 3)
    assert not poisoned.flat()[1].isfinite().all()
    torch.testing.assert_close(poisoned.flat()[[0, 2]], healthy.flat()[[0, 2]], rtol=0, atol=0)
    (without,) = engine(batch.select(batch.row_unit != 1), 3).clip_and_sum(0.1)
    (total,) = poisoned.clip_and_sum(0.1)
    torch.testing.assert_close(torch.from_numpy(total.value), torch.from_numpy(without.value), rtol=1e-9, atol=1e-12)


def test_frozen_matrices_that_peft_thaws_get_no_gradient() -> None:
    """Planted bug: PEFT's ``disable_adapter`` thaws A; who enumerates by ``requires_grad`` then trains it (rule 14)."""
    case, batch = adapted("frozen A"), token_pairs([0, 1])
    frozen = [p for n, p in case.model.named_parameters() if "lora_A" in n]
    for p in frozen:
        p.requires_grad_(False)
    found = ours(case, batch, 2)
    assert all(p.requires_grad for p in frozen)  # the objective's reference pass did it
    assert found.shape[1] == sum(p.numel() for p in case.trainable.values())
    assert all(p.grad is None for p in case.model.parameters())


@pytest.mark.parametrize("kind", LINEAR)
def test_opacus_hooks_agree(kind: str) -> None:
    case, batch = adapted(kind), token_pairs([2, 0, 2, 1])
    mark = torch.ones_like(next(iter(case.trainable.values())))
    next(iter(case.trainable.values())).grad = mark
    modes = [m.training for m in case.model.modules()]
    assert_equal(ours(case, batch, 3, "opacus"), ours(case, batch, 3))
    assert next(iter(case.trainable.values())).grad is mark
    assert modes == [m.training for m in case.model.modules()]
    assert not any(hasattr(p, "grad_sample") for p in case.model.parameters())


@pytest.mark.parametrize("kind", ["lora q,v", "lora and score head"])
def test_the_loop_backend_agrees(kind: str) -> None:
    case, batch = adapted(kind), token_pairs([2, 0, 2, 1])
    assert_equal(ours(case, batch, 3, "loop"), ours(case, batch, 3))


def test_bf16_models_are_summed_in_fp32() -> None:
    """Against fp32 products of the same bf16 activations; Opacus, which sums rows in bf16, is 100 times further away."""
    case, batch = adapted("lora q,v", torch.bfloat16), token_pairs([0] * 6, "right", torch.float32)
    found = ours(case, batch, 1)
    assert found.dtype == torch.float32
    rows = torch.arange(6)
    split = TokenPairs(batch.input_ids, batch.attention_mask, batch.completion_mask, batch.reference, rows)
    torch.testing.assert_close(ours(case, split, 6).sum(0), found[0], rtol=1e-5, atol=1e-6)
    assert (found != found.bfloat16().float()).any()


def test_the_loop_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    case, batch = adapted("soft prompt"), token_pairs([0, 1])
    with caplog.at_level(logging.INFO):
        engine = UnitGradientEngine(case.model, case.objective, case.trainable)
        engine(batch, 2)
        engine(batch, 2)
    assert [r.message for r in caplog.records if "prompt_encoder" in r.message and "exact loop" in r.message] != []
    assert len(caplog.records) == 1
