"""GRPO's loss and its parts against the definition, full sequences, and TRL's trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from policy.adapter import attach_lora, trainable_parameters
from policy.logprobs import group_logprobs
from policy.losses import group_advantages, grpo_loss
from policy.settings import LoraSettings
from reward.backbone import load_backbone

PROMPT = torch.tensor([5, 9, 30, 31, 7])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
IDS = torch.tensor([[40, 41, 42, 2], [50, 2, 0, 0], [2, 0, 0, 0]])


@pytest.fixture
def model(tiny_model: Path) -> Any:
    backbone = load_backbone(str(tiny_model), dtype="float32")
    model = attach_lora(backbone, LoraSettings(lora_r=4, lora_alpha=8), seed=1)
    with torch.no_grad():
        for _, parameter in trainable_parameters(model):
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def full_logprobs(model: Any, temperature: float = 1.0) -> Tensor:
    """The slow way: every sequence whole, one at a time, the head on every position."""
    rows = []
    for ids, mask in zip(IDS, MASK, strict=True):
        n = int(mask.sum())
        sequence = torch.cat([PROMPT, ids[:n]])
        logits = model(input_ids=sequence[None]).logits[0].float() / temperature
        picked = torch.log_softmax(logits, -1)[torch.arange(len(sequence) - 1), sequence[1:]][len(PROMPT) - 1 :]
        rows.append(torch.cat([picked, torch.zeros(len(ids) - n)]))
    return torch.stack(rows)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_shared_prompt_gives_the_logprobs_and_gradients_of_full_sequences(model: Any, temperature: float) -> None:
    weights = torch.randn(MASK.shape, generator=torch.Generator().manual_seed(0)) * MASK
    results = []
    for logprobs in (group_logprobs(model, PROMPT, IDS, MASK, temperature), full_logprobs(model, temperature)):
        model.zero_grad()
        (logprobs * weights).sum().backward()
        results.append((logprobs.detach() * MASK, [p.grad.clone() for _, p in trainable_parameters(model)]))
    (ours, gradients), (oracle, expected) = results
    torch.testing.assert_close(ours, oracle, rtol=1e-5, atol=1e-6)
    for got, want in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_one_token_completions_need_no_second_pass(model: Any) -> None:
    ones = group_logprobs(model, PROMPT, IDS[:, :1], MASK[:, :1])
    torch.testing.assert_close(ones[:, 0], full_logprobs(model)[:, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", ["group", "none"])
def test_advantages_are_centred_within_the_group(scale: Literal["group", "none"]) -> None:
    rewards = torch.tensor([1.0, 2.0, 4.0])
    centred = torch.tensor([-4 / 3, -1 / 3, 5 / 3])
    expected = centred if scale == "none" else centred / (rewards.std() + 1e-4)
    torch.testing.assert_close(group_advantages(rewards, scale), expected)
    assert not group_advantages(torch.full((5,), 3.0), scale).any()
    assert not group_advantages(torch.tensor([3.0]), scale).any()


def trl_loss(
    model: Any, loss_type: str, beta: float, advantages: Tensor, reference: Tensor, old: Tensor | None = None
) -> Tensor:
    """``GRPOTrainer._compute_loss`` on the same completions, without the trainer around it."""
    from datasets import Dataset
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    arguments = GRPOConfig(
        output_dir="unused",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=3,
        num_generations=3,
        max_completion_length=4,
        loss_type=loss_type,
        beta=beta,
        report_to=[],
        save_strategy="no",
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=[lambda completions, **_: [0.0] * len(completions)],
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": "a"}] * 3),
        processing_class=load_tokenizer(model),
    )
    inputs = {
        "prompt_ids": PROMPT.repeat(3, 1),
        "prompt_mask": torch.ones(3, len(PROMPT), dtype=torch.long),
        "completion_ids": IDS,
        "completion_mask": MASK,
        "advantages": advantages,
        "num_items_in_batch": MASK.sum(),
    }
    if beta:
        inputs["ref_per_token_logps"] = reference
    if old is not None:
        inputs["old_per_token_logps"] = old
    trainer.current_gradient_accumulation_steps = 1
    loss: Tensor = trainer._compute_loss(trainer.model, inputs)
    return loss


def load_tokenizer(model: Any) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.get_base_model().config._name_or_path)
    tokenizer.padding_side = "left"
    return tokenizer


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of transformers and TRL, about each other
@pytest.mark.parametrize("loss_type", ["dr_grpo", "grpo"])
@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_the_loss_and_gradient_are_those_of_trl(model: Any, loss_type: Literal["dr_grpo", "grpo"], beta: float) -> None:
    advantages = torch.tensor([1.0, -0.4, -0.6])
    with torch.no_grad(), model.disable_adapter():
        reference = group_logprobs(model, PROMPT, IDS, MASK)
    logprobs = group_logprobs(model, PROMPT, IDS, MASK)
    ours = grpo_loss(
        logprobs,
        MASK,
        advantages,
        loss_type=loss_type,
        max_completion_length=4,
        ref_logprobs=reference if beta else None,
        beta=beta,
    ).mean()
    model.zero_grad()
    ours.backward()
    gradients = [p.grad.clone() for _, p in trainable_parameters(model)]
    model.zero_grad()
    theirs = trl_loss(model, loss_type, beta, advantages, reference)
    theirs.backward()
    torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-5, atol=1e-6)
    for (_, parameter), got in zip(trainable_parameters(model), gradients, strict=True):
        error = (got - parameter.grad).norm() / parameter.grad.norm()
        assert error < (2e-5 if beta else 1e-5)  # 1 - exp(ref - log p) cancels where the policy is near the base model


def test_a_masked_token_does_not_count() -> None:
    logprobs = torch.full((2, 3), -1.0, requires_grad=True)
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    loss = grpo_loss(logprobs, mask, torch.ones(2), loss_type="grpo", max_completion_length=3)
    loss.sum().backward()
    assert loss.detach().tolist() == [-1.0, 0.0]
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[-0.5, -0.5, 0.0], [0.0, 0.0, 0.0]]


def test_the_kls_gradient_is_on_average_that_of_the_kl() -> None:
    """Over all tokens of a small vocabulary, each as often as the policy says it: no sampling error."""
    generator = torch.Generator().manual_seed(0)
    logits, other = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    logprobs, reference = torch.log_softmax(logits.requires_grad_(), 0), torch.log_softmax(other, 0)
    losses = grpo_loss(
        logprobs[:, None],
        torch.ones(7, 1),
        torch.zeros(7, dtype=torch.float64),
        loss_type="grpo",
        max_completion_length=1,
        ref_logprobs=reference[:, None],
        beta=0.5,
    )
    often = logprobs.detach().exp()
    (found,) = torch.autograd.grad((often * losses).sum(), logits, retain_graph=True)
    kl = 0.5 * (logprobs.exp() * (logprobs - reference)).sum()
    (expected,) = torch.autograd.grad(kl, logits)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close((often * losses).sum(), kl, rtol=1e-12, atol=1e-12)
