"""A reward model that is trained as a whole: LoRA in the trunk of a language model and a linear score on its last token.

It is transformers' ``AutoModelForSequenceClassification`` with one label under a PEFT adapter that keeps the score in
``modules_to_save``: what TRL's ``RewardTrainer`` trains, and what PEFT and transformers load.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reward.backbone import Backbone, digest_of, fastest_dtype, quiet_transformers, resolve
from reward.errors import AdapterError, ModelNotFoundError
from reward.tokens import TokenRows
from reward.trunk import hidden_states

SCORE = "score"


def load_score_backbone(name: str, *, dtype: str = "auto", say: Callable[[str], None] = lambda _: None) -> Backbone:
    """A causal language model's trunk with a zero score beside it, frozen and in evaluation mode.

    Args:
        name: a folder, a hub name, or ``embedded/smollm2-135m-instruct``.
        dtype: ``float32``, ``bfloat16``, ``float64``, or ``auto``: bf16 where it is faster here, else fp32.

    Raises:
        ModelNotFoundError: nothing there, or no network.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source, device = resolve(name, say), "cuda" if torch.cuda.is_available() else "cpu"
    with quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
            model = AutoModelForSequenceClassification.from_pretrained(
                source,
                num_labels=1,
                dtype=fastest_dtype(device) if dtype == "auto" else getattr(torch, dtype),
                use_safetensors=True,
                trust_remote_code=False,
            )
        except (OSError, ValueError) as error:
            raise ModelNotFoundError(
                f"No reward model can be made of {name!r}.",
                f"{type(error).__name__}: {str(error).splitlines()[0][:200]}",
                "Give a folder with a transformers checkpoint, a hub name while online, or embedded/smollm2-135m-instruct.",
            ) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    nn.init.zeros_(model.score.weight)
    model.eval().requires_grad_(False).to(device)
    return Backbone(name, model, tokenizer, digest_of(source))


def attach_score_adapter(backbone: Backbone, config: Any, seed: int = 0) -> Any:
    """The trunk under a fresh PEFT adapter, the score trained with it.

    Args:
        config: a ``peft.LoraConfig`` (or another that takes ``modules_to_save``); the score is added to it.

    Returns:
        a ``peft.PeftModel`` around ``backbone.model``, which it changes in place.

    Raises:
        AdapterError: a target module that the model does not have.
    """
    config.task_type = "SEQ_CLS"
    config.modules_to_save = sorted({*(config.modules_to_save or []), SCORE})
    return attach_adapter(backbone, config, seed)


def attach_adapter(backbone: Backbone, config: Any, seed: int = 0) -> Any:
    """The base model under a fresh PEFT adapter, kept in fp32 whatever the base model's type: its updates are far smaller
    than a bf16 step.

    Args:
        config: of ``peft``.

    Raises:
        AdapterError: a target module that the model does not have.
    """
    from peft import get_peft_model

    torch.manual_seed(seed)
    try:
        with quiet_transformers():
            model: Any = get_peft_model(backbone.model, config)
    except ValueError as error:
        raise AdapterError(
            "The adapter does not fit the model.",
            f"{str(error).splitlines()[0][:200]}",
            "Name linear layers of the model in lora_target_modules.",
        ) from None
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()
    return model


def load_adapter(backbone: Backbone, folder: str | Path) -> Any:
    """The base model with a saved PEFT adapter, frozen and in evaluation mode.

    Raises:
        AdapterError: no adapter there, or one of another base model.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError, safe_open

    try:
        with quiet_transformers():
            model = PeftModel.from_pretrained(backbone.model, str(folder))
        with safe_open(Path(folder) / "adapter_model.safetensors", framework="pt") as file:
            foreign = get_peft_model_state_dict(model, save_embedding_layers=False).keys() ^ set(file.keys())
        if foreign:
            raise ValueError(f"it lacks or adds {sorted(foreign)[0]}")
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise AdapterError(
            "The adapter does not belong to this model.",
            f"Loading it failed: {type(error).__name__}: {str(error).splitlines()[0][:160]}.",
            "Give the folder of a release and the base model that its adapter_config.json names.",
        ) from None
    model.eval()
    return model


def answer_scores(model: Any, rows: TokenRows) -> Tensor:
    """Scores of all answers, [n, k], fp32 or wider: the score layer at each answer's last token.

    In the layout ``separate`` they are the logits of ``AutoModelForSequenceClassification`` where no answer ends in
    padding tokens.

    | case | result |
    |---|---|
    | no records | [0, k] |
    | an answer without tokens | scored at the prompt's last token |
    | NaN in a record | NaN in its scores only |
    """
    score = (model.get_base_model() if hasattr(model, "get_base_model") else model).score
    hidden = hidden_states(model, rows)
    if not len(hidden):
        return hidden.new_zeros(0, rows.num_answers)
    ends = hidden[torch.arange(len(hidden), device=hidden.device)[:, None], rows.answer_end]
    scores: Tensor = score(ends.to(score.weight.dtype)).squeeze(-1)
    return rows.by_record(scores)
