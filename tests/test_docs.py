"""Docs say what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fedpref.config_docs import render
from fedpref.data.spec import DatasetSpec
from fedpref.recipes import find_recipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_config_page_is_the_schema() -> None:
    assert (ROOT / "docs" / "config.md").read_text(encoding="utf-8") == render()


def test_every_key_says_what_it_means() -> None:
    silent = [row.split("`")[1] for row in render().splitlines() if row.endswith("|  |")]
    assert [key for key in silent if not key.startswith("privacy.")] == []  # that block is being rewritten


@pytest.mark.parametrize("verb", sorted(set(re.findall(r"`fedpref (\w+)", README))))
def test_every_verb_in_the_readme_exists(verb: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fedpref", verb, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_readmes_dataset_description_fits_the_schema() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    assert DatasetSpec.model_validate(yaml.safe_load(block)).fields.user_id == "person"


def test_the_readmes_python_runs_as_far_as_names_go() -> None:
    import fedpref
    import reward

    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    compile(block, "README", "exec")
    assert callable(fedpref.load_recipe)
    assert callable(reward.load)


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


def test_the_quickstart_states_purpose_cost_and_start() -> None:
    head = find_recipe("quickstart").read_text(encoding="utf-8").splitlines()[:3]
    assert all(line.startswith("#") for line in head)
    assert "fedpref run" in "".join(head)
