"""Keys: Ed25519 identities pinned out of band, X25519 pairs of one round, HKDF with purposes, AEAD for shares.

Every derived key is separated by the round's context (run, round, plan) and by its purpose, so that instances which
overlap in time share nothing but identities (Bonawitz et al. 2017, section 6; RFC 5869, 7748, 8032).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES, SIGNATURE_BYTES, NONCE_BYTES, TAG_BYTES = 32, 64, 12, 16
_DOMAIN = b"fedpref secure aggregation v1"


class Identity:
    """A long-term Ed25519 signing key. Its private half has no representation and cannot be pickled."""

    def __init__(self, private: bytes) -> None:
        """From the 32 raw bytes of the private key."""
        self._key = Ed25519PrivateKey.from_private_bytes(private)
        self.public = self._key.public_key().public_bytes_raw()

    @classmethod
    def new(cls) -> Identity:
        """A fresh identity."""
        return cls(os.urandom(KEY_BYTES))

    def private_bytes(self) -> bytes:
        """The private key, for the owner's own file only."""
        return self._key.private_bytes_raw()

    def sign(self, digest: bytes) -> bytes:
        """Signature of a 32-byte digest."""
        return self._key.sign(_DOMAIN + digest)

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("an identity does not leave its process")


def verified(public: bytes, digest: bytes, signature: bytes) -> bool:
    """True if ``public`` signed this digest."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, _DOMAIN + digest)
    except (InvalidSignature, ValueError):
        return False
    return True


def fingerprint(public: bytes) -> str:
    """Short form of an identity key for people: eight groups of four hexadecimal digits (128 bits)."""
    text = hashlib.sha256(_DOMAIN + b"|fingerprint|" + public).hexdigest()[:32]
    return "-".join(text[i : i + 4] for i in range(0, 32, 4))


@dataclass(frozen=True)
class Pinned:
    """Whose messages are believed: the server's identity key and each client's, exchanged out of band."""

    server: bytes
    clients: Mapping[int, bytes]


class RoundKeys:
    """The two X25519 pairs of one client in one round: ``channel`` encrypts shares, ``mask`` makes pairwise pads."""

    def __init__(self, channel: bytes | None = None, mask: bytes | None = None) -> None:
        """Fresh ones, or (restoring a journalled round) from 32 raw bytes each."""
        self._channel = X25519PrivateKey.from_private_bytes(channel or os.urandom(KEY_BYTES))
        self._mask = X25519PrivateKey.from_private_bytes(mask or os.urandom(KEY_BYTES))
        self.channel_public = self._channel.public_key().public_bytes_raw()
        self.mask_public = self._mask.public_key().public_bytes_raw()

    def channel_secret(self, public: bytes) -> bytes:
        """Diffie-Hellman with another channel key."""
        return agree(self._channel, public)

    def mask_secret(self, public: bytes) -> bytes:
        """Diffie-Hellman with another mask key."""
        return agree(self._mask, public)

    def private_bytes(self) -> tuple[bytes, bytes]:
        """(channel, mask), for the journal and for dealing shares of the second."""
        return self._channel.private_bytes_raw(), self._mask.private_bytes_raw()


def agree(private: X25519PrivateKey | bytes, public: bytes) -> bytes:
    """X25519.

    Raises:
        ValueError: the public key is a point of small order (no honest client makes one).
    """
    key = X25519PrivateKey.from_private_bytes(private) if isinstance(private, bytes) else private
    return key.exchange(X25519PublicKey.from_public_bytes(public))


_PROBE = X25519PrivateKey.from_private_bytes(bytes(range(KEY_BYTES)))


def usable(public: bytes) -> bool:
    """False for X25519 points of small order, with which every agreement is zero."""
    try:
        agree(_PROBE, public)
    except ValueError:
        return False
    return True


def mask_public_of(private: bytes) -> bytes:
    """The public half of a rebuilt mask key."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def digest(*parts: bytes) -> bytes:
    """SHA-256 of length-prefixed parts: no two different lists have the same input."""
    state = hashlib.sha256(_DOMAIN)
    for part in parts:
        state.update(len(part).to_bytes(8, "big"))
        state.update(part)
    return state.digest()


def derive(secret: bytes, context: bytes, purpose: bytes, *parts: bytes) -> bytes:
    """HKDF-SHA256: a 32-byte key for one purpose of one round."""
    info = purpose + b"|" + b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=context, info=info).derive(secret)


def number(client: int) -> bytes:
    """A client's number in key derivations."""
    return client.to_bytes(4, "big")


def pair_pad_key(shared: bytes, context: bytes, view: bytes, a: int, b: int) -> bytes:
    """Key of the pad between clients a and b; ``view`` binds roster, cohort and model: other views do not cancel."""
    return derive(shared, context, b"pair pad", view, number(min(a, b)), number(max(a, b)))


def self_pad_key(seed: bytes, context: bytes, view: bytes, client: int) -> bytes:
    """Key of a client's own pad."""
    return derive(seed, context, b"self pad", view, number(client))


def seal_share(shared: bytes, context: bytes, dealer: int, receiver: int, *, plain: bytes, bound: bytes) -> bytes:
    """Nonce and AES-256-GCM ciphertext of a share; ``bound`` (roster and commitments) is authenticated with it."""
    nonce = os.urandom(NONCE_BYTES)
    key = derive(shared, context, b"share", number(dealer), number(receiver))
    return nonce + AESGCM(key).encrypt(nonce, plain, bound)


def open_share(
    shared: bytes, context: bytes, dealer: int, receiver: int, *, sealed: bytes, bound: bytes
) -> bytes | None:
    """The share, or None if it was not sealed by this dealer for this receiver in this view."""
    key = derive(shared, context, b"share", number(dealer), number(receiver))
    try:
        return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], bound)
    except InvalidTag:
        return None
