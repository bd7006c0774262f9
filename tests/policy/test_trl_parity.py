"""Objectives against the losses of TRL's trainers on the same token batches, fp32, to 1e-5."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from policy.batches import CompletionBatch, GroupBatch
from policy.dpo_losses import LOSSES
from policy.logprobs import answer_logps, token_logps
from policy.objectives import DpoObjective, GrpoObjective, KtoObjective, SftObjective
from policy.registry import DpoLossType
from reward.batches import PairBatch
from reward.objectives import BradleyTerryObjective
from reward.pairs import as_conversation
from reward.tokens import TokenRecord, collate, tokenize
from tests.policy.objective_cases import completions, model_for, pairs, records, unpaired
from tests.policy.test_losses import IDS, MASK, PROMPT, trl_loss

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
]  # warnings of transformers and TRL about each other
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
FULL = [i for i, r in enumerate(records(2)) if all(r.answer_ids)]  # TRL's trainers drop records without answer tokens


def arguments(kind: Any, **settings: Any) -> Any:
    return kind(
        output_dir="unused",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        per_device_train_batch_size=len(FULL),
        **settings,
    )


def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def inputs_of(batch: Any) -> dict[str, Tensor]:
    rows = batch.rows
    tokens = {"input_ids": rows.input_ids, "attention_mask": rows.attention_mask}
    return {**tokens, "completion_mask": rows.completion_mask}


@pytest.fixture(scope="module")
def dpo(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    return DPOTrainer(
        model=model_for(tiny_model, dtype=torch.float32),
        args=arguments(DPOConfig),
        train_dataset=Dataset.from_list([row] * 3),
        processing_class=tokenizer(tiny_model),
    )


@pytest.mark.parametrize("beta", [0.1, 0.6])
@pytest.mark.parametrize("loss_type", LOSSES)
def test_dpo_losses_and_gradients_are_those_of_dpo_trainer(dpo: Any, loss_type: DpoLossType, beta: float) -> None:
    batch = replace(pairs("separate").select(torch.tensor(FULL)), weight=None)
    reference = batch.ref_logps
    assert reference is not None
    batch = replace(batch, ref_logps=reference.float())
    given = {"ref_chosen_logps": reference[:, 0].float(), "ref_rejected_logps": reference[:, 1].float()}
    dpo.precompute_ref_logps, dpo.loss_types, dpo.loss_weights = True, [loss_type], [1.0]
    dpo.beta, dpo.label_smoothing = beta, 0.15
    results = []
    for loss in (
        DpoObjective(loss_type, beta, 0.15)(dpo.model, batch).mean(),
        dpo.compute_loss(dpo.model, {**inputs_of(batch), **given}),
    ):
        dpo.model.zero_grad()
        loss.backward()
        results.append((loss.detach(), [p.grad.clone() for p in dpo.model.parameters() if p.grad is not None]))
    torch.testing.assert_close(results[0][0], results[1][0], **CLOSE)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-5)


def test_kto_is_that_of_kto_trainer_given_its_reference_point(tiny_model: Path) -> None:
    from datasets import Dataset
    from trl.trainer.kto_config import KTOConfig
    from trl.trainer.kto_trainer import KTOTrainer

    row = {"prompt": "a", "completion": "b", "label": True}
    trainer = KTOTrainer(
        model=model_for(tiny_model, dtype=torch.float32),
        args=arguments(KTOConfig, desirable_weight=1.5),
        train_dataset=Dataset.from_list([row, {**row, "label": False}] * 3),
        processing_class=tokenizer(tiny_model),
    )
    batch = replace(unpaired(), weight=None, ref_logps=torch.zeros(6))
    with torch.no_grad():
        present = answer_logps(trainer.model, batch.rows)[:, 0]
    batch = replace(batch, ref_logps=present + torch.linspace(-2, 2, 6))
    # TRL estimates the reference point from other completions of the batch: here from itself, with its own reference.
    others = {f"KL_{name}": value for name, value in inputs_of(batch).items()}
    trainer.precompute_ref_logps = True
    inputs = {
        **inputs_of(batch),
        **others,
        "label": batch.label,
        "ref_logps": batch.ref_logps,
        "ref_KL_logps": present - 0.9,
    }
    theirs = trainer.compute_loss(trainer.model, inputs)
    ours = KtoObjective(desirable_weight=1.5)(trainer.model, replace(batch, reference_point=0.9)).mean()
    torch.testing.assert_close(ours, theirs, **CLOSE)
    trainer.loss_type, trainer.calculate_KL = "apo_zero_unpaired", False  # which is ours with a reference point of 0
    theirs = trainer.compute_loss(trainer.model, inputs)
    ours = KtoObjective(desirable_weight=1.5)(trainer.model, replace(batch, reference_point=0.0)).mean()
    torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("loss_type", ["dr_grpo", "grpo"])
@pytest.mark.parametrize("epsilon_off", [0.0, 0.6])
def test_a_group_is_that_of_grpo_trainer(
    tiny_model: Path, loss_type: Literal["dr_grpo", "grpo"], epsilon_off: float
) -> None:
    """With ``epsilon_off`` the samples are an older policy's, by up to that many nats: some ratios are clipped."""
    model = model_for(tiny_model, dtype=torch.float32)
    answers = tuple(tuple(ids[mask.bool()].tolist()) for ids, mask in zip(IDS, MASK, strict=True))
    rows = collate([TokenRecord(tuple(PROMPT.tolist()), answers)], num_answers=len(IDS))
    advantages = torch.tensor([1.0, -0.4, -0.6])
    with torch.no_grad():
        present = token_logps(model, rows)[0]
    shift = torch.linspace(-1, 1, present.numel()).view(present.shape)
    old, reference = present + epsilon_off * shift, present - 0.3 * shift
    batch = GroupBatch(
        rows=rows,
        row_unit=torch.zeros(1, dtype=torch.int64),
        advantages=advantages[None],
        ref_token_logps=reference,
        old_token_logps=old if epsilon_off else None,
    )
    ours = GrpoObjective(loss_type, 4, beta=0.2)(model, batch)
    mine = torch.autograd.grad(ours.sum(), [p for p in model.parameters() if p.requires_grad])
    theirs = trl_loss(model, loss_type, 0.2, advantages, reference[0], old[0] if epsilon_off else None)
    expected = torch.autograd.grad(theirs, [p for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(ours[0], theirs, **CLOSE)
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def test_bradley_terry_is_that_of_reward_trainer(tiny_model: Path) -> None:
    from datasets import Dataset
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    trainer = RewardTrainer(
        model=model_for(tiny_model, score=True, dtype=torch.float32),
        args=arguments(RewardConfig, center_rewards_coefficient=0.01),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * 3),
        processing_class=tokenizer(tiny_model),
    )
    given = pairs("separate").select(torch.tensor(FULL))
    batch = PairBatch(
        rows=given.rows, row_unit=given.row_unit, margin=None if given.margin is None else given.margin.float()
    )
    inputs = {"input_ids": batch.rows.input_ids, "attention_mask": batch.rows.attention_mask, "margin": batch.margin}
    theirs = trainer.compute_loss(trainer.model, inputs)
    for layout in (batch, replace(batch, rows=pairs("shared").select(torch.tensor(FULL)).rows)):
        ours = BradleyTerryObjective(center_rewards_coefficient=0.01)(trainer.model, layout).mean()
        torch.testing.assert_close(ours, theirs, **CLOSE)


def test_sft_is_that_of_sft_trainer_up_to_the_divisor(tiny_model: Path) -> None:
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    trainer = SFTTrainer(
        model=model_for(tiny_model, dtype=torch.float32),
        args=arguments(SFTConfig),
        train_dataset=Dataset.from_list([{"prompt": "a", "completion": "b"}] * 3),
        processing_class=tokenizer(tiny_model),
    )

    def theirs(batch: CompletionBatch) -> Tensor:
        rows = batch.rows
        labels = rows.input_ids.masked_fill(rows.completion_mask == 0, -100)
        inputs = {"input_ids": rows.input_ids, "attention_mask": rows.attention_mask, "labels": labels}
        loss: Tensor = trainer.compute_loss(trainer.model, inputs)
        return loss

    batch = replace(completions(), weight=None)
    tokens = batch.rows.answer_lengths.sum()
    torch.testing.assert_close(SftObjective("sum")(trainer.model, batch).sum() / tokens, theirs(batch), **CLOSE)
    one = batch.select(torch.tensor([4]))
    torch.testing.assert_close(SftObjective()(trainer.model, one)[0], theirs(one), **CLOSE)


@pytest.mark.parametrize("max_length", [None, 40])
def test_tokens_are_those_of_dpo_trainer(dpo: Any, tiny_model: Path, max_length: int | None) -> None:
    from datasets import Dataset
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    def said(role: str, content: str) -> list[dict[str, str]]:
        return [{"role": role, "content": content}]

    rows = [
        {"prompt": said("user", p), "chosen": said("assistant", c), "rejected": said("assistant", r)}
        for p, c, r in (("Hello?", "Hi, how are you?", "No"), ("What is 2 + 2?", "4", "4 4 4 4 4 4 4 4 4 4 4 4"))
    ]
    prepared = dpo._prepare_dataset(Dataset.from_list(rows), dpo.processing_class, dpo.args, "train")
    theirs = DataCollatorForPreference(pad_token_id=0, max_length=max_length)(list(prepared))
    ours: list[TokenRecord] = []
    for row in rows:
        first, second = (as_conversation(row["prompt"], row[side]) for side in ("chosen", "rejected"))
        texts = [first.completion, second.completion]
        ours.append(tokenize(dpo.processing_class, first.prompt, texts, max_length=max_length))
    batch = collate(ours, num_answers=2, layout="separate")
    assert torch.equal(batch.input_ids, theirs["input_ids"])
    assert torch.equal(batch.attention_mask, theirs["attention_mask"])
    assert torch.equal(batch.completion_mask, theirs["completion_mask"])
