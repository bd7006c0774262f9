"""A released LoRA reward model: loaded by ``reward.load``, the scores that clients trained; coded refusal of anything else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import reward
from policy.settings import LoraSettings
from policy.trainable import attach
from reward.errors import ModelNotFoundError, RewardModelError
from reward.lora_scorer import LoraRewardConfig, LoraRewardModel
from reward.model import answer_scores, load_score_backbone
from reward.scorer import CONFIG
from reward.tokens import collate, tokenize

PROMPTS = ["Why?", "Why?", "Say something.", "Say it again, and again, and again."]
COMPLETIONS = ["Because.", "", "a longer text, with !!!", "word " * 40]
ADAPTER = "adapter_model.safetensors"


def released(folder: Path, model: Path, kind: str = "lora_core") -> list[float]:
    """Writes a release with random parameters; returns the scores of the model that it was made of."""
    settings = LoraSettings(2, 4, 0.0, ("q_proj", "v_proj"))
    backbone = load_score_backbone(str(model), dtype="float32")
    part = attach(backbone, kind, settings, score=True)  # type: ignore[arg-type]
    part.load(torch.randn(part.start.shape, generator=torch.Generator().manual_seed(3)))
    for name, content in part.files().items():
        (folder / name).write_bytes(content)
    (folder / CONFIG).write_bytes(LoraRewardConfig(str(model), 48).to_bytes())
    scores = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        record = tokenize(backbone.tokenizer, (("user", prompt),), [completion], max_length=48)
        with torch.no_grad():
            scores.append(float(answer_scores(part.model, collate([record], num_answers=1))[0, 0]))
    return scores


@pytest.mark.parametrize("kind", ["lora", "lora_core"])
def test_what_is_loaded_scores_as_what_was_trained(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    expected = released(tmp_path, tiny_model, kind)
    model = reward.load(tmp_path)
    assert isinstance(model, LoraRewardModel)
    np.testing.assert_allclose(model.score(PROMPTS, COMPLETIONS), expected, rtol=1e-4, atol=1e-5)
    assert len(set(expected)) == len(expected)
    messages = [[{"role": "user", "content": p}] for p in PROMPTS]
    np.testing.assert_allclose(model(messages, COMPLETIONS, answer=["1"] * 4), expected, rtol=1e-4, atol=1e-5)
    assert model.score([], []) == []


def test_progress_ends_at_the_number_of_texts(tiny_model: Path, tmp_path: Path) -> None:
    from reward.pairs import as_conversation

    released(tmp_path, tiny_model)
    told: list[tuple[int, int]] = []
    texts = [as_conversation("Say it.", f"{i % 65} {'word ' * (i % 65)}") for i in range(130)]
    scores = reward.load(tmp_path).score_conversations(texts, lambda done, total: told.append((done, total)))
    assert told[-1] == (told[-1][1],) * 2
    assert len(told) > 1
    assert scores[:65].tolist() == scores[65:].tolist()
    assert told[-1][1] == 65
    same = reward.load(tmp_path).score(["Say it."] * 2, ["word " * 40, "word " * 41])  # cut off at the same tokens
    assert same[0] == same[1]


def test_the_release_names_its_base_model_as_the_recipe_does(tiny_model: Path, tmp_path: Path) -> None:
    """Not by the folder of this machine that an embedded model is kept in."""
    from dataclasses import replace

    backbone = replace(load_score_backbone(str(tiny_model), dtype="float32"), name="embedded/some-model")
    part = attach(backbone, "lora", LoraSettings(2, 4, 0.0, ("q_proj",)), score=True)
    config = json.loads(part.files()["adapter_config.json"])
    assert config["base_model_name_or_path"] == "embedded/some-model"
    assert str(tiny_model) not in json.dumps(config)


def _other_format(folder: Path) -> None:
    (folder / CONFIG).write_text(
        json.dumps({**json.loads((folder / CONFIG).read_text()), "format": "fedpref-reward-9"})
    )


def _other_key(folder: Path) -> None:
    (folder / CONFIG).write_text(json.dumps({**json.loads((folder / CONFIG).read_text()), "layer": 3}))


def _no_score(folder: Path) -> None:
    import safetensors.torch

    tensors = safetensors.torch.load_file(folder / ADAPTER)
    safetensors.torch.save_file({k: v for k, v in tensors.items() if "score" not in k}, folder / ADAPTER)


def _wider(folder: Path) -> None:
    import safetensors.torch

    tensors = safetensors.torch.load_file(folder / ADAPTER)
    safetensors.torch.save_file({k: torch.cat([v, v]) for k, v in tensors.items()}, folder / ADAPTER)


BROKEN = {
    "no config": lambda f: (f / CONFIG).unlink(),
    "no JSON": lambda f: (f / CONFIG).write_text("{"),
    "a list": lambda f: (f / CONFIG).write_text("[]"),
    "another format": _other_format,
    "another key": _other_key,
    "no weights": lambda f: (f / ADAPTER).unlink(),
    "cut weights": lambda f: (f / ADAPTER).write_bytes((f / ADAPTER).read_bytes()[:99]),
    "no score": _no_score,
    "of another model": _wider,
}


@pytest.mark.parametrize("how", BROKEN)
def test_anything_else_is_refused(tiny_model: Path, tmp_path: Path, how: str) -> None:
    released(tmp_path, tiny_model)
    BROKEN[how](tmp_path)
    with pytest.raises(RewardModelError) as caught:
        reward.load(tmp_path)
    assert caught.value.code == "FP303"
    assert "release/reward" in caught.value.fix


def test_a_base_model_that_is_gone_is_named(tiny_model: Path, tmp_path: Path) -> None:
    released(tmp_path, tiny_model)
    (tmp_path / CONFIG).write_bytes(LoraRewardConfig(str(tmp_path / "gone"), 48).to_bytes())
    with pytest.raises(ModelNotFoundError):
        reward.load(tmp_path)
