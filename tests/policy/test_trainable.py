"""Variants of adapters as flat vectors: exact names, the base model at first, released adapters that load elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from policy.settings import LoraSettings
from policy.trainable import Kind, TrainablePart, attach
from reward.backbone import load_backbone
from reward.errors import AdapterError
from reward.model import load_score_backbone

LORA = LoraSettings(lora_r=3, lora_alpha=6, lora_target_modules=("q_proj", "v_proj"))
KINDS: tuple[Kind, ...] = ("lora", "lora_frozen_a", "lora_core", "prompt_tuning")
IDS = torch.tensor([[1, 40, 41, 42, 43], [1, 50, 51, 52, 53]])


def make(tiny_model: Path, kind: Kind, **changes: Any) -> TrainablePart:
    return attach(load_backbone(str(tiny_model), dtype="float32"), kind, LORA, num_virtual_tokens=4, **changes)


def moved(part: TrainablePart) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return part.start + 0.3 * torch.randn(len(part.start), generator=generator)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=IDS).logits
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_a_vector_goes_in_and_out_and_changes_the_model(tiny_model: Path, kind: Kind) -> None:
    part = make(tiny_model, kind)
    first = logits(part.model)
    part.load(moved(part))
    assert torch.equal(part.flat(), moved(part))
    assert float((logits(part.model) - first).abs().max()) > 1e-3
    with pytest.raises(AdapterError):
        part.load(torch.zeros(len(part.start) + 1))


@pytest.mark.parametrize(("kind", "size"), [("lora", 2 * (3 * 32 + 32 * 3) + 2 * (3 * 32 + 16 * 3)),
                                            ("lora_frozen_a", 2 * (32 * 3 + 16 * 3)), ("lora_core", 4 * 9),
                                            ("prompt_tuning", 4 * 32)])  # fmt: skip
def test_sizes_are_those_of_the_papers(tiny_model: Path, kind: Kind, size: int) -> None:
    assert len(make(tiny_model, kind).start) == size


@pytest.mark.parametrize("kind", ["lora", "lora_frozen_a", "lora_core"])
def test_it_starts_as_the_base_model_and_is_again_while_it_is_asked_for(tiny_model: Path, kind: Kind) -> None:
    base = logits(load_backbone(str(tiny_model), dtype="float32").model)
    part = make(tiny_model, kind)
    assert torch.equal(logits(part.model), base)
    part.load(moved(part))
    with part.as_base() as reference:
        assert torch.equal(logits(reference), base)
    assert torch.equal(part.flat(), moved(part))


def test_a_soft_prompts_base_is_the_model_without_it(tiny_model: Path) -> None:
    base, part = logits(load_backbone(str(tiny_model), dtype="float32").model), make(tiny_model, "prompt_tuning")
    with part.as_base() as reference:
        assert torch.equal(logits(reference), base)


def test_what_peft_thaws_is_frozen_again(tiny_model: Path) -> None:
    part = make(tiny_model, "lora_frozen_a")
    with part.model.disable_adapter():
        pass
    thawed = {name for name, p in part.model.named_parameters() if p.requires_grad}
    assert any("lora_A" in name for name in thawed)  # the defect is there
    part.thaw()
    assert {name for name, p in part.model.named_parameters() if p.requires_grad} == set(part.names)


@pytest.mark.parametrize("kind", KINDS)
def test_a_released_adapter_loads_by_peft_and_says_the_same(tmp_path: Path, tiny_model: Path, kind: Kind) -> None:
    from peft import PeftModel

    part = make(tiny_model, kind)
    part.load(moved(part))
    for name, content in part.files().items():
        (tmp_path / name).write_bytes(content)
    loaded = PeftModel.from_pretrained(load_backbone(str(tiny_model), dtype="float32").model, str(tmp_path)).eval()
    torch.testing.assert_close(logits(loaded), logits(part.model), atol=1e-5, rtol=1e-5)
    assert torch.equal(part.flat(), moved(part))  # folding left no trace


def test_means_of_cores_are_cores_of_means_and_so_it_is_with_frozen_a(tiny_model: Path) -> None:
    """The weight that two clients' mean stands for is the mean of their weights; with A and B it is not."""
    errors = {}
    for kind in ("lora", "lora_frozen_a", "lora_core"):
        part = make(tiny_model, kind)  # type: ignore[arg-type]
        layer = part.model.base_model.model.model.layers[0].self_attn.q_proj
        generator = torch.Generator().manual_seed(0)
        vectors = [torch.randn(len(part.start), generator=generator) for _ in range(2)]

        def weight(of: torch.Tensor, part: TrainablePart = part, layer: Any = layer) -> torch.Tensor:
            part.load(of)
            product: torch.Tensor = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            return product.detach().clone()

        mean = (weight(vectors[0]) + weight(vectors[1])) / 2
        errors[kind] = float((weight(sum(vectors) / 2) - mean).norm() / mean.norm())  # type: ignore[arg-type]
    assert errors["lora_frozen_a"] < 1e-6
    assert errors["lora_core"] < 1e-6
    assert errors["lora"] > 0.3


def test_a_reward_models_score_is_trained_and_released_with_it(tmp_path: Path, tiny_model: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    part = attach(load_score_backbone(str(tiny_model), dtype="float32"), "lora_core", LORA, score=True)
    assert sum("score" in name for name in part.names) == 1
    part.load(moved(part))
    for name, content in part.files().items():
        (tmp_path / name).write_bytes(content)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    torch.testing.assert_close(logits(loaded), logits(part.model), atol=1e-5, rtol=1e-5)
    with pytest.raises(AdapterError):
        attach(load_score_backbone(str(tiny_model)), "prompt_tuning", LORA, score=True)
