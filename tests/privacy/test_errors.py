"""Coded errors cross process borders whole."""

from __future__ import annotations

import copy
import pickle

import pytest

from privacy import errors
from privacy.errors import BudgetError, CodedError, TermsRefusal

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CodedError)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_survives_pickling_and_copying(kind: type[CodedError]) -> None:
    error = kind("What.", "Why.", "Fix.")
    for twin in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):  # noqa: S301 - our own bytes
        assert type(twin) is kind
        assert twin.to_json() == error.to_json()
        assert str(twin) == str(error)


def test_codes_are_unique() -> None:
    assert {BudgetError, TermsRefusal} <= set(KINDS)
    assert len({kind.code for kind in KINDS}) == len(KINDS)
