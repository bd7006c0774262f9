"""A whole run on a tiny federation, through the API."""

from __future__ import annotations

from pathlib import Path

import fedpref
from privacy.report import verify
from tests.tiny import write_recipe


def test_a_run_leaves_a_verified_folder(tmp_path: Path, tiny_model: Path) -> None:
    run = fedpref.load_recipe(write_recipe(tmp_path, tiny_model)).run()
    verdict = verify(run.path)
    assert verdict.ok, verdict.failed
    assert run.status["status"] == "finished"
    assert len((run.path / "metrics.jsonl").read_text().splitlines()) == 6
