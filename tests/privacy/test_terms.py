"""A client's terms: each one refuses by itself, coded; what they do not name they do not allow."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from privacy.errors import ParameterError
from privacy.terms import EMBEDDED, Offer, Terms
from privacy.units import Adversary, PrivacyUnit, Trust

TODAY = date(2026, 5, 17)
FORM: dict[str, Any] = {
    "budgets": {"user": {"delta": 1e-5, "epsilon": {"reader": 8, "other_clients": 8.0, "server": 4.0}}},
    "trust": ["central", "local"],
    "server": EMBEDDED,
    "min_clients": 5,
    "recipes": ["abc"],
    "max_label_epsilon": 20,
    "expires": "2026-12-31",
}
OFFER = Offer(
    unit=PrivacyUnit.USER,
    trust=Trust.CENTRAL,
    delta=1e-5,
    epsilon=dict.fromkeys(Adversary, 2.0),
    num_clients=5,
    recipe="abc",
    server=EMBEDDED,
    label_epsilon=20.0,
)


def test_an_offer_within_all_terms_is_accepted() -> None:
    assert Terms.from_json(FORM).check(OFFER, TODAY) is None


def against(adversary: Adversary, value: float) -> dict[Adversary, float]:
    return {**OFFER.epsilon, adversary: value}


@pytest.mark.parametrize(
    ("term", "change", "today"),
    [
        ("expires", {}, date(2027, 1, 1)),
        ("recipes", {"recipe": "abcd"}, TODAY),
        ("recipes", {"recipe": ""}, TODAY),
        ("max_label_epsilon", {"label_epsilon": 20.01}, TODAY),
        ("max_label_epsilon", {"label_epsilon": math.inf}, TODAY),
        ("max_label_epsilon", {"label_epsilon": math.nan}, TODAY),
        ("trust", {"trust": Trust.DISTRIBUTED}, TODAY),
        ("server", {"server": "a key"}, TODAY),
        ("server", {"server": ""}, TODAY),
        ("min_clients", {"num_clients": 4}, TODAY),
        ("budgets", {"unit": PrivacyUnit.EXAMPLE}, TODAY),
        ("budgets", {"delta": 1.1e-5}, TODAY),
        ("budgets", {"epsilon": against(Adversary.READER, 8.01)}, TODAY),
        ("budgets", {"epsilon": against(Adversary.OTHER_CLIENTS, math.inf)}, TODAY),
        ("budgets", {"epsilon": against(Adversary.READER, math.nan)}, TODAY),
        ("budgets", {"epsilon": against(Adversary.SERVER, 4.01), "trust": Trust.LOCAL}, TODAY),
    ],
)
def test_each_term_refuses_by_itself(term: str, change: dict[str, Any], today: date) -> None:
    refusal = Terms.from_json(FORM).check(replace(OFFER, **change), today)
    assert refusal is not None
    assert (refusal.code, refusal.term) == ("FP413", term)
    assert refusal.to_json()["term"] == term
    assert term in refusal.what


@pytest.mark.parametrize(
    "change",
    [
        {"label_epsilon": 0.5},
        {"trust": Trust.LOCAL, "server": ""},
        {"epsilon": against(Adversary.SERVER, math.inf)},  # trusted by name
        {"epsilon": against(Adversary.READER, 8.0), "num_clients": 500},
    ],
    ids=str,
)
def test_these_are_allowed(change: dict[str, Any]) -> None:
    assert Terms.from_json(FORM).check(replace(OFFER, **change), date(2026, 12, 31)) is None


def test_central_without_a_named_server_is_refused_even_if_trust_names_it() -> None:
    terms = Terms.from_json({k: v for k, v in FORM.items() if k != "server"})
    for server in ("", EMBEDDED, "a key"):
        refusal = terms.check(replace(OFFER, server=server), TODAY)
        assert refusal is not None
        assert refusal.term == "server"


def test_without_recipes_any_recipe_will_do() -> None:
    terms = Terms.from_json({**FORM, "recipes": []})
    assert terms.check(replace(OFFER, recipe="anything"), TODAY) is None


@pytest.mark.parametrize(
    "change",
    [
        {"budget": {}},
        {"budgets": None},
        {"budgets": {"household": FORM["budgets"]["user"]}},
        {"budgets": {"user": {"delta": 1e-5}}},
        {"budgets": {"user": {"delta": 1e-5, "epsilon": {"reader": 8}}}},
        {"budgets": {"user": {"delta": 2.0, "epsilon": FORM["budgets"]["user"]["epsilon"]}}},
        {"budgets": {"user": {"delta": 1e-5, "epsilon": {"reader": "8", "other_clients": 8, "server": 8}}}},
        {"budgets": {"user": {"delta": 1e-5, "epsilon": {"reader": True, "other_clients": 8, "server": 8}}}},
        {"budgets": {"user": {"delta": 1e-5, "epsilon": {"reader": math.inf, "other_clients": 8, "server": 8}}}},
        {"trust": ["blind"]},
        {"trust": None},
        {"server": 7},
        {"min_clients": 0},
        {"min_clients": 5.0},
        {"min_clients": True},
        {"recipes": [7]},
        {"signers": ["key"]},
        {"max_label_epsilon": 0},
        {"max_label_epsilon": "20"},
        {"expires": "soon"},
        {"expires": 2026},
    ],
    ids=str,
)
def test_terms_that_are_none_are_refused_as_a_whole(change: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match="terms cannot be read"):
        Terms.from_json({**FORM, **change})


@pytest.mark.parametrize("fields", [None, [], "terms", {}, {"trust": ["local"]}])
def test_what_is_no_mapping_of_terms_is_refused(fields: Any) -> None:
    with pytest.raises(ParameterError):
        Terms.from_json(fields)
