"""LoRA adapters: attached to a base model, as named arrays in and out, saved in PEFT's format."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from policy.settings import LoraSettings
from reward.backbone import Backbone
from reward.errors import AdapterError
from reward.model import attach_adapter

Arrays = dict[str, Tensor]
CONFIG = "adapter_config.json"
ADAPTER = "default"  # PEFT's name for the only adapter; TRL adds a frozen copy of it as "ref"


def attach_lora(backbone: Backbone, settings: LoraSettings, seed: int = 0) -> Any:
    """The base model with a fresh LoRA adapter (Hu et al. 2021): B = 0, so it starts as the base model.

    Returns:
        a ``peft.PeftModel`` around ``backbone.model``, which it changes in place; see ``reward.model.attach_adapter``.

    Raises:
        AdapterError: a name in ``lora_target_modules`` that the model does not have.
    """
    return attach_adapter(backbone, lora_config(settings), seed)


def lora_config(settings: LoraSettings) -> Any:
    """PEFT's ``LoraConfig`` for a causal language model."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=list(settings.lora_target_modules),
        task_type="CAUSAL_LM",
    )


def trainable_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The adapter's parameters by name, in order.

    By name and not by ``requires_grad``, which PEFT changes behind one's back (guarantees.md rule 14).
    """
    return [(name, p) for name, p in model.named_parameters() if "lora_" in name and f".{ADAPTER}." in name]


def adapter_arrays(model: nn.Module) -> Arrays:
    """A copy of the adapter: name -> fp32 tensor on the CPU."""
    return {name: p.detach().float().cpu().clone() for name, p in trainable_parameters(model)}


def load_adapter_arrays(model: nn.Module, arrays: Mapping[str, Tensor]) -> None:
    """Set the adapter.

    Raises:
        AdapterError: names or shapes differ from the model's.
    """
    parameters = dict(trainable_parameters(model))
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    if {name: tuple(a.shape) for name, a in arrays.items()} != shapes:
        raise AdapterError(
            "The adapter does not belong to this model.",
            "Its names or shapes are not those of this model's adapter.",
            "Use one recipe and one base model everywhere.",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(arrays[name])


def adapter_files(model: Any, base: str) -> dict[str, bytes]:
    """PEFT's two files by name; they load by ``PeftModel.from_pretrained``.

    Args:
        base: what the base model is called in ``adapter_config.json``: its name, never a folder of this machine's cache.
    """
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch, safe_serialization=True, selected_adapters=[ADAPTER])
        names = ("adapter_model.safetensors", CONFIG)  # PEFT's empty model card is left out
        files = {name: (Path(scratch) / name).read_bytes() for name in names}
    config = {**json.loads(files[CONFIG]), "base_model_name_or_path": base}
    return {**files, CONFIG: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()}
