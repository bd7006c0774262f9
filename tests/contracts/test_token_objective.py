"""The objectives on tokens keep the contract of objectives; ``tests/policy/test_objectives.py`` holds them to fp64 rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.contracts.test_objective import ObjectiveContract
from tests.policy.objective_cases import CASES, N, model_for


class TokenObjectiveContract(ObjectiveContract):
    """The record is a row of the shared layout; the parameter is LoRA's B of the last layer's values."""

    size = N
    name: str
    model: Any

    @pytest.fixture(autouse=True)
    def _load(self, tiny_model: Path) -> None:
        self.model = model_for(tiny_model, score=CASES[self.name].score)

    def losses(self, records: Tensor) -> Tensor:
        case = CASES[self.name]
        return case.objective(self.model, case.batch("shared", "right").select(records))

    def parameter(self) -> Tensor:
        *_, last = (p for name, p in self.model.named_parameters() if "v_proj.lora_B" in name)
        return last


class TestTokenBradleyTerry(TokenObjectiveContract):
    name = "bradley_terry"


class TestSelector(TokenObjectiveContract):
    name = "binary_selector"


class TestDpo(TokenObjectiveContract):
    name = "sigmoid"


class TestKto(TokenObjectiveContract):
    name = "kto"


class TestSft(TokenObjectiveContract):
    name = "sft"


class TestTokenGrpo(TokenObjectiveContract):
    name = "grpo clipped"
