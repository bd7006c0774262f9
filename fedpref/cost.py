"""What a run takes, roughly: minutes and memory, from the recipe and the public sizes of its data sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from fedpref.config import Recipe
from fedpref.data.spec import find_dataset
from privacy.units import PrivacyUnit

_TOKENS_PER_SECOND = 1500  # features of SmolLM2-135M's first 20 blocks, fp32, 2 cores; half of that on one
_POLICY_TOKENS_PER_SECOND = 160  # sampled or trained on by SmolLM2-135M, fp32, 2 cores
_ADAPTER_TOKENS_PER_SECOND = 250  # reference pass, forward and backward of SmolLM2-135M, bf16, one core
_PROMPTS = 30  # where a description does not say
_TOKENS_PER_TEXT = 70  # where a data set's description does not say
_EMBEDDED_MODEL_BYTES = 269_060_552  # SmolLM2-135M-Instruct, bf16


def minutes(recipe: Recipe, facts: Mapping[str, int], divisor: float) -> float:
    """On 2 cores: features of all texts, then the rounds at 5 ms each; an adapter by the tokens it trains on."""
    if recipe.training is not None:
        return (_adapter_seconds(recipe, facts, divisor) + 60) / 60
    tokens = facts.get("tokens", facts.get("texts", 0) * _TOKENS_PER_TEXT)
    rounds = recipe.federation.num_rounds * 0.005
    return (tokens / _TOKENS_PER_SECOND + rounds + 30 + _policy_seconds(recipe, facts)) / 60


def _adapter_seconds(recipe: Recipe, facts: Mapping[str, int], divisor: float) -> float:
    """Expected records of all rounds at two answers each, once for the reference and three times for the gradient."""
    training, p = recipe.adapter, recipe.privacy
    records = facts.get("records", 0) / max(1, facts.get("users", facts.get("records", 1)))
    each = min(p.max_pairs_per_user, max(1.0, records)) if p.unit is not PrivacyUnit.EXAMPLE else 1.0
    tokens = 2 * _TOKENS_PER_TEXT
    if training.samples:
        tokens = training.num_generations * training.max_completion_length
    if training.local is not None:
        each *= training.local.num_train_epochs * facts.get("users", 1) / recipe.federation.num_units
    trained = recipe.federation.num_rounds * divisor * each + 4 * training.max_eval_records
    return trained * tokens / _ADAPTER_TOKENS_PER_SECOND


def _policy_seconds(recipe: Recipe, facts: Mapping[str, int]) -> float:
    policy = recipe.policy
    if policy is None:
        return 0.0
    trained = policy.max_steps * policy.prompts_per_step * policy.num_generations
    compared = 2 * recipe.evaluation.policy_samples * facts.get("prompts", _PROMPTS)
    sampled = (trained + compared) * policy.max_completion_length
    return (sampled + trained * policy.max_completion_length) / _POLICY_TOKENS_PER_SECOND + 60


def memory_gb(recipe: Recipe) -> float | None:
    """Rough: the libraries, and four times the model's file; None for a hub model that is not here."""
    size = _model_bytes(recipe.model_name_or_path)
    if size is None:
        return None
    return round(1.0 + (4 if recipe.policy is None and recipe.training is None else 12) * size / 1e9, 1)


def _model_bytes(name: str) -> int | None:
    if name.startswith("embedded/"):
        return _EMBEDDED_MODEL_BYTES
    weights = list(Path(name).glob("*.safetensors"))
    return sum(path.stat().st_size for path in weights) if weights else None


def public_sizes(recipe: Recipe) -> dict[str, int]:
    """Public sizes from the descriptions of the data sets, added up; no data file is opened."""
    total: Counter[str] = Counter()
    for name in (*recipe.datasets, *recipe.public_text):
        total.update(find_dataset(name).facts)
    if recipe.policy is not None:
        evaluated = recipe.policy.test_prompts or recipe.policy.prompts
        total["prompts"] = sum(find_dataset(name).facts.get("records", _PROMPTS) for name in evaluated)
    return dict(total)
