"""The chain: every edit is found, a cut only against an anchor, and no fault of the disk loses a spend."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privacy import chain
from privacy.accounting import epsilon
from privacy.chain import GENESIS, ChainWriter, parse_chain
from privacy.errors import LedgerError, LedgerWriteError
from privacy.ledger import Ledger, read_ledger
from privacy.report import verify
from privacy.units import Adversary
from tests.privacy.books import DELTA, EVENT, events, header, write_ledger

ROUNDS = 30  # a reserve and a commit each, after the opening line


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A ledger of 61 lines, as bytes."""
    path = tmp_path_factory.mktemp("chain") / "ledger.jsonl"
    write_ledger(path, ROUNDS)
    return path.read_bytes()


def found(tampered: bytes) -> bool:
    try:
        parse_chain(tampered, "ledger.jsonl")
    except LedgerError:
        return True
    return False


def own_line(seq: int, kind: str, body: Any, prev: str) -> bytes:
    """A line by the book, written without the code under test."""
    content = {"body": body, "kind": kind, "prev": prev, "seq": seq}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["hash"] = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def test_an_untouched_ledger_is_intact(data: bytes) -> None:
    assert data.count(b"\n") == 61
    assert len(parse_chain(data, "x").entries) == 61
    assert parse_chain(data, "x").torn_tail == b""


def test_the_format_is_the_one_that_the_docstring_describes(data: bytes) -> None:
    prev = GENESIS
    for seq, line in enumerate(data.splitlines(keepends=True)):
        fields = json.loads(line)
        assert line == own_line(seq, fields["kind"], fields["body"], prev)
        prev = fields["hash"]
    assert parse_chain(data, "x").head == prev


@pytest.mark.slow  # seconds
def test_every_change_of_a_single_byte_is_found(data: bytes) -> None:
    rng = np.random.default_rng(31)
    starts = [0, *(i + 1 for i, byte in enumerate(data[:-1]) if byte == ord("\n"))]
    ends = [i for i, byte in enumerate(data) if byte == ord("\n")]
    around = [p for start, end in zip(starts, ends, strict=True) for p in (start, end - 1, end)]
    positions = sorted({*around, *rng.integers(0, len(data), 400).tolist()})
    assert len(positions) > 400
    for position in positions:
        for new in {data[position] ^ 1, data[position] ^ 0x20, int(rng.integers(256)), ord("\n")} - {data[position]}:
            tampered = bytearray(data)
            tampered[position] = new
            assert found(bytes(tampered)), (position, chr(data[position]), chr(new))


def test_every_change_of_a_single_byte_of_the_last_line_is_found(data: bytes) -> None:
    short = b"".join(data.splitlines(keepends=True)[:4])
    start = short[:-1].rindex(b"\n") + 1
    for position in range(start, len(short)):
        for new in {0, ord(" "), ord("\n"), ord("}"), short[position] ^ 1, short[position] ^ 0x80} - {short[position]}:
            tampered = bytearray(short)
            tampered[position] = new
            assert found(bytes(tampered)), (position - start, chr(new))


def test_every_deletion_of_a_line_but_the_last_is_found(data: bytes) -> None:
    lines = data.splitlines(keepends=True)
    for i in range(len(lines) - 1):
        assert found(b"".join(lines[:i] + lines[i + 1 :])), i


def test_every_swap_of_two_neighbours_is_found(data: bytes) -> None:
    lines = data.splitlines(keepends=True)
    for i in range(len(lines) - 1):
        assert found(b"".join([*lines[:i], lines[i + 1], lines[i], *lines[i + 2 :]])), i


def test_every_replay_of_a_line_is_found(data: bytes) -> None:
    lines = data.splitlines(keepends=True)
    for i, line in enumerate(lines):
        assert found(b"".join([*lines[: i + 1], line, *lines[i + 1 :]])), i
        assert found(data + line), i


def test_every_insertion_of_an_empty_line_and_every_other_spelling_is_found(data: bytes) -> None:
    lines = data.splitlines(keepends=True)
    for i in range(len(lines)):
        assert found(b"".join([*lines[:i], b"\n", *lines[i:]])), i
    first = lines[0]
    for spelling in (
        first.replace(b'{"body"', b'{ "body"', 1),
        first.replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + first,
        first[:-1].decode().encode("utf-16") + b"\n",
        json.dumps(json.loads(first)).encode() + b"\n",
        first.replace(b'"seq":0', b'"seq":0,"seq":0', 1),
        first.replace(b'"seq":0', b'"seq":false', 1),
        first.replace(b'"seq":0', b'"seq":0.0', 1),
    ):
        assert spelling != first
        assert found(spelling)


def test_a_line_of_one_ledger_does_not_fit_another(data: bytes, tmp_path: Path) -> None:
    write_ledger(tmp_path / "other.jsonl", ROUNDS, run="other")
    other = (tmp_path / "other.jsonl").read_bytes().splitlines(keepends=True)
    lines = data.splitlines(keepends=True)
    assert all(found(b"".join([*lines[:i], other[i], *lines[i + 1 :]])) for i in range(len(lines) - 1))


def test_a_cut_is_not_found_without_an_anchor_and_verify_says_so(data: bytes, tmp_path: Path) -> None:
    path, head = tmp_path / "ledger.jsonl", parse_chain(data, "x").head
    lines = data.splitlines(keepends=True)
    for kept in (1, 2, 40, 60):
        path.write_bytes(b"".join(lines[:kept]))
        without = verify(path)
        assert without.ok
        assert any("completeness not shown" in line for line in without.passed)
        anchored = verify(path, head)
        assert not anchored.ok
        assert any("anchor" in line for line in anchored.failed)
    path.write_bytes(data)
    whole = verify(path, head)
    assert whole.ok
    assert any("complete up to the anchor" in line for line in whole.passed)
    assert not any("completeness not shown" in line for line in whole.passed)


def test_a_ledger_rewritten_from_the_middle_is_found_against_an_anchor_alone(data: bytes, tmp_path: Path) -> None:
    entries = parse_chain(data, "x").entries
    forged, prev = b"", GENESIS
    for entry in entries:
        body = entry.body
        if entry.kind == "reserve":
            body = json.loads(json.dumps(body).replace('"noise_multiplier": 8.0', '"noise_multiplier": 80.0'))
        line = own_line(entry.seq, entry.kind, body, prev)
        forged, prev = forged + line, json.loads(line)["hash"]
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(forged)
    assert verify(path).ok
    assert not verify(path, entries[-1].hash).ok


def test_a_torn_last_line_is_read_as_torn_and_verify_mentions_it(data: bytes, tmp_path: Path) -> None:
    lines = data.splitlines(keepends=True)
    path = tmp_path / "ledger.jsonl"
    for size in range(1, len(lines[1])):
        whole = parse_chain(lines[0] + lines[1][:size], "x")
        assert (len(whole.entries), whole.torn_tail) == (1, lines[1][:size])
    path.write_bytes(lines[0] + lines[1][:50])
    assert any("torn last line of 50 bytes" in line for line in verify(path).passed)


def test_a_torn_reservation_is_cut_off_on_reopening_and_books_nothing(data: bytes, tmp_path: Path) -> None:
    lines = data.splitlines(keepends=True)
    intact, torn = b"".join(lines[:3]), lines[3]
    path = tmp_path / "ledger.jsonl"
    for size in (1, 2, 40, len(torn) // 2, len(torn) - 2, len(torn) - 1):
        path.write_bytes(intact + torn[:size])
        ledger = Ledger(path, header())
        assert path.read_bytes() == intact
        assert ledger.open_reservation is None
        assert ledger.epsilon(Adversary.READER) == epsilon({EVENT: 1}, DELTA)
        ledger.commit(ledger.reserve(2, events()))
        ledger.close()
        assert len(read_ledger(path).reservations) == 2


def test_a_whole_line_with_something_after_it_is_no_torn_line(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    for rest in (b"\0", b" ", b"x", b"{", b"{}"):
        path.write_bytes(data[:-1] + rest)
        with pytest.raises(LedgerError):
            ChainWriter(path)
        assert path.read_bytes() == data[:-1] + rest  # and nothing was cut off


class Disk:
    """Stands in for ``os`` in privacy.chain: fails at the k-th write or sync, and knows what is on the plate."""

    def __init__(self, fail_at: int, how: str) -> None:
        self.calls, self.fail_at, self.how = 0, fail_at, how
        self.synced_size = 0
        self.folder_synced = False

    @property
    def failed(self) -> bool:
        return self.calls >= self.fail_at

    def write(self, fd: int, line: bytes) -> int:
        self.calls += 1
        if self.calls != self.fail_at:
            return os.write(fd, line)
        if self.how == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        half = os.write(fd, line[: -1 if self.how == "all but the newline" else len(line) // 2])
        if self.how == "short":
            return half
        raise OSError(errno.EIO, "Input/output error")

    def fsync(self, fd: int) -> None:
        self.calls += 1
        if self.calls == self.fail_at:
            raise OSError(errno.EIO, "Input/output error")
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            self.folder_synced = True
        else:
            self.synced_size = os.fstat(fd).st_size

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def run_until_the_disk_fails(path: Path, disk: Disk) -> int:
    """Four rounds, a retry and both kinds of abort; returns how many rounds were allowed to run and stay spent."""
    ran = 0
    ledger = None
    try:
        ledger = Ledger(path, header())
        for number in range(1, 5):
            reservation = ledger.reserve(number, events())
            assert disk.folder_synced
            ran += 1
            if number == 2:
                ledger.retry(reservation, "identical bytes")
            if number == 3:
                ledger.abort(reservation, "too few", spent=True)
            else:
                ledger.commit(reservation)
        ledger.abort(ledger.reserve(5, events()), "nothing was sent", spent=False)
        ledger.close()
    except LedgerWriteError:
        pass
    if ledger is not None:
        ledger._writer.close()  # as the kernel does when a process is killed: nothing is synced
    return ran


def booked(path: Path) -> int:
    """Rounds that a later reader counts."""
    if not path.exists() or not path.read_bytes().count(b"\n"):
        return 0
    view = read_ledger(path)
    count = len(view.reservations) - len(view.given_back)
    assert view.composition(Adversary.READER) == ({EVENT: count} if count else {})
    return count


@pytest.mark.parametrize("crash", ["the process", "the machine"])
@pytest.mark.parametrize("how", ["full", "half", "all but the newline", "short"])
def test_no_fault_at_any_write_point_loses_a_round_that_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, crash: str
) -> None:
    points = 0
    for k in range(1, 100):
        path, disk = tmp_path / f"{k}.jsonl", Disk(k, how)
        with monkeypatch.context() as patch:
            patch.setattr(chain, "os", disk)
            ran = run_until_the_disk_fails(path, disk)
        if crash == "the machine" and path.exists():
            os.truncate(path, disk.synced_size)  # what was never synced is gone
        count = booked(path)
        assert count >= ran, f"fault {k}: {ran} rounds ran, {count} are booked"
        assert count <= ran + 1
        assert epsilon({EVENT: count}, DELTA) >= epsilon({EVENT: ran}, DELTA)
        again = Ledger(path, header())  # and the run can go on
        if again.open_reservation is not None:
            again.commit(again.open_reservation)
        again.commit(again.reserve(5, events()))
        again.close()
        assert booked(path) == count + 1
        points += disk.failed
        if not disk.failed:
            break
    assert points > 15


def test_a_writer_that_failed_once_refuses_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl", header())
    with monkeypatch.context() as patch:
        patch.setattr(chain, "os", Disk(1, "half"))
        with pytest.raises(LedgerWriteError):
            ledger.reserve(1, events())
    size = (tmp_path / "ledger.jsonl").stat().st_size
    with pytest.raises(LedgerWriteError):  # the disk is well again, but behind a torn line nothing may be written
        ledger.reserve(1, events())
    assert (tmp_path / "ledger.jsonl").stat().st_size == size
    ledger.close()


def test_a_closed_writer_refuses_to_go_on(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl", header())
    ledger.close()
    with pytest.raises(LedgerWriteError):
        ledger.reserve(1, events())


def test_a_reservation_is_synced_before_it_is_handed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, disk = tmp_path / "ledger.jsonl", Disk(10**9, "full")
    monkeypatch.setattr(chain, "os", disk)
    ledger = Ledger(path, header())
    assert disk.synced_size == path.stat().st_size > 0
    reservation = ledger.reserve(1, events())
    assert disk.synced_size == path.stat().st_size
    ledger.abort(reservation, "x", spent=False)
    assert disk.synced_size == path.stat().st_size
    ledger.close()
