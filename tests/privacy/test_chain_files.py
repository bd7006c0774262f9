"""One file, one writer: locks, modes, files that cannot be opened, lines that cannot be read back."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from privacy.chain import GENESIS, MAX_LINE, ChainWriter, read_chain
from privacy.errors import LedgerError, LedgerWriteError
from privacy.ledger import Ledger, read_ledger
from tests.privacy.books import events, header, write_ledger

ROUNDS = 30  # a reserve and a commit each, after the opening line


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A ledger of 61 lines, as bytes."""
    path = tmp_path_factory.mktemp("chain") / "ledger.jsonl"
    write_ledger(path, ROUNDS)
    return path.read_bytes()


def own_line(seq: int, kind: str, body: Any, prev: str) -> bytes:
    """A line by the book, written without the code under test."""
    content = {"body": body, "kind": kind, "prev": prev, "seq": seq}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["hash"] = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def test_a_second_writer_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    first = Ledger(path, header())
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(LedgerError, match="another process"):
            Ledger(path, header())
    assert path.read_bytes() == before
    first.commit(first.reserve(1, events()))  # the refusal took nothing from the first
    with pytest.raises(LedgerError, match="another process"):
        Ledger(path, header())
    first.close()
    Ledger(path, header()).close()


def corrupt(data: bytes) -> bytes:
    return data[:100] + b"!" + data[101:]


def foreign(data: bytes) -> bytes:
    return own_line(0, "open", {"schema": "another"}, GENESIS)


@pytest.mark.parametrize("spoil", [corrupt, foreign])
def test_a_ledger_that_cannot_be_opened_is_left_alone_and_unlocked(
    data: bytes, tmp_path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(spoil(data))
    with pytest.raises(LedgerError):
        Ledger(path, header())
    assert path.read_bytes() == spoil(data)
    path.write_bytes(data)  # restored from a copy
    Ledger(path, header()).close()


def test_a_file_that_appeared_between_two_looks_is_read_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.touch()  # what a kill between creating the file and its first line leaves
    write_ledger(path, 1)
    assert len(read_ledger(path).reservations) == 1


def test_a_ledger_is_for_its_owners_eyes(tmp_path: Path) -> None:
    write_ledger(tmp_path / "ledger.jsonl", 0)
    assert stat.S_IMODE((tmp_path / "ledger.jsonl").stat().st_mode) == 0o600


def test_a_folder_that_is_not_there_is_a_coded_error(tmp_path: Path) -> None:
    with pytest.raises(LedgerWriteError):
        ChainWriter(tmp_path / "nowhere" / "ledger.jsonl")
    with pytest.raises(LedgerError):
        read_chain(tmp_path / "ledger.jsonl")


def test_a_line_too_long_to_be_read_back_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    writer = ChainWriter(path)
    writer.append("x", {}, durable=True)
    before = path.read_bytes()
    with pytest.raises(LedgerWriteError):
        writer.append("x", {"reason": "r" * MAX_LINE}, durable=True)
    assert path.read_bytes() == before
    frame = len(own_line(1, "x", {"reason": ""}, writer.head))
    writer.append("x", {"reason": "r" * (MAX_LINE - frame)}, durable=True)
    writer.close()
    assert len(read_chain(path).entries) == 2
