"""A ledger of 1,000 lines: every edit of a byte, deletion, swap and replay is found; a cut only against an anchor.

A line that was verified once is not verified again: ``_parse_line`` is a pure function, and cached here. So a whole
verification of 1,000 lines, of which one was touched, costs a millisecond.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from privacy import chain
from privacy.chain import ChainWriter, parse_chain
from privacy.errors import LedgerError
from privacy.report import verify
from tests.privacy.books import events, header

LINES = 1000


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """An open line, 499 rounds of two lines, and one round that is under way."""
    path = tmp_path_factory.mktemp("long") / "ledger.jsonl"
    writer = ChainWriter(path)
    writer.append("open", header().to_json(), durable=False)
    booked = {adversary.value: event.to_json() for adversary, event in events().items()}
    for number in range(1, 501):
        seq = writer.append("reserve", {"round": number, "events": booked}, durable=False).seq
        if number < 500:
            writer.append("commit", {"reserve": seq}, durable=False)
    writer.close()
    found = path.read_bytes().splitlines(keepends=True)
    assert len(found) == LINES
    return found


@pytest.fixture(autouse=True)
def verified_lines_stay_verified() -> Iterator[None]:
    with mock.patch.object(chain, "_parse_line", lru_cache(maxsize=4 * LINES)(chain._parse_line)):
        yield


def found(tampered: list[bytes]) -> bool:
    try:
        parse_chain(b"".join(tampered), "ledger.jsonl")
    except LedgerError:
        return True
    return False


def edited(line: bytes, position: int, rng: np.random.Generator) -> bytes:
    new = (line[position] + int(rng.integers(1, 256))) % 256
    return line[:position] + bytes([new]) + line[position + 1 :]


def test_untouched_it_is_intact(lines: list[bytes]) -> None:
    assert not found(lines)
    assert not found(lines)  # also out of the cache


def test_an_edited_byte_is_found_in_every_line(lines: list[bytes]) -> None:
    """A random position of each line, and its newline, verified as a whole file each: 2,000 files."""
    rng = np.random.default_rng(1000)
    for i, line in enumerate(lines):
        for position in {len(line) - 1, *rng.integers(0, len(line), 1).tolist()}:
            assert found([*lines[:i], edited(line, position, rng), *lines[i + 1 :]]), (i, position)


@pytest.mark.slow
def test_an_edited_byte_is_found_at_every_position(lines: list[bytes]) -> None:
    """All of them, about 400,000: the line itself is refused, whatever stands around it; other lines are as they were."""
    rng = np.random.default_rng(1001)
    for i, line in enumerate(lines):
        for position in range(len(line) - 1):
            first = edited(line, position, rng).split(b"\n")[0]  # an edit into a newline makes two lines of it
            with pytest.raises(LedgerError):
                chain._parse_line.__wrapped__(first, i + 1, "x")  # type: ignore[attr-defined]


@pytest.mark.slow  # seconds
def test_every_deletion_swap_and_replay_is_found(lines: list[bytes]) -> None:
    for i in range(LINES - 1):
        assert found([*lines[:i], *lines[i + 1 :]]), f"line {i + 1} deleted"
        assert found([*lines[:i], lines[i + 1], lines[i], *lines[i + 2 :]]), f"lines {i + 1} and {i + 2} swapped"
    for i, line in enumerate(lines):
        assert found([*lines[: i + 1], line, *lines[i + 1 :]]), f"line {i + 1} replayed after itself"
        assert found([*lines, line]), f"line {i + 1} replayed at the end"


def test_swaps_over_any_distance_are_found(lines: list[bytes]) -> None:
    rng = np.random.default_rng(1002)
    for _ in range(500):
        i, j = sorted(rng.choice(LINES, 2, replace=False).tolist())
        swapped = list(lines)
        swapped[i], swapped[j] = swapped[j], swapped[i]
        assert found(swapped), (i, j)


def test_every_cut_is_found_against_an_anchor_and_only_against_one(lines: list[bytes]) -> None:
    anchor = parse_chain(b"".join(lines), "x").head
    for kept in range(1, LINES):
        rest = parse_chain(b"".join(lines[:kept]), "x")
        assert anchor not in {entry.hash for entry in rest.entries}


@pytest.mark.slow  # seconds
@pytest.mark.parametrize("kept", [999, 998, 501, 2])
def test_verify_names_a_rollback_and_says_what_it_cannot_show(lines: list[bytes], tmp_path: Path, kept: int) -> None:
    path, anchor = tmp_path / "ledger.jsonl", parse_chain(b"".join(lines), "x").head
    path.write_bytes(b"".join(lines[:kept]))
    without = verify(path)
    assert without.ok
    assert any("completeness not shown" in line for line in without.passed)
    against = verify(path, anchor)
    assert not against.ok
    assert any("does not hold the anchor" in line for line in against.failed)
