"""Sealed messages: constant size, and nothing but what was asked for is taken."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.clipping import ClippedSum, clip_and_sum
from privacy.errors import SealedMessageError
from privacy.sealed import Entrusted, LocallyPrivate, Sealed, sealed_from_bytes, size_of
from tests.privacy.books import REPEATABLE

HEAD = struct.Struct("<4sBIIId")
CLIENT, ROUND, DIMENSION = 7, 3, 4
KINDS: list[type[Sealed]] = [Entrusted, LocallyPrivate]


def message(kind: type[Sealed] = Entrusted) -> Sealed:
    return kind(CLIENT, ROUND, np.array([0.0, -1.5, 2.0**30, 2.0**-15]), 2.5)


def opened(data: bytes, kind: type[Sealed] = Entrusted) -> Sealed:
    return sealed_from_bytes(data, kind, CLIENT, ROUND, DIMENSION)


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_survives_its_bytes_to_the_last_bit(kind: type[Sealed]) -> None:
    sent = message(kind)
    got = opened(sent.to_bytes(), kind)
    assert type(got) is kind
    assert (got.client, got.round, got.l2_bound) == (CLIENT, ROUND, 2.5)
    assert got.value.tobytes() == sent.value.tobytes()


def test_the_layout_is_pinned() -> None:
    expected = HEAD.pack(b"FPEN", 1, CLIENT, ROUND, DIMENSION, 2.5) + struct.pack("<4d", *message().value)
    assert message().to_bytes() == expected
    assert message(LocallyPrivate).to_bytes() == b"FPLP" + expected[4:]


def test_every_realised_sample_gives_a_message_of_one_size() -> None:
    rows = {
        "empty": np.zeros((0, 9)),
        "one": np.ones((1, 9)),
        "many": np.ones((500, 9)),
        "NaN": np.full((3, 9), math.nan),
        "inf": np.full((3, 9), math.inf),
        "huge": np.full((3, 9), 1e300),
    }
    sizes = {}
    for (name, values), kind in ((item, kind) for item in rows.items() for kind in KINDS):
        (total,) = clip_and_sum(values, np.zeros(len(values), dtype=int), 1, 1.0)
        data = kind(2**32 - 1, 2**32 - 1, total.value, 1.0).to_bytes()
        sizes[name, kind] = len(data)
        assert np.isfinite(sealed_from_bytes(data, kind, 2**32 - 1, 2**32 - 1, 9).value).all()
    assert set(sizes.values()) == {size_of(9)}


def with_head(*, at: int, value: Any) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        head = list(HEAD.unpack_from(data))
        head[at] = value
        return HEAD.pack(*head) + data[HEAD.size :]

    return change


def with_number(value: float) -> Callable[[bytes], bytes]:
    return lambda data: data[:-8] + struct.pack("<d", value)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: data[:10], id="a piece of the head"),
        pytest.param(lambda data: data[: HEAD.size], id="the head alone"),
        pytest.param(lambda data: data[:-1], id="a byte short"),
        pytest.param(lambda data: data + b"\0", id="a byte long"),
        pytest.param(lambda data: data + bytes(8), id="a number long"),
        pytest.param(lambda data: data[::-1], id="reversed"),
        pytest.param(lambda data: bytes(len(data)), id="zeros"),
        pytest.param(with_head(at=0, value=b"FPLP"), id="the other type"),
        pytest.param(with_head(at=0, value=b"PK\3\4"), id="no type of ours"),
        pytest.param(with_head(at=1, value=2), id="another version"),
        pytest.param(with_head(at=2, value=CLIENT + 1), id="another client"),
        pytest.param(with_head(at=3, value=ROUND - 1), id="an earlier round, replayed"),
        pytest.param(with_head(at=3, value=ROUND + 1), id="a later round"),
        pytest.param(with_head(at=4, value=DIMENSION - 1), id="dimension too small"),
        pytest.param(with_head(at=4, value=2**32 - 1), id="dimension too large"),
        pytest.param(with_head(at=5, value=math.nan), id="bound NaN"),
        pytest.param(with_head(at=5, value=math.inf), id="bound inf"),
        pytest.param(with_head(at=5, value=0.0), id="bound zero"),
        pytest.param(with_head(at=5, value=-2.5), id="bound negative"),
        pytest.param(with_number(math.nan), id="a NaN"),
        pytest.param(with_number(2.0**-16), id="half a step of the grid"),
        pytest.param(with_number(1.5 + 2.0**-52), id="low-order bits"),
        pytest.param(with_number(2.0**53), id="beyond exact arithmetic"),
        pytest.param(with_number(math.inf), id="an inf"),
        pytest.param(with_number(-math.inf), id="a -inf"),
    ],
)
def test_a_malformed_message_is_refused_with_a_code(spoil: Callable[[bytes], bytes]) -> None:
    with pytest.raises(SealedMessageError) as refusal:
        opened(spoil(message().to_bytes()))
    assert refusal.value.code == "FP430"
    assert f"Client {CLIENT}" in refusal.value.what


def test_a_noised_message_is_not_taken_for_an_entrusted_one_nor_the_reverse() -> None:
    for sent, asked in ((Entrusted, LocallyPrivate), (LocallyPrivate, Entrusted)):
        with pytest.raises(SealedMessageError):
            opened(message(sent).to_bytes(), asked)


def test_every_changed_byte_of_type_sender_round_and_dimension_is_refused() -> None:
    data = message().to_bytes()
    for position in range(HEAD.size - 8):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            with pytest.raises(SealedMessageError):
                opened(bytes(changed))


@given(st.binary(max_size=size_of(DIMENSION) + 8) | st.binary(min_size=8 * DIMENSION + 8, max_size=8 * DIMENSION + 8))
@REPEATABLE
def test_any_bytes_are_refused_with_a_code_or_are_finite_numbers(noise: bytes) -> None:
    for data in (noise, message().to_bytes()[: HEAD.size - 8] + noise):
        try:
            got = opened(data)
        except SealedMessageError:
            continue
        assert np.isfinite(got.value).all()
        assert got.to_bytes() == data


def test_only_sealed_types_have_bytes() -> None:
    assert not hasattr(ClippedSum, "to_bytes")


@pytest.mark.parametrize(("client", "number"), [(-1, 1), (2**32, 1), (1, -1), (1, 2**32)])
def test_numbers_that_do_not_fit_a_message_are_refused_with_a_code(client: int, number: int) -> None:
    with pytest.raises(SealedMessageError) as refusal:
        Entrusted(client, number, np.zeros(2), 1.0).to_bytes()
    assert refusal.value.code == "FP430"
