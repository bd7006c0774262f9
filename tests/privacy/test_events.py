"""The vocabulary of the ledger is closed: what is not an event is refused, never guessed at."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.errors import UnsupportedEventError
from privacy.events import (
    CappedEvent,
    Event,
    FixedOrderEvent,
    GaussianEvent,
    NonPrivateEvent,
    RandomizedResponseEvent,
    RepeatedEvent,
    TruncatedPoissonEvent,
    TrustedEvent,
    canonical,
    event_from_json,
)
from tests.privacy.books import REPEATABLE

GAUSSIAN = {"kind": "gaussian", "noise": "continuous", "noise_multiplier": 1.5, "sample_rate": 0.1}
DISCRETE = {**GAUSSIAN, "noise": "discrete", "log_ratio": 1e-60, "total_variation": 1e-57}
SLACK = {"log_ratio": 1e-60, "total_variation": 1e-57}
TRUNCATED = {"kind": "truncated_poisson", "noise_multiplier": 1.5, "sample_rate": 0.1, "population": 9, **SLACK}
BLOCK = {"kind": "fixed_order", "noise_multiplier": 1.5, "blocks": 10, "block": 0, "order": "v1", **SLACK}
CAPPED = {"kind": "capped", "noise_multiplier": 1.5, "cap": 3, "scope": "run a", **SLACK}
LABELS = {"kind": "randomized_response", "label_epsilon": 1.0, "labels_per_unit": 20}
ONE_OF_EACH: list[Event] = [
    GaussianEvent(1.5, 0.1),
    GaussianEvent(1.5, 0.1, "discrete", 1e-60, 1e-57),
    TruncatedPoissonEvent(1.5, 0.1, 300, 50, 1e-60, 1e-57),
    FixedOrderEvent(1.5, 10, 9, "v1", 1e-60, 1e-57),
    CappedEvent(1.5, 3, "run a", 1e-60, 1e-57),
    RepeatedEvent(GaussianEvent(1.5, 0.1, "discrete", 1e-60, 1e-57), 20),
    RandomizedResponseEvent(1.0, 20),
    TrustedEvent(),
    NonPrivateEvent("no noise"),
]


def test_every_kind_is_tried_below() -> None:
    assert {type(event) for event in ONE_OF_EACH} == set(get_args(Event))


@pytest.mark.parametrize("event", ONE_OF_EACH, ids=lambda e: e.kind)
def test_an_event_survives_its_json(event: Event) -> None:
    assert event_from_json(json.loads(canonical(event.to_json()))) == event


@given(
    z=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    q=st.floats(min_value=0, max_value=1, exclude_min=True),
)
@REPEATABLE
def test_a_gaussian_event_survives_its_json_to_the_last_bit(z: float, q: float) -> None:
    assert event_from_json(json.loads(canonical(GaussianEvent(z, q).to_json()))) == GaussianEvent(z, q)


@given(st.text())
@REPEATABLE
def test_any_reason_survives_its_json(reason: str) -> None:
    assert event_from_json(json.loads(canonical(NonPrivateEvent(reason).to_json()))) == NonPrivateEvent(reason)


@pytest.mark.parametrize("event", ONE_OF_EACH, ids=lambda e: e.kind)
def test_json_holds_every_field_and_the_kind(event: Event) -> None:
    fields = {"kind", *(f.name for f in dataclasses.fields(event))}
    if event == GaussianEvent(1.5, 0.1):  # as old ledgers have it
        fields -= {"log_ratio", "total_variation"}
    assert set(event.to_json()) == fields


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"kind": "laplace", "noise_multiplier": 1.0, "sample_rate": 1.0}, id="unknown kind"),
        pytest.param({"kind": "dp_accounting.GaussianDpEvent", "noise_multiplier": 1.0}, id="an import path as kind"),
        pytest.param({"kind": "trusted", "module": "os", "name": "system"}, id="an import path beside a kind"),
        pytest.param({"py/object": "privacy.events.TrustedEvent"}, id="a pickle in JSON"),
        pytest.param({**GAUSSIAN, "class": "privacy.events.TrustedEvent"}, id="surplus field"),
        pytest.param({**GAUSSIAN, "count": 0}, id="a count of its own"),
        pytest.param({k: v for k, v in GAUSSIAN.items() if k != "sample_rate"}, id="missing field"),
        pytest.param({k: v for k, v in GAUSSIAN.items() if k != "noise"}, id="missing sampler"),
        pytest.param({k: v for k, v in GAUSSIAN.items() if k != "kind"}, id="missing kind"),
        pytest.param({**GAUSSIAN, "kind": ["gaussian"]}, id="a list as kind"),
        pytest.param({**GAUSSIAN, "kind": None}, id="null as kind"),
        pytest.param({**GAUSSIAN, "noise": "uniform"}, id="unknown sampler"),
        pytest.param({**GAUSSIAN, "noise": "discrete"}, id="discrete without its slack"),
        pytest.param({**GAUSSIAN, **SLACK}, id="continuous with slack"),
        pytest.param({**DISCRETE, "log_ratio": -1e-60}, id="negative slack"),
        pytest.param({**DISCRETE, "total_variation": 1.0}, id="slack that leaves nothing"),
        pytest.param({**DISCRETE, "total_variation": 0}, id="int for slack"),
        pytest.param({**TRUNCATED, "largest_cohort": 10}, id="more drawn than there are"),
        pytest.param({**TRUNCATED, "largest_cohort": 0}, id="nobody may be drawn"),
        pytest.param({**TRUNCATED, "largest_cohort": 5, "population": 2**31}, id="a population beyond any"),
        pytest.param({**BLOCK, "block": 10}, id="a block beyond the order"),
        pytest.param({**BLOCK, "block": -1}, id="a negative block"),
        pytest.param({**BLOCK, "block": True}, id="bool for block"),
        pytest.param({**BLOCK, "order": None}, id="an order without a name"),
        pytest.param({**CAPPED, "cap": 0}, id="a cap of nothing"),
        pytest.param({**CAPPED, "cap": 3.0}, id="float for cap"),
        pytest.param({**LABELS, "label_epsilon": 0.0}, id="labels for nothing"),
        pytest.param({**LABELS, "labels_per_unit": 0}, id="no labels"),
        pytest.param({"kind": "repeated", "event": DISCRETE, "times": 0}, id="repeated never"),
        pytest.param({"kind": "repeated", "event": {"kind": "trusted"}, "times": 2}, id="trust repeated"),
        pytest.param({"kind": "repeated", "event": None, "times": 2}, id="nothing repeated"),
        pytest.param(
            {"kind": "repeated", "event": {"kind": "repeated", "event": DISCRETE, "times": 2}, "times": 2}, id="nested"
        ),
        pytest.param({**GAUSSIAN, "noise_multiplier": 1}, id="int for noise_multiplier"),
        pytest.param({**GAUSSIAN, "sample_rate": 1}, id="int for sample_rate"),
        pytest.param({**GAUSSIAN, "sample_rate": True}, id="bool for sample_rate"),
        pytest.param({**GAUSSIAN, "noise_multiplier": "1.5"}, id="string for noise_multiplier"),
        pytest.param({**GAUSSIAN, "noise_multiplier": None}, id="null for noise_multiplier"),
        pytest.param({**GAUSSIAN, "noise_multiplier": math.nan}, id="NaN noise"),
        pytest.param({**GAUSSIAN, "noise_multiplier": math.inf}, id="infinite noise"),
        pytest.param({**GAUSSIAN, "noise_multiplier": 0.0}, id="no noise"),
        pytest.param({**GAUSSIAN, "noise_multiplier": -1.5}, id="negative noise"),
        pytest.param({**GAUSSIAN, "sample_rate": math.nan}, id="NaN rate"),
        pytest.param({**GAUSSIAN, "sample_rate": 0.0}, id="rate zero"),
        pytest.param({**GAUSSIAN, "sample_rate": 1.0000001}, id="rate above one"),
        pytest.param({"kind": "trusted", "reason": "x"}, id="trusted with a reason"),
        pytest.param({"kind": "non_private"}, id="non-private without a reason"),
        pytest.param({"kind": "non_private", "reason": 3}, id="a number as reason"),
        pytest.param({}, id="empty"),
        pytest.param(None, id="null"),
        pytest.param([GAUSSIAN], id="a list"),
        pytest.param("trusted", id="a string"),
    ],
)
def test_what_is_not_in_the_table_is_refused(fields: Any) -> None:
    with pytest.raises(UnsupportedEventError):
        event_from_json(fields)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["kind", "noise", "noise_multiplier", "sample_rate", "reason"]), JSON))
@REPEATABLE
def test_any_json_is_an_event_or_a_coded_refusal(fields: dict[str, Any]) -> None:
    try:
        event = event_from_json(fields)
    except UnsupportedEventError:
        return
    assert event.to_json() == fields


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=5))
@REPEATABLE
def test_canonical_json_is_one_text_whatever_the_order_of_keys(value: dict[str, Any]) -> None:
    text = canonical(value)
    assert canonical(dict(reversed(value.items()))) == text
    assert canonical(json.loads(text)) == text
    assert text.isascii()


def test_canonical_json_is_pinned() -> None:
    value = {"b": [1, 1.0, 0.1, 1e-7], "a": {"ε": "é\n", "Z": None, "A": True}}
    assert canonical(value) == '{"a":{"A":true,"Z":null,"\\u03b5":"\\u00e9\\n"},"b":[1,1.0,0.1,1e-07]}'
    assert canonical(GaussianEvent(1.5, 0.1).to_json()) == (
        '{"kind":"gaussian","noise":"continuous","noise_multiplier":1.5,"sample_rate":0.1}'
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_canonical_json_has_no_nan_and_no_infinity(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical({"x": [value]})


def test_a_sampled_event_is_poisson_sampled_for_the_accountant_and_an_unamplified_one_is_not() -> None:
    import dp_accounting

    gaussian = dp_accounting.GaussianDpEvent(1.5)
    assert GaussianEvent(1.5, 1.0).to_dp_event() == gaussian
    assert GaussianEvent(1.5, 0.1).to_dp_event() == dp_accounting.PoissonSampledDpEvent(0.1, gaussian)
