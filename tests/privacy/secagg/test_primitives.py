"""Shamir, packing, pads, rotation, keys and wire, each against something slow and obvious."""

from __future__ import annotations

import itertools
import os
import pickle

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from privacy.errors import ParameterError
from privacy.secagg import keys as k
from privacy.secagg.errors import ForgedMessage, MalformedMessage
from privacy.secagg.masks import add_pads
from privacy.secagg.packing import BITS, centred, pack, packed_size, unpack, word
from privacy.secagg.rotation import hadamard, signs
from privacy.secagg.shamir import PRIME, SHARE_BYTES, Interpolation, split
from privacy.secagg.wire import divide, join, open_signed, sign
from tests.privacy.books import REPEATABLE

SECRET = bytes(range(32))


def test_any_t_shares_give_the_secret_and_no_fewer_do() -> None:
    shares = split(SECRET, 3, [1, 2, 5, 9, 2**32])
    for some in itertools.combinations(shares, 3):
        assert Interpolation(some).secret({x: shares[x] for x in some}) == SECRET
    for some in itertools.combinations(shares, 2):
        assert Interpolation(some).secret({x: shares[x] for x in some}) != SECRET
    assert {len(s) for s in shares.values()} == {SHARE_BYTES}


def test_two_shares_of_three_fit_every_secret() -> None:
    """t - 1 shares say nothing: for another secret there is a polynomial through the same two points."""
    shares = {x: int.from_bytes(s, "big") for x, s in split(SECRET, 3, [1, 2, 3]).items()}
    other = 12345
    third = Interpolation([1, 2, 3])
    c = third._coefficients
    missing = (other - c[1] * shares[1] - c[2] * shares[2]) * pow(c[3], -1, PRIME) % PRIME
    found = third.secret(
        {1: shares[1].to_bytes(66, "big"), 2: shares[2].to_bytes(66, "big"), 3: missing.to_bytes(66, "big")}
    )
    assert found == other.to_bytes(32, "big")


def test_a_wrong_share_gives_no_secret_or_another() -> None:
    shares = split(SECRET, 2, [1, 2])
    shares[2] = bytes(65) + b"\1"
    assert Interpolation([1, 2]).secret(shares) != SECRET


@pytest.mark.parametrize(
    ("secret", "threshold", "points"),
    [(b"short", 2, [1, 2]), (SECRET, 1, [1, 2]), (SECRET, 3, [1, 2]), (SECRET, 2, [1, 1, 2]), (SECRET, 2, [0, 1])],
)
def test_what_cannot_be_shared_is_refused(secret: bytes, threshold: int, points: list[int]) -> None:
    with pytest.raises(ParameterError):
        split(secret, threshold, points)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40), st.sampled_from(BITS))
@REPEATABLE
def test_packing_keeps_every_bit_of_the_ring(values: list[int], bits: int) -> None:
    vector = np.array(values, dtype=np.uint32).astype(word(bits))
    data = bytes(pack(vector, bits))
    assert len(data) == packed_size(len(values), bits)
    assert (unpack(data, len(values), bits) & ((1 << bits) - 1)).tolist() == [v % (1 << bits) for v in values]
    half = 1 << (bits - 1)
    assert centred(vector, bits).tolist() == [(v + half) % (2 * half) - half for v in values]


def test_a_ring_that_is_not_packed_is_refused() -> None:
    with pytest.raises(ParameterError):
        word(17)


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
@pytest.mark.parametrize("size", [0, 1, 7, 40_000, 100_001])
def test_pads_are_the_key_stream_of_aes_and_cancel(dtype: str, size: int) -> None:
    keys = [os.urandom(32) for _ in range(3)]
    vector = np.arange(size, dtype=np.uint32).astype(dtype)
    expected = vector.copy()
    for key, sign_of in zip(keys, (1, 1, -1), strict=True):
        counter = (2).to_bytes(16, "big")
        stream = Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor().update(bytes(vector.nbytes))
        pad = np.frombuffer(stream, dtype=dtype)
        expected = expected + pad if sign_of > 0 else expected - pad
    masked = vector.copy()
    add_pads(masked, keys[:2], keys[2:])
    np.testing.assert_array_equal(masked, expected)
    add_pads(masked, keys[2:], keys[:2])
    np.testing.assert_array_equal(masked, vector)


@pytest.mark.parametrize("log2", range(1, 13))
def test_the_transform_is_the_hadamard_matrix_exactly(log2: int) -> None:
    size = 1 << log2
    index = np.arange(size)
    parity = np.array([[bin(i & j).count("1") % 2 for j in index[:64]] for i in index])
    x = np.random.default_rng(log2).integers(-(2**38), 2**38, size).astype(np.float64)
    first = np.zeros(size)
    first[:64] = x[:64]
    expected = (1 - 2 * parity.astype(np.int64)) @ first[:64].astype(np.int64)[: parity.shape[1]]
    np.testing.assert_array_equal(hadamard(first).astype(np.int64), expected)
    np.testing.assert_array_equal(hadamard(hadamard(x)), x * size)


def test_signs_are_fair_and_change_with_the_key() -> None:
    a, b = signs(bytes(32), 4096), signs(b"\1" * 32, 4096)
    assert set(a.tolist()) == {-1, 1}
    assert abs(int(a.sum())) < 6 * 64
    assert abs(int((a.astype(int) * b).sum())) < 6 * 64
    np.testing.assert_array_equal(a, signs(bytes(32), 4096))


def test_derived_keys_differ_in_every_part() -> None:
    made = {
        k.pair_pad_key(b"s" * 32, b"c", b"view", 1, 2),
        k.pair_pad_key(b"t" * 32, b"c", b"view", 1, 2),
        k.pair_pad_key(b"s" * 32, b"d", b"view", 1, 2),
        k.pair_pad_key(b"s" * 32, b"c", b"other", 1, 2),
        k.pair_pad_key(b"s" * 32, b"c", b"view", 1, 3),
        k.self_pad_key(b"s" * 32, b"c", b"view", 1),
        k.self_pad_key(b"s" * 32, b"c", b"view", 2),
    }
    assert len(made) == 7
    assert k.pair_pad_key(b"s" * 32, b"c", b"view", 2, 1) in made
    assert k.digest(b"ab", b"c") != k.digest(b"a", b"bc")


def test_a_sealed_share_opens_for_its_receiver_in_its_view_only() -> None:
    sealed = k.seal_share(b"s" * 32, b"ctx", 1, 2, plain=b"share", bound=b"roster")
    assert k.open_share(b"s" * 32, b"ctx", 1, 2, sealed=sealed, bound=b"roster") == b"share"
    assert k.open_share(b"s" * 32, b"ctx", 2, 1, sealed=sealed, bound=b"roster") is None
    assert k.open_share(b"s" * 32, b"etx", 1, 2, sealed=sealed, bound=b"roster") is None
    assert k.open_share(b"s" * 32, b"ctx", 1, 2, sealed=sealed, bound=b"others") is None
    assert k.open_share(b"s" * 32, b"ctx", 1, 2, sealed=sealed[:-1], bound=b"roster") is None
    assert sealed != k.seal_share(b"s" * 32, b"ctx", 1, 2, plain=b"share", bound=b"roster")


def test_an_identity_signs_and_does_not_leave_the_process() -> None:
    identity = k.Identity.new()
    signature = identity.sign(bytes(32))
    assert k.verified(identity.public, bytes(32), signature)
    assert not k.verified(identity.public, b"\1" * 32, signature)
    assert not k.verified(k.Identity.new().public, bytes(32), signature)
    assert not k.verified(b"no key", bytes(32), signature)
    with pytest.raises(TypeError):
        pickle.dumps(identity)
    assert identity.private_bytes().hex() not in repr(identity) + str(vars(identity).get("public"))
    assert len(k.fingerprint(identity.public)) == 39


@given(st.lists(st.binary(max_size=20), max_size=5))
@REPEATABLE
def test_joined_parts_come_apart_again(parts: list[bytes]) -> None:
    assert divide(join(parts), at_most=5) == parts
    if parts:
        with pytest.raises(MalformedMessage):
            divide(join(parts), at_most=len(parts) - 1)
        with pytest.raises(MalformedMessage):
            divide(join(parts)[:-1], at_most=5)


@given(st.binary(max_size=200))
@REPEATABLE
def test_any_bytes_are_refused_with_a_code(noise: bytes) -> None:
    identity = k.Identity.new()
    with pytest.raises((MalformedMessage, ForgedMessage)):
        open_signed(noise, identity.public)
    good = sign(identity, "kind", {"a": 1}, b"blob")
    with pytest.raises((MalformedMessage, ForgedMessage)):
        open_signed(noise + good, identity.public) if noise else open_signed(good[1:], identity.public)
