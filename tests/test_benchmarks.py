"""Benchmarks are not run here, but they must load: one that broke with a change elsewhere measures nothing."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import benchmarks

MODULES = sorted(p.stem for p in Path(benchmarks.__file__).parent.glob("*.py") if p.stem != "__init__")
NEEDS_PEER = {"flower_secagg"}  # Flower is an extra that the benchmark names when it is missing


@pytest.mark.parametrize("name", MODULES)
def test_every_benchmark_loads_and_says_what_it_measures(name: str) -> None:
    if name in NEEDS_PEER:
        pytest.importorskip("flwr")
    module = importlib.import_module(f"benchmarks.{name}")
    assert len(module.__doc__ or "") > 40
