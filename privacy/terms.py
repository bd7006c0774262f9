"""A client's terms: what it will ever agree to, whatever a server asks. Checked before any data are touched.

Written by the client in its ``client.yaml`` (read by ``fedpref.client.guard``)::

    terms:
      budgets:
        user: {delta: 1.0e-5, epsilon: {reader: 30, other_clients: 30, server: 30}}
      trust: [central]
      server: embedded      # whom `central` may be: a public key, or the server in this very process
      min_clients: 5
      recipes: []           # plan digests; empty: any recipe
      max_label_epsilon: 20 # pure, of randomised labels over all runs; labels as given are then refused
      unnoised_evaluation: false # may figures be computed, un-noised, from the votes of this client's evaluation users
      expires: 2027-12-31   # the last day

The figures that are compared are the client's own: the events of its own mechanism, added to its own books. Under
``central`` they are un-amplified, because the client cannot vouch for what the server does (guarantees.md, "Ledgers").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from privacy.errors import ParameterError, TermsRefusal
from privacy.units import Adversary, PrivacyUnit, Trust

EMBEDDED = "embedded"  # the identity of a server that runs in the client's own process


@dataclass(frozen=True)
class Budget:
    """Epsilon per adversary at a delta that all runs on one unit together may ever spend."""

    delta: float
    epsilon: Mapping[Adversary, float]


@dataclass(frozen=True)
class Offer:
    """What a server asks for, as the client itself sees it; nothing in here is taken on the server's word alone.

    ``server`` is the identity that the channel verified ("" if none); ``epsilon`` is what each adversary's total over all
    the client's books would be if the client agreed (infinite where nothing is promised), ``label_epsilon`` that of its
    randomised labels (infinite for labels as given).
    """

    unit: PrivacyUnit
    trust: Trust
    delta: float
    epsilon: Mapping[Adversary, float]
    num_clients: int
    recipe: str
    server: str = ""
    label_epsilon: float = math.inf


@dataclass(frozen=True)
class Terms:
    """A client's terms. Closed: what they do not name they do not allow."""

    budgets: Mapping[PrivacyUnit, Budget]
    trust: frozenset[Trust]
    server: str = ""
    min_clients: int = 1
    recipes: frozenset[str] = frozenset()
    max_label_epsilon: float | None = None
    expires: date = date.max
    unnoised_evaluation: bool = False

    def check(self, offer: Offer, today: date) -> TermsRefusal | None:
        """The first term that says no, or None. Looks at no data."""
        return (
            self._expired(today)
            or self._stranger(offer)
            or self._untrusted(offer)
            or self._too_few(offer)
            or self._over_budget(offer)
            or self._labels_exposed(offer)
        )

    def check_figures(self, recipe: str, today: date) -> TermsRefusal | None:
        """Asked before un-noised figures of evaluation users' votes, after ``check``; these spend no epsilon, and have none.

        ``recipe`` is the plan's digest.
        """
        if today > self.expires:
            return self._expired(today)
        if self.recipes and recipe not in self.recipes:
            return _refusal("recipes", f"recipe {recipe[:12]}… is not named", "Add its digest.")
        if self.unnoised_evaluation:
            return None
        why = "un-noised figures of evaluation users' votes are not allowed"
        return _refusal("unnoised_evaluation", why, "Set it to true, or ask for evaluation.federated.")

    def _expired(self, today: date) -> TermsRefusal | None:
        if today <= self.expires:
            return None
        return _refusal("expires", f"they ended on {self.expires}, today is {today}", "Renew them.")

    def _stranger(self, offer: Offer) -> TermsRefusal | None:
        if not self.recipes or offer.recipe in self.recipes:
            return None
        why = f"recipe {offer.recipe[:12]}… is not named"
        return _refusal("recipes", why, "Read the recipe (`fedpref plan`), then add its digest.")

    def _untrusted(self, offer: Offer) -> TermsRefusal | None:
        if offer.trust not in self.trust:
            accepted = ", ".join(sorted(self.trust)) or "none"
            return _refusal(
                "trust", f"trust `{offer.trust}` is asked for, accepted: {accepted}", "Ask for another trust."
            )
        if offer.trust is not Trust.CENTRAL or (self.server and offer.server == self.server):
            return None
        asked = f"{offer.server[:16]}…" if offer.server else "a server without a verified identity"
        why = f"`central` trusts one server with un-noised sums; {asked} is not the one named"
        return _refusal("server", why, "Name the server's public key in `server`, if you trust it.")

    def _too_few(self, offer: Offer) -> TermsRefusal | None:
        if offer.num_clients >= self.min_clients:
            return None
        why = f"{offer.num_clients} clients are asked, at least {self.min_clients} must be"
        return _refusal("min_clients", why, "Wait for a larger federation.")

    def _over_budget(self, offer: Offer) -> TermsRefusal | None:
        budget = self.budgets.get(offer.unit)
        if budget is None:
            named = ", ".join(sorted(self.budgets)) or "none"
            return _refusal("budgets", f"unit `{offer.unit}` has no budget, units with one: {named}", "Add one.")
        if offer.delta > budget.delta:
            why = f"delta {offer.delta:g} is asked for, at most {budget.delta:g} is allowed"
            return _refusal("budgets", why, "Ask for a smaller target_delta.")
        for adversary in Adversary:
            value, most = offer.epsilon[adversary], budget.epsilon[adversary]
            if adversary is Adversary.SERVER and offer.trust is Trust.CENTRAL:
                continue  # trusted by name, see `server`; no epsilon is claimed against it
            if not value <= most:
                why = f"epsilon against {adversary.described} would be {value:.4f} over all books, at most {most:g} is allowed"
                return _refusal("budgets", why, "Ask for fewer rounds or more noise.")
        return None

    def _labels_exposed(self, offer: Offer) -> TermsRefusal | None:
        most = self.max_label_epsilon
        if most is None or offer.label_epsilon <= most:
            return None
        why = (
            f"randomised labels would spend {offer.label_epsilon:g} over all books, at most {most:g} is allowed"
            if offer.label_epsilon < math.inf
            else f"labels are used as given, and they must be randomised at {most:g} or less"
        )
        return _refusal("max_label_epsilon", why, "Ask with privacy.labels: randomized_response and a smaller total.")

    @classmethod
    def from_json(cls, fields: Any) -> Terms:
        """Decode a mapping; unknown keys and wrong types are errors, nothing is guessed.

        Raises:
            ParameterError: names the key.
        """
        known = {"budgets", "trust", "server", "min_clients", "recipes", "max_label_epsilon", "expires"}
        known |= {"unnoised_evaluation"}
        if not isinstance(fields, dict) or not {"budgets", "trust"} <= set(fields) <= known:
            raise _malformed(f"terms have the keys {', '.join(sorted(known))}, of which budgets and trust are required")
        most = fields.get("max_label_epsilon")
        try:
            return cls(
                budgets={PrivacyUnit(unit): _budget(budget) for unit, budget in fields["budgets"].items()},
                trust=frozenset(Trust(name) for name in fields["trust"]),
                server=_text(fields.get("server", "")),
                min_clients=_count(fields.get("min_clients", 1)),
                recipes=frozenset(_text(digest) for digest in fields.get("recipes", [])),
                max_label_epsilon=None if most is None else _positive(most),
                expires=_day(fields.get("expires", date.max)),
                unnoised_evaluation=_yes_or_no(fields.get("unnoised_evaluation", False)),
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise _malformed(f"{type(error).__name__}: {error}") from None


def _budget(fields: Any) -> Budget:
    if set(fields) != {"delta", "epsilon"} or set(fields["epsilon"]) != {a.value for a in Adversary}:
        raise ValueError("a budget is {delta, epsilon: {reader, other_clients, server}}")
    epsilon = {Adversary(name): _positive(value) for name, value in fields["epsilon"].items()}
    delta = _positive(fields["delta"])
    if delta >= 1:
        raise ValueError(f"delta {delta:g} is no failure probability")
    return Budget(delta, epsilon)


def _positive(value: Any) -> float:
    if type(value) not in {int, float} or not 0 < value < math.inf:
        raise ValueError(f"{value!r} is no positive number")
    return float(value)


def _count(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{value!r} is no number of clients")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"{value!r} is no text")
    return value


def _yes_or_no(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _day(value: Any) -> date:
    day = date.fromisoformat(value) if type(value) is str else value
    if type(day) is not date:
        raise ValueError(f"{value!r} is no day (2027-12-31)")
    return day


def _refusal(term: str, why: str, fix: str) -> TermsRefusal:
    return TermsRefusal(f"The client's terms refuse: `{term}`.", f"{why[0].upper()}{why[1:]}.", fix, term=term)


def _malformed(why: str) -> ParameterError:
    return ParameterError(
        "The client's terms cannot be read.", f"{why[0].upper()}{why[1:]}.", "See docs/terms.md for the form."
    )
