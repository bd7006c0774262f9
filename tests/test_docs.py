"""Docs say what the code does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import fedpref
from fedpref.config import PolicyConfig
from fedpref.config_docs import render
from fedpref.data.spec import DatasetSpec
from fedpref.recipes import find_recipe
from tests.tiny import recipe_tree, write_recipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_config_page_is_the_schema() -> None:
    assert (ROOT / "docs" / "config.md").read_text(encoding="utf-8") == render()


def test_every_key_says_what_it_means() -> None:
    silent = [row.split("`")[1] for row in render().splitlines() if row.endswith("|  |")]
    assert [key for key in silent if not key.startswith("privacy.")] == []  # that block is being rewritten


@pytest.mark.slow  # seconds
@pytest.mark.parametrize("verb", sorted(set(re.findall(r"`fedpref (\w+)", README))))
def test_every_verb_in_the_readme_exists(verb: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fedpref", verb, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_readmes_yaml_fits_the_schemas() -> None:
    policy, dataset = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    assert PolicyConfig.model_validate(yaml.safe_load(policy)["policy"]).num_generations == 8
    assert DatasetSpec.model_validate(yaml.safe_load(dataset)).fields.user_id == "person"


def test_the_readmes_python_runs(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it stands, but for a tiny recipe of the same name in the folder it is run in."""
    privacy = {"target_epsilon": 8.0, "sample_rate": 1.0, "max_grad_norm": 0.5}
    recipe = write_recipe(tmp_path, tiny_model, privacy=privacy, federation__num_rounds=2)
    recipe.rename(tmp_path / "quickstart")
    monkeypatch.chdir(tmp_path)
    block, _ = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)  # noqa: S102 - our own README
    assert names["run"].recipe.privacy.target_epsilon == 4
    assert names["run"].path == Path("runs/eps4")
    assert "is protected" in capsys.readouterr().out
    assert len(names["model"].score(["Why?"], ["So."])) == 1


def test_the_readmes_own_objective_trains(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = recipe_tree(tmp_path, tiny_model, federation__num_rounds=1)
    del tree["reward"]
    tree["training"] = {"objective": "square_dpo", "device": "cpu", "max_eval_records": 4}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(tree))
    monkeypatch.chdir(tmp_path)
    _, block = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(block, {"fedpref": fedpref})  # noqa: S102 - our own README
    assert (
        "reward accuracy" in json.loads((tmp_path / "run" / "evaluation.json").read_text())["seen topics"]["measures"]
    )


@pytest.mark.parametrize(
    "page", sorted(str(p.relative_to(ROOT)) for p in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
)
def test_links_in_docs_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_make_targets_named_in_the_docs_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    pages = [README, (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")]
    for target in {t for page in pages for t in re.findall(r"^make ([a-z-]+)", page, flags=re.MULTILINE)}:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.parametrize(
    ("status", "asked", "ends"),
    [
        (None, "run recipes/quickstart.yaml", 0),
        ("started", "run recipes/quickstart.yaml --resume", 0),
        ("finished", "report {run}", 0),
        ("started", "run recipes/quickstart.yaml --resume", 1),
    ],
)
def test_make_demo_starts_resumes_or_reports_and_hides_no_failure(
    tmp_path: Path, status: str | None, asked: str, ends: int
) -> None:
    venv, run = tmp_path / "venv", tmp_path / "run"
    (venv / "bin").mkdir(parents=True)
    run.mkdir()
    for name in ("bin/python", ".installed"):
        (venv / name).touch()
    command = venv / "bin" / "fedpref"
    command.write_text(f"#!/bin/sh\necho asked: $@\nexit {ends}\n")
    command.chmod(0o755)
    if status:
        (run / "run.json").write_text(json.dumps({"status": status}, indent=2))
    make = ["make", "-C", str(ROOT), "demo", f"VENV={venv}", f"RUN={run}", f"PYTHON={sys.executable}"]
    done = subprocess.run(make, capture_output=True, text=True, check=False)
    assert [line for line in done.stdout.splitlines() if "asked" in line] == [f"asked: {asked.format(run=run)}"]
    assert (done.returncode == 0) == (ends == 0), done.stderr


def test_the_quickstart_states_purpose_cost_and_start() -> None:
    head = find_recipe("quickstart").read_text(encoding="utf-8").splitlines()[:3]
    assert all(line.startswith("#") for line in head)
    assert "fedpref run" in "".join(head)
