"""Load a base model and its tokenizer by path, hub name or ``embedded/...``."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import nn

from reward.embedded import PREFIX, ensure_model
from reward.errors import ModelNotFoundError


@dataclass(frozen=True)
class Backbone:
    """A frozen causal language model and its tokenizer."""

    name: str
    model: Any
    tokenizer: Any
    digest: str

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        device: torch.device = self.model.device
        return device


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without load reports and bars of transformers, which say nothing that our own lines do not."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def resolve(name: str, say: Callable[[str], None] = lambda _: None) -> str:
    """A model's name -> what transformers loads: a folder, or a hub name."""
    return str(ensure_model(name, say)) if name.startswith(PREFIX) else name


def load_backbone(
    name: str, *, num_layers: int | None = None, dtype: str = "auto", say: Callable[[str], None] = lambda _: None
) -> Backbone:
    """Load a causal language model, frozen and in evaluation mode.

    Args:
        name: a folder, a hub name, or ``embedded/smollm2-135m-instruct``.
        num_layers: load only this many transformer blocks (for features of an inner layer).
        dtype: ``float32``, ``bfloat16``, or ``auto``: bf16 where it is faster here, else fp32.
        say: told what happens, a line at a time.

    Raises:
        ModelNotFoundError: nothing there, no network, or fewer layers than asked for.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source = resolve(name, say)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(source)
            if num_layers is not None:
                config.num_hidden_layers = _checked_layers(name, num_layers, config.num_hidden_layers)
            tokenizer = AutoTokenizer.from_pretrained(source)
            model = AutoModelForCausalLM.from_pretrained(
                source,
                config=config,
                dtype=fastest_dtype(device) if dtype == "auto" else getattr(torch, dtype),
                use_safetensors=True,
                trust_remote_code=False,
            )
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise ModelNotFoundError(
                f"The model {name!r} cannot be loaded.",
                f"{type(error).__name__}: {str(error).splitlines()[0][:200]}",
                "Give a folder with a transformers checkpoint, a hub name while online, or embedded/smollm2-135m-instruct.",
            ) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.eval().requires_grad_(False).to(device)
    return Backbone(name, model, tokenizer, digest_of(source))


def _checked_layers(name: str, asked: int, present: int) -> int:
    if asked > present:
        raise ModelNotFoundError(
            f"The model {name!r} has {present} layers.", f"Layer {asked} was asked for.", "Lower reward.layer."
        )
    return asked


def digest_of(source: str) -> str:
    """SHA-256 over a folder's weights and configuration; for a hub name the name itself, which is said so."""
    folder = Path(source)
    if not folder.is_dir():
        return f"hub:{source}"
    total = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in {".safetensors", ".json", ".jinja"}):
        with path.open("rb") as file:
            total.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


@lru_cache
def fastest_dtype(device: str) -> torch.dtype:
    """bf16 on CUDA, and on a CPU where a probe of well under a second says that it pays; else fp32."""
    if device == "cuda":
        return torch.bfloat16
    seconds = {dtype: _probe(dtype) for dtype in (torch.float32, torch.bfloat16)}
    return torch.bfloat16 if seconds[torch.bfloat16] < 0.9 * seconds[torch.float32] else torch.float32


def _probe(dtype: torch.dtype) -> float:
    """Best of five passes of two matrix products of the shape of a small transformer block, seconds."""
    layer, x = nn.Linear(576, 1536).to(dtype), torch.ones(1024, 576, dtype=dtype)
    best = float("inf")
    with torch.inference_mode():
        for _ in range(5):
            start = time.perf_counter()
            layer(x)
            best = min(best, time.perf_counter() - start)
    return best
