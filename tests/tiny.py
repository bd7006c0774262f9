"""A tiny random Llama with a byte tokenizer, and a tiny federation of synthetic voters: milliseconds, no download."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TOPICS = ("cats", "dogs", "birds")


def make_model(folder: Path) -> Path:
    """A 2-layer random Llama (hidden 32, vocabulary 260) and its tokenizer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    fast.chat_template = (
        "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant: {% endif %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def votes(num_users: int = 60, pairs: int = 4, seed: int = 0) -> list[dict[str, Any]]:
    """Synthetic votes: people prefer texts with more exclamation marks, most of the time."""
    rng = np.random.default_rng(seed)
    texts = {t: [f"{t} {'!' * int(rng.integers(0, 12))} number {i}" for i in range(12)] for t in TOPICS}
    rows = []
    for user in range(num_users):
        for _ in range(int(rng.integers(1, pairs + 1))):
            topic = TOPICS[int(rng.integers(len(TOPICS)))]
            a, b = rng.choice(12, size=2, replace=False)
            first, second = texts[topic][a], texts[topic][b]
            if (first.count("!") < second.count("!")) != (rng.random() < 0.1):
                first, second = second, first
            rows.append(
                {
                    "prompt": f"Say something about {topic}.",
                    "chosen": first,
                    "rejected": second,
                    "user_id": f"u{user}",
                    "topic": topic,
                }
            )
    return rows


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_dataset(folder: Path, rows: list[dict[str, Any]], name: str = "votes") -> Path:
    """A data file and its YAML description; returns the YAML."""
    write_jsonl(folder / f"{name}.jsonl", rows)
    description = {
        "name": name,
        "source": f"{name}.jsonl",
        "license": "CC0-1.0",
        "fields": {"user_id": "user_id", "topic": "topic"},
    }
    return _yaml(folder / f"{name}.yaml", description)


def write_public(folder: Path) -> Path:
    """Public completions and their description; returns the YAML."""
    rows = [
        {"prompt": f"Say something about {t}.", "completion": f"{t} {'!' * (i % 9)} {'word ' * (i % 5)}{i}", "topic": t}
        for t in TOPICS
        for i in range(16)
    ]
    file = write_jsonl(folder / "public.jsonl", rows)
    description = {
        "name": "public",
        "source": "public.jsonl",
        "format": "prompt_completion",
        "license": "CC0-1.0",
        "fields": {"topic": "topic"},
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "public": True,
        "reason": "made up for a test",
    }
    return _yaml(folder / "public.yaml", description)


def recipe_tree(folder: Path, model: Path, **changes: Any) -> dict[str, Any]:
    """A whole recipe over tiny data in ``folder``; ``changes`` as ``privacy__rng="seeded"``."""
    tree: dict[str, Any] = {
        "model_name_or_path": str(model),
        "datasets": [str(write_dataset(folder, votes()))],
        "dtype": "float32",
        "max_length": 96,
        "federation": {"partition": {"by": "hash", "num_clients": 3}, "num_rounds": 6, "num_users": 50},
        "privacy": {"noise_multiplier": 1.5, "sample_rate": 0.3, "max_grad_norm": 0.5},
        "reward": {"layer": 1, "projection_dim": 8, "public_data": str(write_public(folder))},
        "evaluation": {"user_fraction": 0.2, "unseen_topics": ["birds"], "bootstrap_samples": 100},
        "output_dir": str(folder / "run"),
    }
    for dotted, value in changes.items():
        node = tree
        *parents, last = dotted.split("__")
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return tree


def write_recipe(folder: Path, model: Path, **changes: Any) -> Path:
    """``recipe_tree`` as a YAML file."""
    return _yaml(folder / "recipe.yaml", recipe_tree(folder, model, **changes))


def _yaml(path: Path, tree: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return path
