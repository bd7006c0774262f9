"""Clipping: no unit moves a sum by more than C, whatever it holds."""

from __future__ import annotations

import copy
import math
import pickle
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from privacy.clipping import INSIDE, ClippedSum, clip_and_sum, grid_step
from privacy.errors import MechanismMisuseError, ParameterError
from tests.privacy.books import REPEATABLE

Rows = npt.NDArray[np.floating]


def clip_slowly(rows: Rows, group: list[int], num_groups: int, bound: float) -> list[list[float]]:
    """The definition, one number at a time."""
    width = rows.shape[1]
    columns: list[list[list[float]]] = [[[] for _ in range(width)] for _ in range(num_groups)]
    for row, client in zip(rows.tolist(), group, strict=True):
        try:
            norm = math.sqrt(math.fsum(x * x for x in row))
        except OverflowError:
            norm = math.inf
        if not math.isfinite(norm):
            continue
        scale = 1.0 if norm <= bound * INSIDE else bound * INSIDE / norm
        for j, x in enumerate(row):
            columns[client][j].append(x * scale)
    return [[math.fsum(column) for column in client] for client in columns]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        pytest.param([math.nan, 1.0], [0.0, 0.0], id="NaN"),
        pytest.param([math.inf, 1.0], [0.0, 0.0], id="inf"),
        pytest.param([1.0, -math.inf], [0.0, 0.0], id="-inf"),
        pytest.param([math.inf, math.nan], [0.0, 0.0], id="inf and NaN"),
        pytest.param([1e200, 1.0], [0.0, 0.0], id="squared norm overflows"),
        pytest.param([1.3e154, 1.3e154], [0.0, 0.0], id="sum of squares overflows"),
        pytest.param([1e30, 0.0], [2.0 * INSIDE, 0.0], id="huge but finite"),
        pytest.param([0.0, 0.0], [0.0, 0.0], id="zero"),
        pytest.param([-0.0, 0.0], [0.0, 0.0], id="minus zero"),
        pytest.param([5e-324, 0.0], [0.0, 0.0], id="smallest number"),
        pytest.param([1.2, -0.5], [1.2, -0.5], id="inside the bound"),
        pytest.param([2.0 * INSIDE, 0.0], [2.0 * INSIDE, 0.0], id="on the bound"),
        pytest.param([2.0, 0.0], [2.0 * INSIDE, 0.0], id="at C"),
        pytest.param([30.0, -40.0], [1.2 * INSIDE, -1.6 * INSIDE], id="outside the bound"),
    ],
)
def test_a_row_contributes_what_the_table_says(row: list[float], expected: list[float]) -> None:
    (only,) = clip_and_sum(np.array([row]), np.array([0]), 1, 2.0)
    np.testing.assert_allclose(only.value, expected, rtol=0, atol=only.step)
    assert (np.abs(only.value) <= np.abs(expected)).all()  # cut towards zero, never away from it
    assert (only.value / only.step).tolist() == np.rint(only.value / only.step).tolist()
    assert only.l2_bound == 2.0


@pytest.mark.parametrize("value", [3e38, math.inf, math.nan])
def test_fp32_rows_are_squared_in_fp64(value: float) -> None:
    (only,) = clip_and_sum(np.array([[value, 0.0]], dtype=np.float32), np.array([0]), 1, 1.0)
    assert only.value.dtype == np.float64
    np.testing.assert_allclose(only.value, [INSIDE if math.isfinite(value) else 0.0, 0.0], atol=only.step)


def test_a_client_without_a_unit_has_the_sum_zero() -> None:
    sums = clip_and_sum(np.ones((2, 3)), np.array([2, 2]), 4, 1.0)
    assert [bool(s.value.any()) for s in sums] == [False, False, True, False]
    assert [s.value.shape for s in sums] == [(3,)] * 4


def test_no_unit_at_all_gives_zeros() -> None:
    sums = clip_and_sum(np.zeros((0, 3)), np.zeros(0, dtype=np.int64), 2, 1.0)
    assert [s.value.tolist() for s in sums] == [[0.0] * 3] * 2
    assert clip_and_sum(np.zeros((0, 3)), np.zeros(0, dtype=np.int64), 0, 1.0) == []


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf, 5e-324, 1e-200, 1e200])
def test_a_bound_that_bounds_nothing_is_refused(bound: float) -> None:
    with pytest.raises(ParameterError):
        clip_and_sum(np.ones((1, 1)), np.array([0]), 1, bound)


def test_the_rows_themselves_are_left_alone() -> None:
    rows = np.array([[3.0, math.nan], [3.0, 4.0]])
    before = rows.copy()
    clip_and_sum(rows, np.array([0, 0]), 1, 1.0)
    np.testing.assert_array_equal(rows, before)


NASTY = [0.0, 1.0, -1.0, 1e-200, 1e30, -1e30, 1e154, 1e200, -1e308, math.inf, -math.inf, math.nan]
NUMBERS = st.one_of(st.floats(-10, 10), st.sampled_from(NASTY), st.floats(allow_nan=True, allow_infinity=True))


@st.composite
def federations(draw: st.DrawFn) -> tuple[Rows, list[int], float]:
    """Rows, the client of each (few clients, so that units share them), and a bound."""
    units, width = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    rows = draw(hnp.arrays(np.float64, (units, width), elements=NUMBERS))
    group = draw(st.lists(st.integers(0, 2), min_size=units, max_size=units))
    return rows, group, draw(st.floats(1e-6, 1e6))


@given(federations(), st.data())
@settings(REPEATABLE, max_examples=300)
def test_zeroing_any_one_unit_moves_the_sums_by_at_most_c(
    federation: tuple[Rows, list[int], float], data: st.DataObject
) -> None:
    rows, group, bound = federation
    unit = data.draw(st.integers(0, len(rows) - 1))
    without = rows.copy()
    without[unit] = 0.0
    before = clip_and_sum(rows, np.array(group), 3, bound)
    after = clip_and_sum(without, np.array(group), 3, bound)
    moved = np.concatenate([a.value - b.value for a, b in zip(before, after, strict=True)])
    steps = [int(x) for x in (moved / grid_step(bound, rows.shape[1])).tolist()]
    assert sum(x * x for x in steps) <= Fraction(bound / grid_step(bound, rows.shape[1])) ** 2  # exact integers
    for client in {0, 1, 2} - {group[unit]}:
        np.testing.assert_array_equal(before[client].value, after[client].value)


@given(federations())
@settings(REPEATABLE, max_examples=300)
def test_sums_are_those_of_the_slow_definition(federation: tuple[Rows, list[int], float]) -> None:
    rows, group, bound = federation
    sums = clip_and_sum(rows, np.array(group), 3, bound)
    oracle = clip_slowly(rows, group, 3, bound)
    np.testing.assert_allclose([s.value for s in sums], oracle, rtol=1e-9, atol=(len(rows) + 1e-6) * sums[0].step)


def test_the_order_of_units_and_the_split_into_clients_do_not_change_the_total() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 6)) * 3
    group = np.arange(50) % 4
    one = clip_and_sum(rows, np.zeros(50, dtype=int), 1, 1.0)[0]
    many = clip_and_sum(rows[::-1], group, 4, 1.0)
    total = many[0] + many[1] + many[2] + many[3]
    np.testing.assert_array_equal(total.value, one.value)  # integers: to the last bit
    assert total.l2_bound == 1.0


def test_a_clipped_sum_cannot_be_pickled_or_copied() -> None:
    clipped = ClippedSum(np.ones(3), 1.0)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(MechanismMisuseError):
            pickle.dumps(clipped, protocol)
    with pytest.raises(MechanismMisuseError):
        copy.copy(clipped)
    with pytest.raises(MechanismMisuseError):
        copy.deepcopy({"hidden inside": [clipped]})


def test_a_clipped_sum_has_no_serialiser_of_its_own() -> None:
    offered = {name for name in dir(ClippedSum) if not name.startswith("_")}
    assert offered <= {"value", "l2_bound", "step"}


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(ClippedSum(np.ones(3), 2.0), id="other bound"),
        pytest.param(ClippedSum(np.ones(3), 1.0 + 1e-15), id="a hair's other bound"),
        pytest.param(ClippedSum(np.ones(3), math.nan), id="bound NaN"),
        pytest.param(ClippedSum(np.ones(1), 1.0), id="a shape that would broadcast"),
        pytest.param(ClippedSum(np.ones((3, 1)), 1.0), id="other shape"),
    ],
)
def test_sums_of_different_bounds_or_shapes_do_not_add(other: ClippedSum) -> None:
    with pytest.raises(MechanismMisuseError):
        ClippedSum(np.ones(3), 1.0) + other


@pytest.mark.parametrize("group", [[0, -1], [0, 2], [0], [0, 0, 0]], ids=str)
def test_a_row_of_no_client_is_refused(group: list[int]) -> None:
    """A negative number would count from the end: another client's sum."""
    with pytest.raises(MechanismMisuseError):
        clip_and_sum(np.ones((2, 3)), np.array(group), 2, 1.0)


@pytest.mark.parametrize("bound", [2.0**-200, 1e-30, 1e30, 2.0**200])
def test_bounds_at_the_ends_of_the_range_bound(bound: float) -> None:
    rows = np.array([[1.0, 1.0], [bound, bound], [1e-60, 0.0], [1e150, -1e150]])
    for row in rows:
        (only,) = clip_and_sum(row[None], np.array([0]), 1, bound)
        assert math.hypot(*only.value) <= bound
        if math.hypot(*row) >= bound:
            assert math.hypot(*only.value) >= bound * (1 - 1e-4)


@pytest.mark.parametrize("dimension", [1, 64, 65, 4000, 184_320, 2**22])
@pytest.mark.parametrize("bound", [0.37, 1.0, 1.999])
def test_the_grid_is_a_power_of_two_that_costs_little_length(dimension: int, bound: float) -> None:
    step = grid_step(bound, dimension)
    assert math.frexp(step)[0] == 0.5
    assert math.sqrt(dimension) * step <= bound * 2.0**-13
    assert 2.0**16 <= bound / step < 2.0**25


def test_rounding_the_sum_instead_of_every_unit_would_break_the_bound() -> None:
    """The planted bug: contributions added in floats, their sum rounded to the grid."""
    bound, step = 1.0, grid_step(1.0, 4)
    unit = np.full(4, 0.5 * INSIDE)
    unit[:] = (np.floor(unit / step) + 0.5) * step  # norm within C (1 - 1e-6) still
    others = np.full(4, 0.25 * step)
    assert np.linalg.norm(unit) <= bound
    moved = np.rint((unit + others) / step) - np.rint(others / step)
    ours = clip_and_sum(np.array([unit, others]), np.zeros(2, dtype=int), 1, bound)[0].value
    assert np.linalg.norm(moved * step) > np.linalg.norm(unit)  # longer than what was clipped
    assert np.linalg.norm(ours) <= np.linalg.norm(unit)
