"""The wheel carries what a checkout has: recipes, descriptions, embedded data, type markers."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fedpref.data.spec import find_dataset, list_datasets
from fedpref.doctor import PACKAGES
from tests.fedpref.conftest import speak

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built out of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, cwd=folder)
    (built,) = folder.glob("fedpref-*.whl")
    return built


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Installed alone into a folder; the dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("elsewhere")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    subprocess.run([*pip, str(folder / "site"), str(wheel)], check=True, cwd=folder)
    return folder


def installed(elsewhere: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(elsewhere / "site")}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=elsewhere, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_four_packages_come_from_the_wheel_and_are_typed(elsewhere: Path) -> None:
    code = f"import {', '.join(PACKAGES)}; print(*(m.__file__ for m in ({', '.join(PACKAGES)})))"
    assert installed(elsewhere, "-c", code).split() == [str(elsewhere / "site" / p / "__init__.py") for p in PACKAGES]
    for package in PACKAGES:
        assert (elsewhere / "site" / package / "py.typed").exists()


def test_it_lists_the_recipes_and_data_sets_of_the_checkout(elsewhere: Path) -> None:
    for verbs in (("recipes", "ls"), ("data", "ls"), ("recipes", "show", "quickstart")):
        assert installed(elsewhere, "-m", "fedpref", *verbs) == speak(*verbs).out


def test_every_embedded_file_is_there_and_has_the_digest_of_its_description(elsewhere: Path) -> None:
    embedded = [spec for spec in map(find_dataset, list_datasets()) if spec.source.startswith("embedded/")]
    assert len(embedded) >= 2
    code = "import sys; from fedpref.data.spec import find_dataset; print(find_dataset(sys.argv[1]).path)"
    for spec in embedded:
        path = Path(installed(elsewhere, "-c", code, spec.name).strip())
        assert path.is_relative_to(elsewhere / "site")
        assert hashlib.sha256(path.read_bytes()).hexdigest() == spec.sha256


def test_nothing_of_the_tests_or_of_a_run_is_in_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert not [name for name in names if name.endswith((".pyc", ".safetensors", "ledger.jsonl"))]
