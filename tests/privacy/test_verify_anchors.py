"""Anchors noted earlier, and the texts of a report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from privacy.ledger import read_ledger
from privacy.report import verify
from tests.privacy.books import write_ledger, write_run
from tests.privacy.test_verify import drop_last_lines, failures


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", rounds=1)


def test_a_head_noted_earlier_is_an_anchor_also_when_lines_follow_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    write_ledger(path, 3)
    early = read_ledger(path).hashes[2]
    verdict = verify(path, early)
    assert verdict.ok
    assert any("4 lines follow it, whose completeness is not shown" in line for line in verdict.passed)
    last = verify(path, read_ledger(path).head)
    assert any("nothing follows it" in line for line in last.passed)
    drop_last_lines(path, 4)
    assert verify(path, early).ok
    drop_last_lines(path, 1)
    assert "does not hold the anchor" in failures(path, early)


@pytest.mark.parametrize(
    "change", [lambda t: t.replace("is protected", "is well protected"), lambda t: "", lambda t: t + " "]
)
def test_a_text_report_that_says_something_else_is_found(run: Path, change: Callable[[str], str]) -> None:
    text = run / "report.txt"
    changed = change(text.read_text(encoding="utf-8"))
    assert changed != text.read_text(encoding="utf-8")
    text.write_text(changed, encoding="utf-8")
    assert failures(run) == "report.txt: is not the text of report.json"


@pytest.mark.parametrize("name", ["report.json", "report.txt"])
def test_a_finished_run_without_one_of_its_reports_is_found(run: Path, name: str) -> None:
    (run / name).unlink()
    assert f"{name}: " in failures(run)
