"""Identity keys on disk: one's own (private, 0600) and those of others that are trusted after comparing fingerprints.

identity.json  {"private": 64 hex digits, "public": ..., "schema": "fedpref-identity-1"}
trusted.json   {"clients": {"0": public, ...}, "schema": "fedpref-trusted-1", "server": public or null}
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from fedpref.journal import write_durably
from privacy.events import canonical
from privacy.secagg.errors import KeyFileError
from privacy.secagg.keys import Identity, Pinned, fingerprint

_IDENTITY, _TRUSTED = "fedpref-identity-1", "fedpref-trusted-1"
_PUBLIC = re.compile(r"[0-9a-f]{64}")
SERVER = "server"


def new_identity(path: Path) -> Identity:
    """Make an identity and write it, readable by its owner only.

    Raises:
        KeyFileError: the file exists; an identity is never overwritten.
        DiskError: it cannot be written.
    """
    if path.exists():
        raise KeyFileError(
            f"{path}: exists already.",
            "Whoever pinned its public key would no longer believe you under a new one.",
            "Name another file, or move this one away first.",
        )
    identity = Identity.new()
    fields = {"schema": _IDENTITY, "private": identity.private_bytes().hex(), "public": identity.public.hex()}
    write_durably(path, (canonical(fields) + "\n").encode(), mode=0o600)
    return identity


def read_identity(path: Path) -> Identity:
    """One's own identity.

    Raises:
        KeyFileError: missing, not an identity, or readable by others.
    """
    fields = _read(path, _IDENTITY, {"schema", "private", "public"})
    if path.stat().st_mode & 0o077:
        raise KeyFileError(
            f"{path}: others may read it.",
            "A private key has mode 0600.",
            f"Run `chmod 600 {path}`, or make a new key.",
        )
    if not _is_key(fields["private"]):
        raise _unreadable(path, "its private key is not 64 hexadecimal digits")
    identity = Identity(bytes.fromhex(fields["private"]))
    if identity.public.hex() != fields["public"]:
        raise _unreadable(path, "its two halves do not belong together")
    return identity


def public_key_of(path: Path) -> bytes:
    """The public half in an identity file, whoever may read it."""
    fields = _read(path, _IDENTITY, {"schema", "private", "public"})
    if not _is_key(fields["public"]):
        raise _unreadable(path, "its public key is not 64 hexadecimal digits")
    return bytes.fromhex(fields["public"])


def read_pinned(path: Path) -> Pinned:
    """Whose messages are believed.

    Raises:
        KeyFileError: missing, malformed, or without a server.
    """
    fields = _read(path, _TRUSTED, {"schema", "server", "clients"})
    server, clients = fields["server"], fields["clients"]
    if not isinstance(clients, dict) or not all(_is_number(k) and _is_key(v) for k, v in clients.items()):
        raise _unreadable(path, "its clients are not numbers with keys")
    if not _is_key(server):
        raise KeyFileError(
            f"{path}: names no server.",
            "A client believes nobody whose key it has not pinned.",
            f"Run `fedpref keys trust {path} server KEY`.",
        )
    return Pinned(bytes.fromhex(server), {int(k): bytes.fromhex(v) for k, v in clients.items()})


def trust(path: Path, who: str, public: str) -> str:
    """Pin the key of the server or of a client, in a file that is made if need be; returns the fingerprint.

    Raises:
        KeyFileError: no key, no such role, or another key is pinned for it or to another role.
    """
    if not _is_key(public) or not (who == SERVER or _is_number(who)):
        raise KeyFileError(
            f"{who[:40]} {public[:80]}: cannot be pinned.",
            "It takes `server` or a client's number, and a public key of 64 hexadecimal digits.",
            "Take the key from `fedpref keys show`.",
        )
    fields: dict[str, Any] = {"schema": _TRUSTED, "server": None, "clients": {}}
    if path.exists():
        fields = _read(path, _TRUSTED, {"schema", "server", "clients"})
    clients: dict[str, str] = fields["clients"]
    pinned = {**clients, **({SERVER: fields["server"]} if fields["server"] else {})}
    other = next((name for name, key in pinned.items() if key == public and name != who), None)
    if pinned.get(who, public) != public or other is not None:
        raise KeyFileError(
            f"{path}: another key is pinned for {who}, or this key for {other or who}.",
            "A changed key may be an attack.",
            "Ask its owner over another channel; if the change is meant, remove the old line first.",
        )
    if who == SERVER:
        fields["server"] = public
    else:
        clients[who] = public
    write_durably(path, (json.dumps(fields, indent=2, sort_keys=True) + "\n").encode())
    return fingerprint(bytes.fromhex(public))


def _read(path: Path, schema: str, keys: set[str]) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise KeyFileError(
            f"{path}: cannot be read.",
            f"{error.strerror}.",
            "Make one with `fedpref keys new` or `fedpref keys trust`.",
        ) from None
    except (ValueError, RecursionError):
        raise _unreadable(path, "it is not JSON") from None
    if not isinstance(fields, dict) or set(fields) != keys or fields["schema"] != schema:
        raise _unreadable(path, f"it does not follow {schema}")
    return fields


def _is_key(value: object) -> bool:
    return isinstance(value, str) and _PUBLIC.fullmatch(value) is not None


def _is_number(value: str) -> bool:
    return value.isdecimal() and value.isascii() and str(int(value)) == value and int(value) < 2**31


def _unreadable(path: Path, why: str) -> KeyFileError:
    return KeyFileError(f"{path}: is not such a key file.", f"{why[0].upper()}{why[1:]}.", "Restore it from a copy.")
