"""Objectives on token rows: no record moves another, both layouts agree, and units' gradients are those of the loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import Tensor

from policy.head import head_logprobs
from policy.logprobs import answer_logps, token_logps
from policy.objectives import DpoObjective, GrpoObjective, KtoObjective
from privacy.gradients import UnitGradientEngine, select_trainable
from reward.backbone import load_backbone
from reward.batches import TokenBatch
from reward.errors import TokenBatchError, UnsupportedModelError
from reward.model import answer_scores
from reward.objectives import choice_logits
from reward.tokens import Layout, PaddingSide, TokenRecord, collate
from tests.policy.objective_cases import (
    CASES,
    LAYOUTS,
    N,
    choices,
    groups,
    model_for,
    pairs,
    records,
    trained,
    unpaired,
)

EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(scope="module")
def models(tiny_model: Path) -> dict[bool, Any]:
    return {score: model_for(tiny_model, score=score) for score in (False, True)}


def losses(models: dict[bool, Any], name: str, batch: TokenBatch) -> Tensor:
    with torch.no_grad():
        return CASES[name].objective(models[CASES[name].score], batch)


def whole_logp(model: Any, record: TokenRecord, answer: int) -> Tensor:
    """The definition: one whole sequence, the head on every position."""
    ids = torch.tensor([*record.prompt_ids, *record.answer_ids[answer]])
    logp = torch.log_softmax(model(input_ids=ids[None]).logits[0], -1)[torch.arange(len(ids) - 1), ids[1:]]
    return logp[len(record.prompt_ids) - 1 :].sum()


@pytest.mark.parametrize(("layout", "side"), LAYOUTS)
def test_log_probabilities_and_scores_are_those_of_whole_sequences(
    models: dict[bool, Any], layout: Layout, side: PaddingSide
) -> None:
    made = records(3)
    rows = collate(made, num_answers=3, pad_token_id=9, layout=layout, padding_side=side)
    expected = torch.stack([torch.stack([whole_logp(models[False], r, a) for a in range(3)]) for r in made])
    torch.testing.assert_close(answer_logps(models[False], rows), expected, **EXACT)
    token, mask = token_logps(models[False], rows)
    torch.testing.assert_close((token * mask).sum(-1), expected, **EXACT)
    assert torch.equal(mask.sum(-1), rows.answer_lengths)
    scores = answer_scores(models[True], rows)
    for i, record in enumerate(made):
        for a in range(3):
            ids = torch.tensor([[*record.prompt_ids, *record.answer_ids[a]]])
            torch.testing.assert_close(scores[i, a], models[True](input_ids=ids).logits[0, 0], **EXACT)


@pytest.mark.parametrize("name", CASES)
def test_layout_and_padding_change_no_loss(models: dict[bool, Any], name: str) -> None:
    first, *others = [losses(models, name, CASES[name].batch(*place)) for place in LAYOUTS]
    assert first.shape == (N,)
    assert first.isfinite().all()
    for other in others:
        torch.testing.assert_close(other, first, **EXACT)


@pytest.mark.parametrize("layout", ["shared", "separate"])
@pytest.mark.parametrize("name", CASES)
def test_no_record_moves_the_loss_of_another(models: dict[bool, Any], name: str, layout: Layout) -> None:
    batch = CASES[name].batch(layout, "right")
    whole = losses(models, name, batch)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(losses(models, name, batch.select(order)), whole[order], **EXACT)
    for record in range(N):
        alone = torch.arange(N) == record
        torch.testing.assert_close(losses(models, name, batch.select(alone))[0], whole[record], **EXACT)
    replaced = torch.tensor([0, 5, 5, 0, 4, 5])  # records 1 to 3 give way to copies of others
    torch.testing.assert_close(losses(models, name, batch.select(replaced)), whole[replaced], **EXACT)


@pytest.mark.parametrize(
    ("name", "layout", "side"),
    [
        *((name, *place) for name in CASES for place in (LAYOUTS[0], LAYOUTS[3])),
        *((name, *place) for name in ("sigmoid", "bradley_terry") for place in LAYOUTS[1:3]),
    ],
)
def test_gradients_of_units_are_those_of_the_loop(
    models: dict[bool, Any], name: str, layout: Layout, side: PaddingSide
) -> None:
    case = CASES[name]
    model = models[case.score]
    batch = replace(case.batch(layout, side), row_unit=torch.tensor([0, 1, 0, 2, 1, 0]))
    tensors = select_trainable(model, trained(model))
    found = {
        backend: UnitGradientEngine(model, case.objective, tensors, backend=backend)(batch, 3).flat()
        for backend in ("loop", "book_keeping", *(["opacus"] if name in ("sigmoid", "bradley_terry", "grpo") else []))
    }
    assert float(found["loop"].norm()) > 0
    for gradients in found.values():
        torch.testing.assert_close(gradients, found["loop"], **EXACT)


@pytest.mark.parametrize("name", CASES)
def test_an_empty_batch_has_no_losses(models: dict[bool, Any], name: str) -> None:
    nobody = CASES[name].batch("shared", "right").select(torch.zeros(N, dtype=torch.bool))
    assert losses(models, name, nobody).shape == (0,)


def test_a_pair_without_difference_has_no_dpo_gradient(models: dict[bool, Any]) -> None:
    same = replace(pairs(), ref_logps=torch.zeros(N, 2)).select(torch.tensor([3]))
    loss = DpoObjective()(models[False], same)
    gradients = torch.autograd.grad(loss.sum(), [p for p in models[False].parameters() if p.requires_grad])
    assert max(float(g.abs().max()) for g in gradients) < 1e-15


def test_nan_stays_in_its_own_record(models: dict[bool, Any]) -> None:
    reference = pairs().ref_logps
    assert reference is not None
    spoilt = reference.clone()
    spoilt[2] = float("nan")
    values = losses(models, "sigmoid", replace(pairs(), ref_logps=spoilt))
    assert values.isnan().tolist() == [i == 2 for i in range(N)]


@pytest.mark.parametrize("objective", [DpoObjective(), KtoObjective(), GrpoObjective("grpo", 8, beta=0.1)])
def test_a_reference_that_was_not_computed_is_named(models: dict[bool, Any], objective: Any) -> None:
    batch: Any = {DpoObjective: pairs, KtoObjective: unpaired, GrpoObjective: groups}[type(objective)]()
    missing = {"ref_token_logps": None} if isinstance(objective, GrpoObjective) else {"ref_logps": None}
    with pytest.raises(TokenBatchError, match="reference"):
        objective(models[False], replace(batch, **missing))


def test_the_frozen_head_has_the_values_and_gradients_of_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policy.head.CHUNK", 4)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(11, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    target, head = torch.randint(0, 30, (11,), generator=generator), torch.nn.Linear(6, 30).double()
    results = []
    for frozen in (True, False):
        head.requires_grad_(not frozen)
        logps = head_logprobs(head, hidden, target, temperature=0.7)
        (gradient,) = torch.autograd.grad((logps * torch.arange(11)).sum(), hidden)
        results.append((logps.detach(), gradient))
    torch.testing.assert_close(results[0], results[1], **EXACT)
    assert head_logprobs(head.requires_grad_(False), hidden[:0], target[:0]).shape == (0,)


@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_soft_prompts_stand_before_every_row(tiny_model: Path, layout: Layout) -> None:
    backbone = load_backbone(str(tiny_model), dtype="float64")
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = get_peft_model(backbone.model, config).double()
    made = records(2)
    rows = collate(made, num_answers=2, layout=layout, padding_side="left")
    for i, record in enumerate(made):
        for a in range(2):
            ids = torch.tensor([*record.prompt_ids, *record.answer_ids[a]])
            logits = model(input_ids=ids[None]).logits[0, 3:]
            logp = torch.log_softmax(logits, -1)[torch.arange(len(ids) - 1), ids[1:]]
            expected = logp[len(record.prompt_ids) - 1 :].sum()
            torch.testing.assert_close(answer_logps(model, rows)[i, a], expected, **EXACT)


@pytest.mark.parametrize("targets", [["q_proj"], ["lm_head"]])
def test_the_selector_reads_two_logits_of_the_whole_head(tiny_model: Path, targets: list[str]) -> None:
    backbone = load_backbone(str(tiny_model), dtype="float64")
    config = LoraConfig(r=3, target_modules=targets, init_lora_weights=False)  # type: ignore[arg-type]
    model = get_peft_model(backbone.model, config).double()
    batch = choices("shared", "left")
    with torch.no_grad():
        found = choice_logits(model, batch)
        for i, record in enumerate(records(1)):
            logits = model(input_ids=torch.tensor([record.prompt_ids])).logits[0, -1]
            torch.testing.assert_close(found[i], logits[list(batch.choice_ids)], **EXACT)


def test_what_cannot_be_computed_is_refused(tiny_model: Path) -> None:
    backbone = load_backbone(str(tiny_model), dtype="float32")
    rows = collate(records(2), num_answers=2)
    backbone.model.config.sliding_window = 4
    with pytest.raises(UnsupportedModelError, match="separate"):
        answer_logps(backbone.model, rows)
    backbone.model.config.sliding_window = None
    backbone.model.config.final_logit_softcapping = 30.0
    with pytest.raises(UnsupportedModelError, match="final_logit_softcapping"):
        answer_logps(backbone.model, rows)
    backbone.model.config.final_logit_softcapping = None
    prefixed = get_peft_model(backbone.model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(UnsupportedModelError, match="PREFIX"):
        answer_logps(prefixed, rows)
