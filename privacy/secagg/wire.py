"""Bytes of the protocol: a canonical JSON head, a blob, an Ed25519 signature. Reading is verifying.

    "FPSA" version(1) head length(4) head blob signature(64)

The head is canonical JSON and is refused in any other form. The signature is over the SHA-256 of all before it. Fields are
read through ``Fields``, which refuses what is missing, surplus, of another type, or out of range.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from privacy.events import canonical
from privacy.secagg.errors import ForgedMessage, MalformedMessage
from privacy.secagg.keys import SIGNATURE_BYTES, Identity, verified

_PREFIX = struct.Struct("<4sBI")
MAGIC, _VERSION = b"FPSA", 1
_LENGTH = struct.Struct("<Q")
LARGEST_CLIENT = 2**31 - 1


def malformed(why: str) -> MalformedMessage:
    """The one error for bytes that are no message."""
    return MalformedMessage(
        "These bytes are not a message of secure aggregation.",
        why + ".",
        "The message is refused; check that both sides run one version of fedpref.",
    )


@dataclass(frozen=True)
class Message:
    """A message whose signature was checked: ``digest`` names it, ``fields`` are still to be read."""

    kind: str
    fields: Fields
    blob: memoryview
    digest: bytes


def sign(identity: Identity, kind: str, fields: Mapping[str, Any], blob: bytes | memoryview = b"") -> bytes:
    """A signed message."""
    head = canonical({**fields, "kind": kind}).encode()
    start = _PREFIX.pack(MAGIC, _VERSION, len(head)) + head
    state = hashlib.sha256(start)
    state.update(blob)
    return b"".join((start, blob, identity.sign(state.digest())))


def open_signed(data: bytes, public: bytes) -> Message:
    """Unverified bytes -> a message signed by ``public``.

    Raises:
        MalformedMessage: truncated, not canonical, or no message at all.
        ForgedMessage: signed by somebody else, or changed on the way.
    """
    view = memoryview(data)
    blob, end = _bounds(view)
    name = hashlib.sha256(view[:end]).digest()
    if not verified(public, name, bytes(view[end:])):
        raise ForgedMessage(
            "A message is not signed by the key that is pinned for its sender.",
            "It was forged, changed on the way, or the identity changed without being pinned anew.",
            "Compare fingerprints with `fedpref keys show`, over another channel than this one.",
        )
    fields = _head(bytes(view[_PREFIX.size : blob]))
    return Message(fields.text("kind"), fields, view[blob:end], name)


def peek(data: bytes) -> Fields:
    """The fields of a message whose signature was not checked: good for choosing whose signature to check, only.

    Raises:
        MalformedMessage: no message at all.
    """
    view = memoryview(data)
    blob, _ = _bounds(view)
    return _head(bytes(view[_PREFIX.size : blob]))


def _bounds(view: memoryview) -> tuple[int, int]:
    """Where the blob begins and ends."""
    if len(view) < _PREFIX.size + SIGNATURE_BYTES:
        raise malformed(f"{len(view)} bytes are too few")
    magic, version, length = _PREFIX.unpack_from(view)
    end = len(view) - SIGNATURE_BYTES
    if (magic, version) != (MAGIC, _VERSION) or _PREFIX.size + length > end:
        raise malformed("Another type or version, or its end is missing")
    return _PREFIX.size + length, end


def _head(head: bytes) -> Fields:
    try:
        fields = json.loads(head)
        exact = isinstance(fields, dict) and canonical(fields).encode() == head
    except (ValueError, RecursionError):
        exact = False
    if not exact:
        raise malformed("Its head is not canonical JSON")
    return Fields(fields)


class Fields:
    """Reads the fields of a head, each exactly once."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._left = dict(fields)

    def _take(self, name: str) -> Any:
        if name not in self._left:
            raise malformed(f"The field {name!r} is missing")
        return self._left.pop(name)

    def text(self, name: str) -> str:
        """A string."""
        value = self._take(name)
        if type(value) is not str:
            raise malformed(f"The field {name!r} is no text")
        return str(value)

    def integer(self, name: str) -> int:
        """An integer in [0, 2^31)."""
        value = self._take(name)
        if type(value) is not int or not 0 <= value <= LARGEST_CLIENT:
            raise malformed(f"The field {name!r} is no number in range")
        return int(value)

    def octets(self, name: str, size: int) -> bytes:
        """``size`` bytes, written as hexadecimal digits."""
        value = self._take(name)
        if type(value) is str and len(value) == 2 * size and value == value.lower():
            try:
                return bytes.fromhex(value)
            except ValueError:
                pass
        raise malformed(f"The field {name!r} is not {size} bytes in hexadecimal")

    def clients(self, name: str) -> tuple[int, ...]:
        """Strictly increasing client numbers: nobody twice, one form only."""
        value = self._take(name)
        good = isinstance(value, list) and all(type(v) is int and 0 <= v <= LARGEST_CLIENT for v in value)
        if not good or any(a >= b for a, b in itertools.pairwise(value)):
            raise malformed(f"The field {name!r} is no increasing list of clients")
        return tuple(value)

    def end(self) -> None:
        """Nothing may be left."""
        if self._left:
            raise malformed(f"Unknown fields: {', '.join(sorted(self._left))[:80]}")


def join(parts: Iterable[bytes]) -> bytes:
    """Several byte strings in one, each after its length."""
    return b"".join(piece for part in parts for piece in (_LENGTH.pack(len(part)), part))


def divide(data: bytes | memoryview, *, at_most: int) -> list[bytes]:
    """The inverse of ``join``.

    Raises:
        MalformedMessage: truncated, or more than ``at_most`` parts.
    """
    view, parts, start = memoryview(data), list[bytes](), 0
    while start < len(view):
        if len(parts) == at_most or start + _LENGTH.size > len(view):
            raise malformed("Too many parts, or the last one is cut off")
        (size,) = _LENGTH.unpack_from(view, start)
        start += _LENGTH.size
        if size > len(view) - start:
            raise malformed("Its last part is cut off")
        parts.append(bytes(view[start : start + size]))
        start += size
    return parts


def exactly(parts: Sequence[bytes], count: int) -> Sequence[bytes]:
    """The parts, if there are as many as expected."""
    if len(parts) != count:
        raise malformed(f"It has {len(parts)} parts instead of {count}")
    return parts
