"""The transformer below the head: token rows -> hidden states, in either layout, with any PEFT adapter or soft prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from reward.errors import UnsupportedModelError
from reward.tokens import PADDING, PROMPT, TokenRows

MASKS = ("sdpa", "eager")  # attention implementations that take a mask of our own
SCALED = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")
"""What transformers' configurations call that which is done to logits behind the head (Gemma 2, Granite, Cohere, Falcon H1)."""


def hidden_states(model: Any, rows: TokenRows) -> Tensor:
    """Last hidden states of every token, [rows, T, hidden].

    Args:
        model: a transformers model (causal or for classification) or a PEFT model around one. Learned soft prompts
            (``PromptTuningConfig``, ``PromptEncoderConfig``) are put before every row.

    | case | result |
    |---|---|
    | no rows | [0, T, hidden]; the model does not run |
    | padding | finite values that nothing depends on |

    Raises:
        UnsupportedModelError: prefix tuning, or a shared layout that the model's attention cannot be masked for.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    trunk = base.base_model
    if not rows.input_ids.numel():
        return torch.zeros(*rows.input_ids.shape, base.config.hidden_size, dtype=base.dtype, device=base.device)
    if rows.layout == "shared" and not shares_prompts(base.config):
        raise _unsupported("its attention takes no mask of ours", 'layout="separate"')
    prompts = _soft_prompts(model, len(rows.input_ids))
    places, width = rows.position_ids, 0
    answer = rows.answer
    given: dict[str, Tensor] = {"input_ids": rows.input_ids}
    if prompts is not None:
        width = prompts.shape[1]
        words = base.get_input_embeddings()(rows.input_ids)
        given = {"inputs_embeds": torch.cat([prompts.to(words.dtype), words], dim=1)}
        answer = torch.nn.functional.pad(answer, (width, 0), value=PROMPT)
        places = torch.nn.functional.pad(places + width, (width, 0))
        places[:, :width] = torch.arange(width, device=places.device)
    mask = _block_mask(answer, base.dtype) if rows.layout == "shared" else (answer != PADDING).long()
    hidden: Tensor = trunk(**given, attention_mask=mask, position_ids=places, use_cache=False).last_hidden_state
    return hidden[:, width:]


def output_head(model: Any) -> nn.Module:
    """The language-model head: hidden states [..., hidden] -> logits [..., vocabulary], with nothing behind it.

    Raises:
        UnsupportedModelError: a model that scales or caps its logits, whose log-probabilities would be others.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config.get_text_config()
    for name in SCALED:
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise _unsupported(f"it changes its logits behind the head ({name})", "a model without that")
    head: nn.Module = base.get_output_embeddings()
    return head


def shares_prompts(config: Any) -> bool:
    """Can the model run the shared layout: full attention in every layer, by an implementation that takes our mask?"""
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    return config._attn_implementation in MASKS and kinds == {"full_attention"} and window is None


def _block_mask(answer: Tensor, dtype: torch.dtype) -> Tensor:
    """What may be added to attention scores, [rows, 1, T, T]: a token sees the prompt and its own answer up to itself.

    Padding sees itself, for a softmax over nothing is NaN.
    """
    columns = torch.arange(answer.shape[1], device=answer.device)
    key, query = answer[:, None, :], answer[:, :, None]
    seen = (columns[None, :] <= columns[:, None]) & (key != PADDING) & ((key == PROMPT) | (key == query))
    seen = seen | torch.eye(answer.shape[1], dtype=torch.bool, device=answer.device)
    mask = torch.zeros(seen.shape, dtype=dtype, device=answer.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def _soft_prompts(model: Any, rows: int) -> Tensor | None:
    """Learned virtual tokens before every row, [rows, width, hidden], or None."""
    config = getattr(model, "active_peft_config", None)
    if config is None or not config.is_prompt_learning:
        return None
    if config.peft_type not in ("PROMPT_TUNING", "P_TUNING"):
        raise _unsupported(f"{config.peft_type} does not put virtual tokens before the text", "PromptTuningConfig")
    prompts: Tensor = model.get_prompt(batch_size=rows)
    return prompts


def _unsupported(why: str, fix: str) -> UnsupportedModelError:
    return UnsupportedModelError("This model cannot run these token rows.", f"For {why}.", f"Use {fix}.")
