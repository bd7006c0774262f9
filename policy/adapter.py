"""LoRA adapters: attached to a base model, as named arrays in and out, saved in PEFT's format."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from policy.settings import LoraSettings
from reward.backbone import Backbone, quiet_transformers
from reward.errors import AdapterError

Arrays = dict[str, Tensor]
ADAPTER = "default"  # PEFT's name for the only adapter; TRL adds a frozen copy of it as "ref"


def attach_lora(backbone: Backbone, settings: LoraSettings, seed: int = 0) -> Any:
    """The base model with a fresh LoRA adapter (Hu et al. 2021): B = 0, so it starts as the base model.

    The adapter is kept in fp32 whatever the base model's type: its updates are far smaller than a bf16 step.

    Returns:
        a ``peft.PeftModel`` around ``backbone.model``, which it changes in place.

    Raises:
        AdapterError: a name in ``lora_target_modules`` that the model does not have.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=list(settings.lora_target_modules),
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    try:
        with quiet_transformers():
            model = get_peft_model(backbone.model, config)
    except ValueError as error:
        raise AdapterError(
            "The adapter does not fit the model.",
            f"{str(error).splitlines()[0][:200]}",
            "Name linear layers of the model in policy.lora_target_modules.",
        ) from None
    for _, parameter in trainable_parameters(model):
        parameter.data = parameter.data.float()
    return model


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
        raise _foreign("its names or shapes are not those of this model's adapter")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(arrays[name])


def adapter_files(model: Any) -> dict[str, bytes]:
    """PEFT's two files by name; they load by ``PeftModel.from_pretrained``."""
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch, safe_serialization=True, selected_adapters=[ADAPTER])
        names = ("adapter_model.safetensors", "adapter_config.json")  # PEFT's empty model card is left out
        return {name: (Path(scratch) / name).read_bytes() for name in names}


def load_policy(backbone: Backbone, folder: str | Path) -> Any:
    """The base model with a saved adapter, frozen and in evaluation mode.

    Raises:
        AdapterError: no adapter there, or one of another base model.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        with quiet_transformers():
            model = PeftModel.from_pretrained(backbone.model, str(folder))
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise _foreign(f"{type(error).__name__}: {str(error).splitlines()[0][:160]}") from None
    model.eval()
    return model


def _foreign(why: str) -> AdapterError:
    return AdapterError(
        "The adapter does not belong to this model.",
        f"Loading it failed: {why}.",
        "Give the folder `release/policy` and the base model that its adapter_config.json names.",
    )
