"""Every known defect has a plant, or a reason why not; every plant has a killer; every killer kills (slow)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.privacy.mutants.__main__ import killed, killers_end_with
from tests.privacy.mutants.plants import MUTANTS, Mutant

ROOT = Path(__file__).parents[3]
# guarantees.md, last paragraph, split at its semicolons.
DEFECTS = (
    "Weighted mean under noise sized for a uniform one",
    "Poisson loader discarded for a shuffled one",
    "client coin booked as user Poisson",
    "accountant reset each round",
    "budget lost on restart",
    "noise without clipping",
    "LoRA moved to the device after wrapping",
    "same seed, same noise on two clients",
    "per-record sensitivity typed by hand apart from the clipping norm",
    "rows clipped instead of pairs",
    "overlap of survivor and dropped lists",
    "masks from a 32-bit seed",
    "un-noised metrics beside noised weights",
)


def test_every_known_defect_is_listed_once() -> None:
    assert [m.defect for m in MUTANTS if not m.defect.startswith("(ours)")] == list(DEFECTS)
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_a_mutant_has_killers_that_exist_or_a_reason(mutant: Mutant) -> None:
    assert bool(mutant.killers) == (mutant.plant is not None) == (not mutant.why_not)
    for killer in mutant.killers:
        file, name = killer.split("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, killer


@pytest.mark.slow
def test_the_killers_pass_without_a_mutant() -> None:
    assert killers_end_with(tuple(sorted({k for m in MUTANTS for k in m.killers})), None) == 0


@pytest.mark.slow
@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.plant], ids=lambda m: m.name)
def test_every_planted_mutant_is_killed(mutant: Mutant) -> None:
    assert killed(mutant)
