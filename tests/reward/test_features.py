"""Frozen features: the mean hidden state of one layer over all tokens, whatever else is asked for beside a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from reward.features import FeatureConfig, FeatureExtractor
from reward.pairs import Conversation

MAX_LENGTH = 60
Features = npt.NDArray[np.float32]


def text(prompt: str, completion: str) -> Conversation:
    return Conversation((("user", prompt),), completion)


MIXED = [
    text("Why?", "Because."),
    text("Say something.", "a much longer completion, with punctuation!"),
    text("Why?", ""),
    text("Say something.", "x"),
    text("Why?", "ünïcödé 🙂"),
    text("Say something.", "a much longer completion, with punctuation!"),
    text("Why?", "far too long " * 20),
    Conversation((("system", "Be brief."), ("user", "Why?"), ("assistant", "No."), ("user", "But why?")), "So."),
    text("a prompt that is itself longer than there is room for, " * 4, "never seen"),
    text("", "an empty prompt"),
]


@pytest.fixture(scope="module")
def extractor(tiny_model: Path) -> FeatureExtractor:
    return FeatureExtractor(FeatureConfig(str(tiny_model), 1, MAX_LENGTH, dtype="float32"))


@pytest.fixture(scope="module")
def whole_model(tiny_model: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(tiny_model).eval(), AutoTokenizer.from_pretrained(tiny_model)


def oracle(whole_model: tuple[Any, Any], conversations: Sequence[Conversation], layer: int = 1) -> Features:
    """A plain forward pass of the whole model over one padded batch; the mean of hidden_states[layer] over real tokens."""
    model, tokenizer = whole_model
    ids = []
    for c in conversations:
        messages = [{"role": role, "content": content} for role, content in c.prompt]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        both = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in (prompt, c.completion)]
        ids.append((both[0] + both[1])[:MAX_LENGTH])
    longest = max(map(len, ids))
    padded = torch.tensor([i + [0] * (longest - len(i)) for i in ids])
    mask = torch.tensor([[1] * len(i) + [0] * (longest - len(i)) for i in ids])
    with torch.no_grad():
        hidden = model(input_ids=padded, attention_mask=mask, output_hidden_states=True).hidden_states[layer]
    pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    features: Features = pooled.numpy()
    return features


def test_features_are_those_of_a_plain_padded_forward_pass(
    extractor: FeatureExtractor, whole_model: tuple[Any, Any]
) -> None:
    features = extractor(MIXED)
    assert features.dtype == np.float32
    assert features.shape == (len(MIXED), 32)
    np.testing.assert_allclose(features, oracle(whole_model, MIXED), atol=1e-4)
    assert np.abs(features[0] - features[1]).max() > 0.01  # the tolerance can tell texts apart


def test_the_last_layer_is_taken_before_the_final_norm(tiny_model: Path, whole_model: tuple[Any, Any]) -> None:
    """hidden_states[-1] of transformers has passed the norm; ours, like every inner layer, has not."""
    last = FeatureExtractor(FeatureConfig(str(tiny_model), 2, MAX_LENGTH, dtype="float32"))(MIXED[:3])
    normed = oracle(whole_model, MIXED[:3], layer=2)
    assert np.abs(last - normed).max() > 0.1
    model, captured = whole_model[0], list[torch.Tensor]()
    hook = model.model.layers[1].register_forward_hook(lambda _, __, out: captured.append(out))
    oracle(whole_model, MIXED[:1])
    hook.remove()
    out = captured[0][0] if isinstance(captured[0], tuple) else captured[0]
    np.testing.assert_allclose(last[0], out[0].mean(0).numpy(), atol=1e-4)


def test_a_text_has_the_same_features_whoever_else_is_there(extractor: FeatureExtractor) -> None:
    """Bit for bit: otherwise one person's text would move another's features, which no clipping bounds (rule 17)."""
    together = extractor(MIXED)
    for i, conversation in enumerate(MIXED):
        assert np.array_equal(extractor([conversation])[0], together[i])
    order = np.random.default_rng(0).permutation(len(MIXED))
    assert np.array_equal(extractor([MIXED[i] for i in order]), together[order])
    assert np.array_equal(together[1], together[5])


def test_an_empty_completion_is_the_prompts_mean(extractor: FeatureExtractor, whole_model: tuple[Any, Any]) -> None:
    only, among = extractor([MIXED[2]]), extractor([MIXED[2], MIXED[0], MIXED[4]])[:1]
    np.testing.assert_allclose(only, oracle(whole_model, [MIXED[2]]), atol=1e-4)
    assert np.array_equal(only, among)


def test_what_lies_beyond_max_length_does_not_matter(extractor: FeatureExtractor) -> None:
    long = "word " * 40
    same = extractor([text("Why?", long), text("Why?", long + "THE END"), text("Why?", "other " * 40)])
    assert np.array_equal(same[0], same[1])
    assert not np.array_equal(same[0], same[2])
    prompt = "p" * 100
    prompts = extractor([text(prompt, "a"), text(prompt, "b"), text(prompt + "tail", "a")])
    assert np.array_equal(prompts[0], prompts[1])
    assert np.array_equal(prompts[0], prompts[2])


def test_no_conversation_gives_no_rows(extractor: FeatureExtractor) -> None:
    assert extractor([]).shape == (0, 32)


def test_progress_counts_every_text_once(extractor: FeatureExtractor) -> None:
    told: list[tuple[int, int]] = []
    extractor(MIXED, lambda done, total: told.append((done, total)))
    assert told[-1] == (len(MIXED), len(MIXED))
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_a_model_that_gives_nan_passes_it_on(tiny_model: Path) -> None:
    """Clipping drops that unit; a silent zero would be a vote."""
    broken = FeatureExtractor(FeatureConfig(str(tiny_model), 1, MAX_LENGTH, dtype="float32"))
    with torch.no_grad():
        broken.backbone.model.get_input_embeddings().weight.fill_(float("nan"))
    assert np.isnan(broken(MIXED[:2])).all()


def test_a_tokenizer_without_a_chat_template_still_renders(tiny_model: Path) -> None:
    plain = FeatureExtractor(FeatureConfig(str(tiny_model), 1, MAX_LENGTH, dtype="float32"))
    with_template = plain(MIXED[:1])
    plain.backbone.tokenizer.chat_template = None
    features = plain([MIXED[0], text("Why?", "Other."), text("", "")])
    assert np.isfinite(features).all()
    assert not np.array_equal(features[0], with_template[0])
    assert not np.array_equal(features[0], features[1])


def test_only_the_blocks_that_are_needed_are_loaded(extractor: FeatureExtractor) -> None:
    assert len(extractor.backbone.model.model.layers) == 1
    assert not any(p.requires_grad for p in extractor.backbone.model.parameters())
    assert not extractor.backbone.model.training
