"""Sampling: so many completions of every prompt, in order, repeatable, at most so long."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from policy.rollout import prompt_tokens, sample_completions, sample_rollout
from reward.backbone import Backbone, load_backbone
from reward.pairs import Conversation

PROMPTS = ["Why?", "Say something.", "Go on, then."]
LONGEST = 16


@pytest.fixture(scope="module")
def backbone(tiny_model: Path) -> Backbone:
    return load_backbone(str(tiny_model), dtype="float32")


def sample(backbone: Backbone, seed: int = 0, vary_length: bool = False, generations: int = 4) -> list[Conversation]:
    return sample_completions(
        backbone,
        PROMPTS,
        num_generations=generations,
        max_completion_length=LONGEST,
        seed=seed,
        vary_length=vary_length,
    )


def test_every_prompt_has_its_completions_in_order(backbone: Backbone) -> None:
    conversations = sample(backbone)
    assert [c.prompt for c in conversations] == [(("user", p),) for p in PROMPTS for _ in range(4)]
    assert len({c.completion for c in conversations}) > 6  # a random model says something else each time
    assert not any("<s>" in c.completion or "assistant:" in c.completion for c in conversations)


def test_a_seed_repeats_and_another_does_not(backbone: Backbone) -> None:
    first = sample(backbone, seed=1, vary_length=True, generations=2)
    torch.rand(7)  # whatever ran in between
    assert sample(backbone, seed=1, vary_length=True, generations=2) == first
    assert sample(backbone, seed=2, vary_length=True, generations=2) != first


def test_prompts_computed_once_sample_what_whole_sequences_sample(backbone: Backbone) -> None:
    """Oracle: plain ``generate`` on every prompt as often as it has completions, padded, its cache growing by itself."""
    rows = [{"prompt": prompt} for prompt in PROMPTS]
    rollout = sample_rollout(
        backbone, backbone.model, rows, num_generations=3, max_completion_length=LONGEST, temperature=0.3, seed=5
    )
    prompts = [prompt_tokens(backbone, row["prompt"], LONGEST) for row in rows for _ in range(3)]
    assert [p.tolist() for p in rollout.prompt_ids] == prompts
    width, pad = max(map(len, prompts)), backbone.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    torch.manual_seed(5)
    whole = backbone.model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=LONGEST, do_sample=True, temperature=0.3, top_k=0, top_p=1.0
    )
    kept = rollout.completion_mask.bool()
    assert len({len(p) for p in prompts}) > 1
    assert torch.equal(whole[:, width:][kept], rollout.completion_ids[kept])


def test_no_completion_is_longer_than_asked_for(backbone: Backbone) -> None:
    assert all(len(c.completion) <= LONGEST for c in sample(backbone))  # a token of the tiny model is one byte


def test_varying_lengths_cuts_every_second_completion_only(backbone: Backbone) -> None:
    whole, cut = sample(backbone, generations=8), sample(backbone, generations=8, vary_length=True)
    assert [c.completion for c in cut[::2]] == [c.completion for c in whole[::2]]
    odd = list(zip(whole[1::2], cut[1::2], strict=True))
    shorter = [len(c.completion) < len(w.completion) for w, c in odd]
    assert sum(shorter) >= 4


def test_progress_counts_completions(backbone: Backbone) -> None:
    told: list[tuple[int, int]] = []
    sample_completions(
        backbone,
        PROMPTS,
        num_generations=2,
        max_completion_length=9,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(2, 6), (4, 6), (6, 6)]


def test_no_prompt_gives_no_completion(backbone: Backbone) -> None:
    assert sample_completions(backbone, [], num_generations=2, max_completion_length=9) == []


def test_a_higher_temperature_spreads_the_samples(backbone: Backbone) -> None:
    def distinct(temperature: float) -> int:
        made = sample_completions(
            backbone, PROMPTS[:1], num_generations=40, max_completion_length=1, temperature=temperature, seed=3
        )
        return len({c.completion for c in made})

    assert distinct(0.01) < distinct(1.0)
