"""Randomised response: the booked flip probability and no other; labels are drawn once."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from privacy.accounting import epsilon
from privacy.errors import LabelsError, LedgerWriteError, ParameterError, UnsupportedEventError
from privacy.events import Event, GaussianEvent, RandomizedResponseEvent, TrustedEvent
from privacy.labels import KeptLabels, RandomizedResponse
from privacy.rng import SeededNonPrivateRandom, Stream, SystemRandom

NAMES = [f"client|user{i % 7}|pair{i}" for i in range(500)]
ONE = RandomizedResponse(1.0, 20)


def stream(seed: int = 1) -> Stream:
    return SeededNonPrivateRandom(seed).stream("labels")


@pytest.mark.parametrize(("eps", "flip"), [(1.0, 0.2689414), (math.log(3), 0.25), (4.0, 0.0179862)])
def test_the_flip_probability_is_that_of_warner(eps: float, flip: float) -> None:
    assert RandomizedResponse(eps, 1).flip_probability == pytest.approx(flip, rel=1e-6)


@pytest.mark.statistical
@pytest.mark.parametrize("eps", [0.5, 1.0, 3.0])
def test_labels_flip_at_the_booked_rate_and_at_no_other(eps: float) -> None:
    """False-alarm rate 1e-6 (binomial, 20,000 coins); 2/3 and 3/2 of the rate must be rejected."""
    response = RandomizedResponse(eps, 1)
    flips = int(response.draw(stream(), 20_000).sum())
    assert stats.binomtest(flips, 20_000, response.flip_probability).pvalue > 1e-6
    for wrong in (2 / 3, 3 / 2):
        assert stats.binomtest(flips, 20_000, response.flip_probability * wrong).pvalue < 1e-6


@pytest.mark.parametrize("eps", [0.3, 1.0, 8.0, 40.0])
def test_the_probability_of_either_answer_differs_by_at_most_exp_epsilon(eps: float) -> None:
    """Counting words: "keep" holds for at most exp(eps) times as many of the 2^64 words as "flip"."""
    keep = math.nextafter(1.0 / (1.0 + math.exp(-eps)), 0.0)
    numerator, denominator = keep.as_integer_ratio()
    kept = (numerator << 64) // denominator
    assert kept / (2**64 - kept) <= math.exp(eps) * (1 + 1e-15)


def test_the_total_of_labels_is_pure_and_counts_every_label_of_a_unit() -> None:
    for delta in (1e-9, 1e-2):
        assert epsilon({ONE.event: 1}, delta) == 20.0
        assert epsilon({ONE.event: 2, RandomizedResponseEvent(0.5, 3): 1}, delta) == 41.5


def test_the_total_of_labels_stands_apart() -> None:
    with pytest.raises(UnsupportedEventError):
        epsilon({ONE.event: 1, GaussianEvent(8.0, 1.0): 1}, 1e-5)
    mixed: dict[Event, int] = {ONE.event: 1, TrustedEvent(): 1}
    assert epsilon(mixed, 1e-5) == math.inf


@pytest.mark.parametrize(
    ("eps", "labels"), [(0.0, 1), (-1.0, 1), (math.nan, 1), (math.inf, 1), (41.0, 1), (1.0, 0), (1.0, -2)]
)
def test_what_randomises_nothing_is_refused(eps: float, labels: int) -> None:
    with pytest.raises(ParameterError):
        RandomizedResponse(eps, labels)


def test_labels_are_drawn_once_and_kept(tmp_path: Path) -> None:
    kept = KeptLabels(tmp_path / "labels.bin")
    kept.draw(NAMES, ONE, SystemRandom().stream("labels"))
    first = kept.flips(NAMES)
    again = KeptLabels(tmp_path / "labels.bin")
    np.testing.assert_array_equal(again.flips(NAMES[::-1]), first[::-1])  # by name, in any order
    np.testing.assert_array_equal(again.flips(NAMES[:3]), first[:3])
    with pytest.raises(LabelsError):
        again.draw(NAMES, ONE, SystemRandom().stream("labels"))
    np.testing.assert_array_equal(again.flips(NAMES), first)


def test_the_kept_flips_are_those_that_were_drawn(tmp_path: Path) -> None:
    kept = KeptLabels(tmp_path / "labels.bin")
    kept.draw(NAMES, ONE, stream())
    np.testing.assert_array_equal(kept.flips(NAMES), ONE.draw(stream(), len(NAMES)))
    assert (tmp_path / "labels.bin").stat().st_mode & 0o777 == 0o600


def test_no_record_draws_nothing(tmp_path: Path) -> None:
    kept = KeptLabels(tmp_path / "labels.bin")
    kept.draw([], ONE, stream())
    assert kept.drawn
    assert kept.flips([]).shape == (0,)


def test_records_that_were_not_drawn_have_no_label(tmp_path: Path) -> None:
    kept = KeptLabels(tmp_path / "labels.bin")
    with pytest.raises(LabelsError):
        kept.flips(NAMES[:1])
    kept.draw(NAMES[:4], ONE, stream())
    with pytest.raises(LabelsError):
        kept.flips(NAMES[:5])


def test_two_records_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelsError):
        KeptLabels(tmp_path / "labels.bin").draw(["a", "a"], ONE, stream())
    assert not (tmp_path / "labels.bin").exists()


def test_every_changed_byte_of_the_kept_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "labels.bin"
    KeptLabels(path).draw(NAMES[:3], ONE, stream())
    data = path.read_bytes()
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(LabelsError):
            KeptLabels(path).flips(NAMES[:3])
    for cut in (0, 10, len(data) - 1, len(data) - 33):
        path.write_bytes(data[:cut])
        with pytest.raises(LabelsError):
            KeptLabels(path).flips(NAMES[:3])


def test_a_disk_that_refuses_keeps_nothing(tmp_path: Path) -> None:
    with pytest.raises(LedgerWriteError):
        KeptLabels(tmp_path / "missing" / "labels.bin").draw(NAMES, ONE, stream())
