"""Stacking against the products themselves; the error of plain means; frozen A and cores have none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from fedpref.aggregation.lora import LoraRule, is_exact
from fedpref.api import run
from fedpref.errors import UnsupportedPlanError
from fedpref.manifest import Manifest
from tests.fedpref.adapters import adapter_recipe

HIGH, WIDE, R = 9, 7, 2
MANIFEST = Manifest((("m.lora_A.default.weight", (R, WIDE)), ("m.lora_B.default.weight", (HIGH, R)), ("score", (1, 3))))
D = MANIFEST.dimension
Vector = npt.NDArray[np.float64]


def product(flat: Vector) -> Vector:
    return flat[R * WIDE : R * WIDE + HIGH * R].reshape(HIGH, R) @ flat[: R * WIDE].reshape(R, WIDE)


def scene(clients: int, seed: int = 0) -> tuple[Vector, list[Vector]]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=D), [rng.normal(size=D) for _ in range(clients)]


@pytest.mark.parametrize("clients", [1, 2, 5])
def test_stacking_is_the_best_low_rank_of_the_mean_of_products(clients: int) -> None:
    start, updates = scene(clients)
    step, error = LoraRule(MANIFEST, "stack", clients)(start, updates)
    mean = np.mean([product(start - u) for u in updates], axis=0)
    u, s, vt = np.linalg.svd(mean)
    best = (u[:, :R] * s[:R]) @ vt[:R]
    np.testing.assert_allclose(product(start - step), best, atol=1e-10)
    expected = np.linalg.norm(best - mean) / np.linalg.norm(mean - product(start))
    assert error == pytest.approx(expected, abs=1e-9)
    np.testing.assert_allclose((start - step)[-3:], np.mean([start - u for u in updates], axis=0)[-3:])
    assert clients > 1 or error < 1e-9


def test_plain_means_are_wrong_by_what_is_said(tmp_path: Path) -> None:
    start, updates = scene(2)
    step, error = LoraRule(MANIFEST, "mean", 2)(start, updates)
    np.testing.assert_allclose(step, np.mean(updates, axis=0))
    mean = np.mean([product(start - u) for u in updates], axis=0)
    expected = np.linalg.norm(product(start - step) - mean) / np.linalg.norm(mean - product(start))
    assert error == pytest.approx(expected)
    assert error > 0.3
    assert LoraRule(MANIFEST, "stack", 2)(start, updates)[1] < error


def test_who_was_not_drawn_adds_nothing_and_the_divisor_is_public() -> None:
    start, updates = scene(2)
    with_idle, _ = LoraRule(MANIFEST, "stack", 4)(start, [*updates, np.zeros(D), np.zeros(D)])
    alone, _ = LoraRule(MANIFEST, "stack", 4)(start, updates)
    np.testing.assert_allclose(with_idle, alone)
    nobody, error = LoraRule(MANIFEST, "stack", 4)(start, [np.zeros(D)])
    assert not nobody.any()
    assert error == 0.0


def test_exact_adapters_and_a_rule_without_anything_to_do() -> None:
    assert [is_exact(kind, local_steps=True) for kind in ("lora", "lora_frozen_a", "lora_core", "prompt_tuning")] == [
        False,
        True,
        True,
        True,
    ]
    assert is_exact("lora", local_steps=False)
    with pytest.raises(UnsupportedPlanError):
        LoraRule(Manifest((("m.lora_B.default.weight", (HIGH, R)),)), "stack", 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(("adapter", "rule"), [("lora", "mean"), ("lora", "stack"), ("lora_frozen_a", "mean")])
def test_a_rounds_record_has_the_error_of_its_aggregate(
    tmp_path: Path, tiny_model: Path, adapter: str, rule: str
) -> None:
    local = {"learning_rate": 0.05, "num_train_epochs": 2, "optim": "adamw"}
    changes = {"training__adapter": adapter, "training__aggregation": rule, "training__local": local}
    privacy = {"privacy": {"unit": "client", "noise_multiplier": 0.0, "sample_rate": 1.0, "max_grad_norm": 10.0}}
    sgd = {"training__momentum": 0.0, "federation__num_units": 3, "federation__num_rounds": 2}
    finished = run(adapter_recipe(tmp_path, tiny_model, **changes, **privacy, **sgd))
    lines = [json.loads(line) for line in (finished.path / "metrics.jsonl").read_text().splitlines()]
    errors = [line["aggregation_error"] for line in lines]
    if adapter == "lora_frozen_a":
        assert errors == [0.0, 0.0]
    else:
        assert all(0 < error < 2 for error in errors)


def test_under_noise_the_error_of_an_inexact_mean_is_not_told(tmp_path: Path, tiny_model: Path) -> None:
    """It is a function of single clients' updates, which no mechanism released."""
    changes = {"training__adapter": "lora", "training__local": {"learning_rate": 0.01}, "federation__num_rounds": 1}
    privacy = {"privacy": {"unit": "client", "noise_multiplier": 1.0, "sample_rate": 0.5, "max_grad_norm": 1.0}}
    finished = run(adapter_recipe(tmp_path, tiny_model, **changes, **privacy, federation__num_units=3))
    assert "aggregation_error" not in (finished.path / "metrics.jsonl").read_text()
