"""Ed25519 signatures (RFC 8032) under the heads of ledgers and under the release manifest.

A party (the federation, a node, a project's books) has one key. It lies beside the books that it signs, mode 0600, is
made at first use and never sent anywhere; its public half stands in every signed head and in the release manifest.

What a signature shows: whoever held that key wrote this head, as line ``entries`` of that ledger. What it does not show:
whose key it is (compare its fingerprint with one that you got from the owner), that no newer head exists (only an anchor
shows completeness), that the holder told the truth in the lines, and anything at all if the key was stolen.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from privacy.chain import fsync_folder
from privacy.errors import SigningError
from privacy.events import canonical

HEAD_SCHEMA = "fedpref-head-1"
_DOMAIN = b"fedpref signature v1\n"  # so that no other protocol's bytes can be passed off as ours
SHOWS = (
    "a signature shows that the holder of the key wrote this head; not whose key it is (compare the fingerprint with one "
    "from its owner), not that there is no newer head, not that the lines are true"
)


class SigningKey:
    """A party's private key; only its public half has a representation."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw().hex()

    @classmethod
    def at(cls, path: Path) -> SigningKey:
        """The key in ``path``, made at first use: mode 0600, PEM (PKCS 8), whole or not at all after a crash.

        Raises:
            SigningError: unreadable, no Ed25519 key, or open to other accounts.
        """
        try:
            if not path.exists():
                _write_new(path)
            if path.stat().st_mode & 0o077:
                raise _unusable(path, "Other accounts may read it, so its signatures mean nothing.")
            private = load_pem_private_key(path.read_bytes(), password=None)
        except OSError as error:
            raise _unusable(path, f"The system said: {error.strerror or error}.") from None
        except (ValueError, TypeError):
            raise _unusable(path, "It is not an unencrypted private key in PEM.") from None
        if not isinstance(private, Ed25519PrivateKey):
            raise _unusable(path, "It is not an Ed25519 key.")
        return cls(private)

    def sign(self, fields: Mapping[str, Any]) -> str:
        """Signature of the canonical JSON of ``fields``, in hexadecimal digits."""
        return self._private.sign(_DOMAIN + canonical(dict(fields)).encode()).hex()

    def __reduce__(self) -> str | tuple[object, ...]:
        raise SigningError("A signing key cannot be pickled.", "It never leaves its process.", "Read it from its file.")


def _write_new(path: Path) -> None:
    """Two processes may both get here; the first link wins and both read its key."""
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(os.open(scratch, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(scratch, path)
    except FileExistsError:
        pass
    finally:
        scratch.unlink()
    fsync_folder(path.parent)


def _unusable(path: Path, why: str) -> SigningError:
    return SigningError(
        f"{path.name}: is no signing key that can be used.",
        why,
        "Restore it from a copy with mode 0600; without it the books go on unsigned only under a new key.",
    )


def signed_by(public: Any, signature: Any, fields: Mapping[str, Any]) -> bool:
    """True if ``signature`` is that of ``public`` (both hexadecimal) under ``fields``. Never raises on hostile input."""
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
        key.verify(bytes.fromhex(signature), _DOMAIN + canonical(dict(fields)).encode())
    except (InvalidSignature, ValueError, TypeError, AttributeError, RecursionError):
        return False
    return True


def fingerprint(public: str) -> str:
    """A public key for people: its first 128 bits as eight groups of four hexadecimal digits."""
    return " ".join(public[i : i + 4] for i in range(0, 32, 4))


@dataclass(frozen=True)
class SignedHead:
    """Somebody's word that a ledger had this head after this many lines."""

    scope: str
    run: str
    entries: int
    head: str
    public_key: str
    signature: str = ""

    @classmethod
    def make(cls, key: SigningKey, *, scope: str, run: str, entries: int, head: str) -> SignedHead:
        """Sign a head."""
        unsigned = cls(scope, run, entries, head, key.public)
        return cls(scope, run, entries, head, key.public, key.sign(unsigned._content()))

    def _content(self) -> dict[str, Any]:
        return {"schema": HEAD_SCHEMA, **{k: v for k, v in asdict(self).items() if k != "signature"}}

    def to_json(self) -> dict[str, Any]:
        """Canonical fields, as in the file beside a ledger and in a release manifest."""
        return {**self._content(), "signature": self.signature}

    @classmethod
    def from_json(cls, fields: Any) -> SignedHead:
        """Unverified JSON -> a head whose signature is valid.

        Raises:
            SigningError: another schema, other fields, or a signature that is not that key's.
        """
        kinds = {name: int if name == "entries" else str for name in cls.__dataclass_fields__}
        if (
            not isinstance(fields, dict)
            or set(fields) != {*kinds, "schema"}
            or fields["schema"] != HEAD_SCHEMA
            or any(type(fields[name]) is not kind for name, kind in kinds.items())
        ):
            raise SigningError(
                "Not a signed head.",
                "It has not the fields of one.",
                "Restore the file beside the ledger, or the manifest, from a copy.",
            )
        head = cls(**{name: fields[name] for name in kinds})
        if not signed_by(head.public_key, head.signature, head._content()):
            raise SigningError(
                f"The signature under the head of {head.scope} is not that of its key.",
                "Head, key or signature were changed.",
                "Do not trust this head; ask its owner for the signed head.",
            )
        return head


def head_path(ledger: Path) -> Path:
    """Where the signed head of a ledger lies: beside it."""
    return ledger.with_suffix(".head.json")


def key_path(ledger: Path) -> Path:
    """Where the key that signs a ledger lies: beside it."""
    return ledger.with_suffix(".key")
