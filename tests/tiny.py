"""A tiny random Llama with a byte tokenizer, and a tiny federation of synthetic voters: milliseconds, no download."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedpref.config import Recipe
from fedpref.data.loading import load_federated
from fedpref.data.preferences import Preferences
from fedpref.folder import RunFolder
from fedpref.manifest import Manifest
from fedpref.plan import make_plan
from fedpref.recipes import validate_recipe
from fedpref.tracking import Tracker
from fedpref.training import TrainingInput, train_reward_head
from reward.layout import HeadLayout
from reward.pairs import Conversation

TOPICS = ("cats", "dogs", "birds")


def make_model(folder: Path) -> Path:
    """A 2-layer random Llama (hidden 32, vocabulary 260) and its tokenizer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
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


def write_prompts(folder: Path, rows: list[dict[str, Any]] | None = None, name: str = "prompts") -> Path:
    """Public prompts and their description; returns the YAML."""
    given = rows or [{"prompt": f"Say something about {t}, {n}.", "topic": t} for t in TOPICS for n in range(3)]
    file = write_jsonl(folder / f"{name}.jsonl", given)
    description = {
        "name": name,
        "source": f"{name}.jsonl",
        "format": "prompt_only",
        "license": "CC0-1.0",
        "fields": {"topic": "topic", **({"answer": "answer"} if "answer" in given[0] else {})},
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "public": True,
        "reason": "made up for a test",
    }
    return _yaml(folder / f"{name}.yaml", description)


def recipe_tree(folder: Path, model: Path, **changes: Any) -> dict[str, Any]:
    """A whole recipe over tiny data in ``folder``; ``changes`` as ``privacy__rng="seeded"``."""
    tree: dict[str, Any] = {
        "model_name_or_path": str(model),
        "datasets": changes.pop("datasets") if "datasets" in changes else [str(write_dataset(folder, votes()))],
        "dtype": "float32",
        "max_length": 96,
        "federation": {"partition": {"by": "hash", "num_clients": 3}, "num_rounds": 6, "num_units": 50},
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


def make_recipe(folder: Path, model: Path | str = "not-loaded", **changes: Any) -> Recipe:
    """``recipe_tree`` as a validated recipe; the model's name is never resolved by the tests that fake features."""
    return validate_recipe(recipe_tree(folder, Path(model), **changes), "tiny")


def fake_features(dimension: int = 8) -> Callable[[Sequence[Conversation]], npt.NDArray[np.float32]]:
    """Features without a model: [n, d], from the text alone; the first one counts exclamation marks."""

    def features(texts: Sequence[Conversation]) -> npt.NDArray[np.float32]:
        rows = []
        for text in texts:
            seed = int.from_bytes(hashlib.sha256(repr(text).encode()).digest()[:4], "big")
            row = np.random.default_rng(seed).normal(size=dimension) * 0.2
            row[0] = text.completion.count("!") / 6 - 1
            rows.append(row)
        return np.array(rows, dtype=np.float32).reshape(len(rows), dimension)

    return features


def training_input(recipe: Recipe) -> TrainingInput:
    """A plan, the tiny federation's data, and fake features."""
    return TrainingInput(
        make_plan(recipe), load_federated(recipe, lambda _: None), fake_features(recipe.reward.projection_dim)
    )


def train(recipe: Recipe, *, resume: bool = False, trackers: Sequence[Tracker] = ()) -> npt.NDArray[np.float64]:
    """Train in ``recipe.output_dir`` without a base model: milliseconds. ``run.json`` stays at `started`."""
    given, folder = training_input(recipe), RunFolder(Path(recipe.output_dir))
    folder.begin(recipe, given.plan.digest, resume=resume)
    return train_reward_head(given, folder, trackers, lambda _: None)


def head_manifest(dimension: int) -> Manifest:
    """The linear reward head on d projected features."""
    return Manifest(HeadLayout(dimension).shapes)


def preferences(rows: Sequence[tuple[str, str, str]], prompt: str = "Say something.") -> Preferences:
    """(user, chosen, rejected) -> checked preference records, all of one topic and client."""
    texts: dict[Conversation, int] = {}

    def number(completion: str) -> int:
        return texts.setdefault(Conversation((("user", prompt),), completion), len(texts))

    chosen = np.array([number(c) for _, c, _ in rows], dtype=np.int64)
    rejected = np.array([number(r) for _, _, r in rows], dtype=np.int64)
    users = np.array([user for user, _, _ in rows], dtype=np.str_)
    blank = np.full(len(rows), "", dtype=np.str_)
    return Preferences(tuple(texts), chosen, rejected, users, blank, blank)
