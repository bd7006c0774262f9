"""Streams: uniform words, honest coins, and no stream twice."""

from __future__ import annotations

import itertools
import math
import os
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privacy.errors import ParameterError
from privacy.rng import RandomSource, SeededNonPrivateRandom, Stream, SystemRandom
from tests.privacy.books import REPEATABLE

KEY = bytes(range(32))
TWO_64 = 2**64


class FixedWords(Stream):
    """A stream that says what it is told to."""

    def __init__(self, words: list[int]) -> None:
        super().__init__(KEY)
        self._told = words

    def words(self, n: int) -> npt.NDArray[np.uint64]:
        told, self._told = self._told[:n], self._told[n:]
        return np.array(told, dtype=np.uint64)


def test_words_are_the_key_stream_of_aes_256_in_counter_mode() -> None:
    block = Cipher(algorithms.AES(KEY), modes.ECB()).encryptor()  # noqa: S305 - the block cipher itself is the oracle
    oracle = b"".join(block.update(counter.to_bytes(16, "big")) for counter in range(5))
    expected = [int.from_bytes(oracle[i : i + 8], "little") for i in range(0, 80, 8)]
    assert Stream(KEY).words(10).tolist() == expected


def test_a_stream_goes_on_where_it_stopped() -> None:
    whole, parts = Stream(KEY), Stream(KEY)
    assert whole.words(8).tolist() == [*parts.words(3).tolist(), *parts.words(0).tolist(), *parts.words(5).tolist()]


@given(st.floats(0.0, 1.0, exclude_max=True))
@REPEATABLE
def test_the_threshold_of_a_coin_is_rounded_down(probability: float) -> None:
    threshold = math.floor(Fraction(probability) * TWO_64)  # the oracle: exact rational arithmetic
    assert Fraction(threshold, TWO_64) <= Fraction(probability) < Fraction(threshold + 1, TWO_64)
    told = [w for w in (0, threshold - 1, threshold, threshold + 1, TWO_64 - 1) if 0 <= w < TWO_64]
    assert FixedWords(told).bernoulli(probability, len(told)).tolist() == [w < threshold for w in told]


def test_a_coin_of_probability_zero_never_and_of_one_always_falls_on_its_face() -> None:
    extremes = [0, 1, TWO_64 - 1]
    assert not FixedWords(extremes).bernoulli(0.0, 3).any()
    assert not FixedWords(extremes).bernoulli(1e-300, 3).any()
    assert FixedWords(extremes).bernoulli(1.0, 3).all()
    assert Stream(KEY).bernoulli(0.5, 0).shape == (0,)


@pytest.mark.parametrize("probability", [-1e-9, 1.0 + 1e-9, math.nan, math.inf, -math.inf])
def test_a_probability_outside_zero_to_one_is_refused(probability: float) -> None:
    with pytest.raises(ParameterError):
        Stream(KEY).bernoulli(probability, 1)


@pytest.mark.statistical
@pytest.mark.parametrize("probability", [0.003, 0.25, 0.9])
def test_coins_fall_as_often_as_they_should(probability: float) -> None:
    """False-alarm rate 1e-6 a case (two-sided binomial test on 200,000 coins)."""
    heads = int(SeededNonPrivateRandom(1).stream("coins", round=1).bernoulli(probability, 200_000).sum())
    assert stats.binomtest(heads, 200_000, probability).pvalue > 1e-6
    assert stats.binomtest(heads, 200_000, probability * 1.1 + 0.003).pvalue < 1e-6  # the test can fail


def pairwise_z(coins: npt.NDArray[np.bool_], probability: float) -> npt.NDArray[np.float64]:
    """z score of the covariance of every pair of columns; [rounds, units] -> [units (units - 1) / 2]."""
    centred = coins - probability
    scores = []
    for i, j in itertools.combinations(range(coins.shape[1]), 2):
        scores.append((centred[:, i] * centred[:, j]).sum() / (probability * (1 - probability) * math.sqrt(len(coins))))
    return np.array(scores)


@pytest.mark.statistical
def test_any_two_units_coins_have_covariance_zero() -> None:
    """False-alarm rate 1e-6 over all 190 pairs (Bonferroni); a coin shared by two units must be found."""
    rng = SeededNonPrivateRandom(2)
    coins = np.stack([rng.stream("coins", round=r, node="a").bernoulli(0.3, 20) for r in range(4000)])
    limit = stats.norm.isf(1e-6 / 190 / 2)
    assert np.abs(pairwise_z(coins, 0.3)).max() < limit
    coins[:, 7] = coins[:, 12]  # the planted bug: one coin for a client instead of one for each of its users
    assert np.abs(pairwise_z(coins, 0.3)).max() > limit


@pytest.mark.statistical
def test_coins_of_one_unit_are_independent_from_round_to_round() -> None:
    """False-alarm rate 1e-6 (lag-one covariance of 1 unit over 4,000 rounds)."""
    rng = SeededNonPrivateRandom(3)
    coins = np.array([rng.stream("coins", round=r, node="a").bernoulli(0.3, 1)[0] for r in range(4000)])
    assert abs(pairwise_z(np.stack([coins[:-1], coins[1:]], axis=1), 0.3)[0]) < stats.norm.isf(1e-6 / 2)


def test_streams_of_other_seeds_purposes_rounds_and_parties_have_nothing_in_common() -> None:
    labels: list[tuple[int, str, dict[str, int | str]]] = [
        (seed, purpose, {"round": r, who: party})  # type: ignore[dict-item]
        for seed, purpose, r, who, party in itertools.product(
            (0, 1), ("coins", "noise"), (1, 2, 11), ("client", "node"), (0, 1, 11, "0", "1", "local")
        )
    ]
    labels += [(0, "noise", {"round": 1}), (0, "noise", {}), (0, "noise", {"round": "1"}), (0, "noise", {"client": 1})]
    words = [SeededNonPrivateRandom(s).stream(p, **kv).words(64).tolist() for s, p, kv in labels]
    assert len({word for stream in words for word in stream}) == 64 * len(labels)


def test_the_seeded_source_repeats_itself_and_says_that_it_is_not_private() -> None:
    first, second = SeededNonPrivateRandom(5), SeededNonPrivateRandom(5)
    assert first.stream("noise", round=1, client=2).words(9).tolist() == (
        second.stream("noise", client=2, round=1).words(9).tolist()
    )
    assert first.private is False
    assert not isinstance(first, SystemRandom)


def test_the_system_source_never_repeats_a_stream_under_equal_labels() -> None:
    rng: RandomSource = SystemRandom()
    assert rng.private is True
    words = [rng.stream("noise", round=1, client=1).words(4).tolist() for _ in range(500)]
    assert len({word for stream in words for word in stream}) == 2000


def test_the_system_source_takes_256_fresh_bits_of_the_operating_system_for_every_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def urandom(n: int) -> bytes:
        asked.append(n)
        return KEY

    monkeypatch.setattr(os, "urandom", urandom)
    rng = SystemRandom()
    assert rng.stream("coins").words(3).tolist() == Stream(KEY).words(3).tolist()
    rng.stream("coins")
    assert asked == [32, 32]
