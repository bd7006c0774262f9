"""The integers have the sensitivity that the plan says, whatever the rows; and they decode to what went in."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
from scipy import stats

from privacy.errors import MechanismMisuseError, ParameterError
from privacy.rng import SeededNonPrivateRandom, Stream
from privacy.secagg.choice import Sums, choose_codec, figures
from privacy.secagg.codec import FRACTION, Codec
from privacy.secagg.plan import Cohort
from privacy.units import PrivacyUnit

ROTATION = b"r" * 32
S = 1 << FRACTION


def codec(d: int = 8, *, unit: PrivacyUnit = PrivacyUnit.USER, rotated: bool = False, **changes: Any) -> Codec:
    failure = 0.0 if unit is PrivacyUnit.CLIENT else 1e-9
    fields: dict[str, Any] = {
        "dimension": d,
        "max_grad_norm": 2.0,
        "steps": 50.0,
        "bits": 32,
        "rotated": rotated,
        "clamp": 10**6,
        "unit": unit,
        "rounding_failure": failure,
    }
    return Codec(**{**fields, **changes})


def dither(seed: int = 0) -> Stream:
    return SeededNonPrivateRandom(seed).stream("dither")


def rows_of_trouble(d: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    rows = [np.zeros(d), np.eye(d)[0] * 1e300, np.full(d, 0.5 / 25), np.full(d, math.nan), np.full(d, math.inf)]
    rows += [rng.standard_normal(d) * 10.0**e for e in range(-20, 20, 4)]
    rows += [np.concatenate([[math.inf], rng.standard_normal(d - 1)]), -np.eye(d)[d - 1] * 2.0]
    return np.array(rows)


def test_a_row_on_the_grid_is_never_longer_than_the_clipping_norm() -> None:
    c = codec()
    for row in rows_of_trouble(8):
        value = c.sum_units(row[None]).value
        assert sum(int(v) ** 2 for v in value) <= (50 * S) ** 2
        if not np.isfinite(row).all() or np.abs(row).max() > 1e160:
            assert not value.any()


def test_the_sum_does_not_depend_on_the_order_of_the_units() -> None:
    """Planted bug: float sums, which a unit more or less would change everywhere."""
    c = codec(20)
    rows = np.random.default_rng(1).standard_normal((300, 20)).astype(np.float32)
    a = c.sum_units(rows).value
    b = c.sum_units(rows[::-1]).value
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a - c.sum_units(rows[1:]).value, c.sum_units(rows[:1]).value)
    assert not c.sum_units(np.zeros((0, 20))).value.any()


@pytest.mark.parametrize("rotated", [False, True])
def test_a_unit_moves_the_integers_by_no_more_than_the_sensitivity(rotated: bool) -> None:
    """Through rotation, dither and clamp, with one dither for both data sets; 300 pairs, some clamped hard."""
    rng = np.random.default_rng(2)
    for trial in range(300):
        d = int(rng.integers(1, 40))
        c = codec(d, rotated=rotated, clamp=int(rng.choice([3, 10, 10**6])))
        rows = rng.standard_normal((4, d)) * rng.choice([0.01, 1.0, 100.0], size=(4, 1))
        if trial % 3 == 0:
            rows[0] = np.eye(d)[0] * 5
        y = [c.round(c.sum_units(part), dither(trial), ROTATION).astype(np.int64) for part in (rows, rows[1:])]
        assert int(np.sum((y[0] - y[1]) ** 2)) <= c.sensitivity2
        assert max(np.abs(y[0]).max(), np.abs(y[1]).max()) <= c.clamp


def test_another_dither_for_the_neighbour_would_break_the_sensitivity() -> None:
    """The bug that the shared dither avoids: a unit of norm almost zero seems to move every coordinate."""
    c = codec(5000, steps=1.0)
    x = c.sum_units(np.random.default_rng(3).standard_normal((50, 5000)))
    y = [c.round(x, dither(seed), ROTATION).astype(np.int64) for seed in (1, 2)]
    assert int(np.sum((y[0] - y[1]) ** 2)) > 4 * (1 + 5000 / 400)


@pytest.mark.statistical
def test_what_a_unit_adds_has_the_law_of_its_own_rounding() -> None:
    """floor(x+v+U) - floor(x+U) for fixed x, v: two values, the upper one as often as v's fraction. False alarms 1e-6."""
    c, n = codec(100_000, steps=1000.0), 100_000
    x, v = int(0.37 * S), int(3.3 * S)
    base = c.round(type(c.sum_units(np.zeros((0, n))))(np.full(n, x), c), dither(), ROTATION)
    more = c.round(type(c.sum_units(np.zeros((0, n))))(np.full(n, x + v), c), dither(), ROTATION)
    moved = more.astype(np.int64) - base
    assert set(moved.tolist()) == {3, 4}
    assert stats.binomtest(int((moved == 4).sum()), n, (v % S) / S).pvalue > 1e-6
    assert stats.binomtest(int((moved == 4).sum()), n, 0.5).pvalue < 1e-6


def test_a_client_as_unit_is_rounded_until_its_integer_norm_holds() -> None:
    """Exact: no failure probability. 10^3 vectors of several shapes."""
    c = codec(30, unit=PrivacyUnit.CLIENT, steps=5.0)
    rng = np.random.default_rng(4)
    for trial in range(1000):
        row = rng.standard_normal(30) if trial % 2 else np.full(30, rng.choice([0.5, 1.5, 2.5]) * 0.4)
        y = c.round(c.sum_units(row[None]), dither(trial), ROTATION).astype(np.int64)
        assert int(y @ y) <= c.sensitivity2
    with pytest.raises(ParameterError, match="client"):
        c.sum_units(np.ones((2, 30)))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_longest_row_on_the_finest_grid_does_not_overflow(sign: int) -> None:
    """A client's row is kept in 32 bits; one coordinate may hold all of it."""
    c = codec(3, unit=PrivacyUnit.CLIENT, steps=2.0**15 - 1)
    units = c.sum_units(sign * np.eye(3)[:1] * 1e30)
    assert abs(int(units.value[0]) - sign * (2**31 - 2**16)) < 2**12
    y = c.round(units, dither(), ROTATION)
    assert abs(int(y[0]) - sign * 32767) <= 1


def test_a_clients_rounding_that_never_fits_gives_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    c = codec(30, unit=PrivacyUnit.CLIENT, steps=5.0)
    monkeypatch.setitem(c.__dict__, "sensitivity2", 0)
    assert not c.round(c.sum_units(np.ones((1, 30))), dither(), ROTATION).any()


@pytest.mark.statistical
@pytest.mark.parametrize("rotated", [False, True])
def test_decoding_gives_back_the_mean(rotated: bool) -> None:
    """Rounding is unbiased: the mean over 2,000 dithers is within 5 standard errors of the clipped row everywhere."""
    c = codec(11, rotated=rotated, steps=20.0)
    row = np.linspace(-1, 0.4, 11)
    exact = row * min(1.0, 2.0 / float(np.linalg.norm(row)))
    units = c.sum_units(row[None])
    decoded = np.array([c.decode(c.round(units, dither(i), ROTATION).astype(np.int64), ROTATION) for i in range(2000)])
    error = decoded.mean(axis=0) - exact
    assert np.abs(error).max() < 5 * 0.5 * (2.0 / 20.0) / math.sqrt(2000)
    assert decoded.std() > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"dimension": 0},
        {"max_grad_norm": 0.0},
        {"max_grad_norm": math.inf},
        {"steps": 0.5},
        {"steps": 40_000.0},
        {"bits": 17},
        {"clamp": 0},
        {"clamp": 2**31},
        {"rounding_failure": 0.0},
        {"rounding_failure": 0.1},
        {"unit": PrivacyUnit.CLIENT},
        {"dimension": 2**23, "rotated": True},
    ],
)
def test_a_codec_out_of_range_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ParameterError):
        codec(**{"d": changes.pop("dimension", 8), **changes}) if "unit" not in changes else Codec(
            8, 2.0, 50.0, 32, False, 100, PrivacyUnit.CLIENT, 1e-9
        )


@pytest.mark.parametrize("unit", [PrivacyUnit.USER, PrivacyUnit.CLIENT])
def test_rows_that_come_in_blocks_give_the_same_integers(unit: PrivacyUnit) -> None:
    c = codec(unit=unit)
    rows = 3.0 * np.random.default_rng(4).standard_normal((1 if unit is PrivacyUnit.CLIENT else 7, 8))
    for cuts in ([], [1], [0, 3, 3, 4]):
        blocks = np.split(rows, [cut for cut in cuts if cut <= len(rows)])
        np.testing.assert_array_equal(c.sum_blocks(iter(blocks)).value, c.sum_units(rows).value)
    assert not c.sum_blocks([]).value.any()
    with pytest.raises(ParameterError):
        c.sum_blocks([np.ones((1, 9))])


def test_a_second_row_of_one_client_is_refused_whatever_block_it_comes_in() -> None:
    with pytest.raises(ParameterError, match="2 rows for one client"):
        codec(unit=PrivacyUnit.CLIENT).sum_blocks([np.ones((1, 8)), np.ones((1, 8))])


def test_rows_of_another_length_and_sums_of_another_codec_are_refused() -> None:
    with pytest.raises(ParameterError):
        codec().sum_units(np.ones((1, 9)))
    units = codec().sum_units(np.ones((1, 8)))
    with pytest.raises(MechanismMisuseError):
        codec(steps=51.0).round(units, dither(), ROTATION)
    with pytest.raises(MechanismMisuseError):
        pickle.dumps(units)


# ---- choosing one


def sums(d: int, n: int, least: int, **changes: Any) -> Sums:
    cohort = Cohort(n, least, least, changes.pop("colluders", 0))
    fields: dict[str, Any] = {"unit": PrivacyUnit.USER, "largest_norm": 40.0, "noise_multiplier": 1.67}
    return Sums(d, 1.0, clients=n, honest_shares=cohort.honest_shares, **{**fields, **changes})


@pytest.mark.parametrize(
    ("asked", "bits", "bytes_"),
    [
        (sums(184_320, 10, 9, colluders=1), 20, 460_800),
        (sums(184_320, 100, 90, colluders=10), 24, 552_960),
        (sums(64, 320, 288, unit=PrivacyUnit.CLIENT, largest_norm=1.0, noise_multiplier=2.25), 16, 128),
        (sums(10_000_000, 100, 90, colluders=10), 32, 40_000_000),
    ],
)
def test_the_cheapest_sound_codec_is_chosen(asked: Sums, bits: int, bytes_: int) -> None:
    c, noise = choose_codec(asked)
    shown = figures(c, noise, asked.clients)
    assert (c.bits, c.upload_bytes) == (bits, bytes_)
    assert shown["sensitivity_over_clip"] <= 1.02
    assert shown["wrap_probability"] <= 1e-9
    assert shown["effective_multiplier"] >= asked.noise_multiplier
    assert shown["upload_vs_float32"] <= 1.0
    assert c.clamp >= asked.largest_norm * c.steps


def test_sixteen_bits_need_a_rotation_where_one_coordinate_may_hold_everything() -> None:
    asked = sums(184_320, 10, 9)
    with pytest.raises(ParameterError):
        choose_codec(asked, bits=16, rotated=False)
    c, _ = choose_codec(asked, bits=16, rotated=True)
    assert (c.coordinates, c.upload_bytes) == (262_144, 524_288)


def test_what_fits_no_ring_is_refused() -> None:
    with pytest.raises(ParameterError):
        choose_codec(sums(64, 3000, 2990, largest_norm=1e6))
