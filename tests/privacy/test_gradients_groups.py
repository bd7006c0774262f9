"""Prompt groups (GRPO) as unit, autocast, and one pair under a bound: what a unit contributes, whatever its rows are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from privacy.gradients import RecordsInteractError, UnitGradientEngine
from tests.privacy.gradient_cases import adapted, by_loop, sequence_logprobs, token_pairs

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*is deprecated:FutureWarning")


@dataclass(frozen=True)
class Completions:
    """One completion a record and a model row: ids and masks [n, T], reward [n], prompt [n] (as the objective's own
    grouping), and the unit of each completion [n]: its prompt, or the user who wrote several prompts."""

    input_ids: Tensor
    attention_mask: Tensor
    completion_mask: Tensor
    reward: Tensor
    prompt: Tensor
    row_unit: Tensor

    def select(self, records: Tensor) -> Completions:
        return Completions(*(getattr(self, name)[records] for name in self.__dataclass_fields__))


def completions(prompt: list[int], unit_of_prompt: list[int]) -> Completions:
    pairs = token_pairs(list(range(len(prompt) // 2)))
    generator = torch.Generator().manual_seed(8)
    reward = torch.randn(len(prompt), generator=generator, dtype=torch.float64)
    units = torch.tensor([unit_of_prompt[p] for p in prompt])
    return Completions(
        pairs.input_ids, pairs.attention_mask, pairs.completion_mask, reward, torch.tensor(prompt), units
    )


def grpo(model: Any, batch: Completions) -> Tensor:
    """Advantages within a prompt (they couple its completions), first step of `dr_grpo`: -A log p."""
    advantage = torch.zeros_like(batch.reward)
    for prompt in batch.prompt.unique():
        mine = batch.prompt == prompt
        advantage[mine] = batch.reward[mine] - batch.reward[mine].mean()
    return -advantage * sequence_logprobs(model, batch)  # type: ignore[arg-type]


@pytest.mark.parametrize("unit_of_prompt", [[0, 1, 2], [1, 0, 1]])
@pytest.mark.parametrize("prompt", [[0, 0, 0, 1, 1, 1, 2, 2], [2, 0, 1, 0, 1, 2, 1, 0]])
def test_a_prompts_completions_are_one_unit(prompt: list[int], unit_of_prompt: list[int]) -> None:
    case, batch = adapted("lora q,v"), completions(prompt, unit_of_prompt)
    units = max(unit_of_prompt) + 1
    found = UnitGradientEngine(case.model, grpo, case.trainable)(batch, units).flat()
    for unit in range(units):
        loss = grpo(case.model, batch.select(batch.row_unit == unit)).sum()
        alone = torch.autograd.grad(loss, list(case.trainable.values()))
        expected = torch.cat([g.flatten() for g in alone])
        assert (found[unit] - expected).abs().max() <= 1e-12 * expected.abs().max()


def test_single_completions_as_units_are_refused_for_their_advantages_are_of_the_group() -> None:
    """Advantages are constants: no gradient shows the coupling, only that a completion's loss alone is another one."""
    case, batch = adapted("lora q,v"), completions([0, 0, 1, 1], [0, 1])
    apart = Completions(*(getattr(batch, n) for n in list(batch.__dataclass_fields__)[:-1]), torch.arange(4))
    with pytest.raises(RecordsInteractError):
        UnitGradientEngine(case.model, grpo, case.trainable)(apart, 4)


def test_dropout_is_no_interaction_and_modes_stay() -> None:
    case, batch = adapted("lora q,v"), completions([0, 0, 1, 1], [0, 1])
    case.model.train()
    for module in case.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    case.model.get_base_model().model.embed_tokens.eval()
    modes = [m.training for m in case.model.modules()]
    assert UnitGradientEngine(case.model, grpo, case.trainable)(batch, 2).flat().any()
    assert modes == [m.training for m in case.model.modules()]
    assert not all(modes)


def test_a_pair_contributes_at_most_c_where_its_clipped_rows_would_give_more() -> None:
    """Planted bug: rows clipped instead of pairs (rule 1), through LoRA in a transformer."""
    case, batch = adapted("lora q,v"), token_pairs([0])
    engine = UnitGradientEngine(case.model, case.objective, case.trainable)
    whole = engine(batch, 1)
    bound = 0.01 * float(whole.norms()[0])
    (total,) = whole.clip_and_sum(bound)
    assert np.linalg.norm(total.value) == pytest.approx(bound, rel=2**-13)
    assert np.linalg.norm(total.value) < bound

    @dataclass(frozen=True)
    class Rows:
        pairs: Any
        row_unit: Tensor
        model_row_unit: Tensor

        def select(self, records: Tensor) -> Any:
            raise NotImplementedError

    rows = UnitGradientEngine(case.model, lambda m, b: case.objective(m, b.pairs), case.trainable)
    split = rows(Rows(batch, torch.tensor([0]), torch.tensor([0, 1])), 2)  # each answer a unit of its own
    torch.testing.assert_close(split.flat().sum(0), whole.flat()[0], rtol=1e-12, atol=1e-14)
    (clipped_rows,) = split.clip_and_sum(bound)
    assert np.linalg.norm(clipped_rows.value) > 1.2 * bound


def test_autocast_is_close_to_the_loop_under_autocast() -> None:
    case, batch = adapted("lora and score head", torch.float32), token_pairs([0, 1, 0], "right", torch.float32)

    def narrow(model: Any, b: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            chosen, rejected = model(b.input_ids, b.attention_mask).float().chunk(2)
        return -functional.logsigmoid(chosen - rejected - b.reference)

    expected = by_loop(type(case)(case.model, case.trainable, narrow), batch, 2)
    found = UnitGradientEngine(case.model, narrow, case.trainable)(batch, 2).flat()
    assert found.dtype == torch.float32
    assert (found - expected).norm() <= 0.03 * expected.norm()
