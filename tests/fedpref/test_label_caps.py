"""Randomised labels against a project's cap, and against clients' terms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedpref.channel.base import Failure
from fedpref.errors import NoDataError, RecipeError
from privacy.errors import BudgetError
from privacy.project import read_project
from privacy.report import build_report, render_text, verify
from privacy.units import PrivacyUnit
from tests.fedpref.test_books import spied, write_terms
from tests.tiny import make_recipe, train

LABELS: dict[str, Any] = {
    "privacy__labels": "randomized_response",
    "privacy__label_epsilon": 0.5,
    "privacy__noise_multiplier": 8.0,
    "federation__num_rounds": 1,
}  # 20 labels of a person: 10


def at(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


def test_a_projects_label_cap_holds_over_runs(tmp_path: Path) -> None:
    books: dict[str, Any] = {"privacy__ledger": str(tmp_path / "p.jsonl"), "privacy__project_cap": 6.0}
    with pytest.raises(BudgetError, match="label cap"):
        train(make_recipe(at(tmp_path, "uncapped"), **LABELS, **books))
    books["privacy__project_label_cap"] = 15.0
    recipe = make_recipe(at(tmp_path, "first"), **LABELS, **books)
    train(recipe)
    second = make_recipe(at(tmp_path, "second"), **LABELS, **books)
    with pytest.raises(BudgetError, match="before one is drawn"):
        train(second)
    assert not (Path(second.output_dir) / "nodes/local/labels.bin").exists()
    assert read_project(tmp_path / "p.jsonl").label_total(PrivacyUnit.USER) == 10.0
    report = build_report(Path(recipe.output_dir))
    assert report.fields["project_labels"] == [{"unit": "user", "label_epsilon": 10.0, "cap": 15.0}]
    assert "epsilon 10 of 15 at delta 0" in render_text(report)
    assert verify(Path(recipe.output_dir)).ok


def test_a_clients_terms_cap_its_labels_over_all_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spied(monkeypatch)
    terms = write_terms(tmp_path / "client.yaml", max_label_epsilon=15)
    train(make_recipe(at(tmp_path, "first"), federation__terms=str(terms), **LABELS))
    assert read_project(tmp_path / "client.books.jsonl").label_total(PrivacyUnit.USER) == 10.0
    with pytest.raises(NoDataError):
        train(make_recipe(at(tmp_path, "second"), federation__terms=str(terms), **LABELS))
    refused = seen[-1][0]
    assert isinstance(refused, Failure)
    assert refused.why.endswith("max_label_epsilon")
    assert read_project(tmp_path / "client.books.jsonl").label_total(PrivacyUnit.USER) == 10.0


def test_terms_that_want_labels_randomised_refuse_them_as_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = spied(monkeypatch)
    terms = write_terms(tmp_path / "client.yaml", max_label_epsilon=15)
    with pytest.raises(NoDataError):
        train(make_recipe(tmp_path, federation__terms=str(terms)))
    assert "max_label_epsilon" in str(seen[-1][0])
    without = write_terms(tmp_path / "other.yaml")
    assert np.isfinite(train(make_recipe(at(tmp_path, "b"), federation__terms=str(without), **LABELS))).all()


def test_a_label_cap_without_labels_or_books_is_no_recipe(tmp_path: Path) -> None:
    for changes in ({"privacy__ledger": "x"}, {k: v for k, v in LABELS.items() if "label" in k}):
        with pytest.raises(RecipeError):
            make_recipe(tmp_path, privacy__project_label_cap=3.0, **changes)
