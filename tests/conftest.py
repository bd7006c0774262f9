"""Fixtures shared by all rooms."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random model."""
    from tests.tiny import make_model

    return make_model(tmp_path_factory.mktemp("tiny-model"))
