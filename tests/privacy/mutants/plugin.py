"""``pytest -p tests.privacy.mutants.plugin``: plants the mutant that FEDPREF_MUTANT names, before tests are collected."""

from __future__ import annotations

import os

import pytest

from tests.privacy.mutants.plants import BY_NAME


def pytest_configure(config: pytest.Config) -> None:
    """Change the program."""
    del config
    plant = BY_NAME[os.environ["FEDPREF_MUTANT"]].plant
    assert plant is not None
    plant()
