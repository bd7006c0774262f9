"""Signed heads: made by the holder of a key alone, bound to one line of one ledger, and kept where nobody else reads."""

from __future__ import annotations

import json
import pickle
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from privacy.errors import LedgerError, SigningError
from privacy.events import canonical
from privacy.ledger import Ledger, read_ledger
from privacy.report import verify
from privacy.signing import SignedHead, SigningKey, fingerprint, head_path, key_path, signed_by
from privacy.signing_files import read_signed_head
from tests.privacy.books import events, header, write_run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def signed_ledger(path: Path, rounds: int = 2) -> SigningKey:
    key = SigningKey.at(key_path(path))
    book = Ledger(path, header(), signer=key)
    for number in range(1, rounds + 1):
        book.commit(book.reserve(number, events()))
    book.close()
    return key


def test_a_key_is_made_once_for_its_owners_eyes_alone(tmp_path: Path) -> None:
    key = SigningKey.at(tmp_path / "a.key")
    assert stat.S_IMODE((tmp_path / "a.key").stat().st_mode) == 0o600
    assert SigningKey.at(tmp_path / "a.key").public == key.public
    assert SigningKey.at(tmp_path / "b.key").public != key.public
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.key", "b.key"]
    with pytest.raises(SigningError):
        pickle.dumps(key)


def other_kind() -> bytes:
    return X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize("content", [b"", b"no key", other_kind()], ids=["empty", "text", "another kind"])
def test_what_is_no_key_is_refused_and_not_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.key").write_bytes(content)
    (tmp_path / "a.key").chmod(0o600)
    with pytest.raises(SigningError) as caught:
        SigningKey.at(tmp_path / "a.key")
    assert caught.value.code == "FP422"
    assert (tmp_path / "a.key").read_bytes() == content


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    SigningKey.at(tmp_path / "a.key")
    (tmp_path / "a.key").chmod(0o640)
    with pytest.raises(SigningError, match="Other accounts"):
        SigningKey.at(tmp_path / "a.key")


def test_a_signature_is_plain_ed25519_over_the_documented_bytes(tmp_path: Path) -> None:
    fields = {"b": 1, "a": "x"}
    key = SigningKey.at(tmp_path / "a.key")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.public))
    public.verify(bytes.fromhex(key.sign(fields)), b"fedpref signature v1\n" + canonical(fields).encode())
    assert signed_by(key.public, key.sign(fields), fields)
    assert not signed_by(key.public, key.sign(fields), {**fields, "b": 2})
    assert len(fingerprint(key.public).split()) == 8


@pytest.mark.parametrize("junk", ["", "zz", "00", "0" * 64, None, 7, [1], {"a": 1}])
def test_hostile_keys_and_signatures_are_just_not_valid(junk: Any) -> None:
    assert not signed_by(junk, "00" * 64, {})
    private = Ed25519PrivateKey.generate()
    assert not signed_by(private.public_key().public_bytes_raw().hex(), junk, {})


def test_closing_a_ledger_signs_its_head(path: Path) -> None:
    key = signed_ledger(path)
    signed = read_signed_head(path)
    assert signed is not None
    view = read_ledger(path)
    assert (signed.head, signed.entries, signed.public_key) == (view.head, view.num_entries, key.public)
    assert (signed.scope, signed.run) == ("federation", "test")


@pytest.mark.parametrize("field", ["scope", "run", "entries", "head", "public_key", "signature", "schema"])
def test_every_field_of_a_signed_head_is_signed(path: Path, field: str) -> None:
    signed_ledger(path)
    fields = json.loads(head_path(path).read_text())
    fields[field] = fields[field] + 1 if field == "entries" else "0" + fields[field][1:] + "0"
    with pytest.raises(SigningError):
        SignedHead.from_json(fields)
    assert not fields.keys() - {"schema", *SignedHead.__dataclass_fields__}


def test_a_ledger_rolled_back_behind_its_signed_head_is_not_continued(path: Path) -> None:
    key = signed_ledger(path)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))
    with pytest.raises(LedgerError, match="signed head"):
        Ledger(path, header(), signer=key)
    assert "cut, rolled back or replaced" in "\n".join(verify(path).failed)


def test_a_ledger_that_went_on_after_its_signed_head_is_continued_and_verify_counts_the_lines(path: Path) -> None:
    """What a kill leaves: the signed head of the last close, and lines after it."""
    signed_ledger(path)
    unsigned = Ledger(path, header())
    unsigned.commit(unsigned.reserve(3, events()))
    unsigned.close()
    verdict = verify(path)
    assert verdict.ok
    assert any("2 lines after it are not signed yet" in line for line in verdict.passed)
    Ledger(path, header()).close()


def test_verify_says_whose_key_and_what_a_signature_does_not_show(path: Path) -> None:
    key = signed_ledger(path)
    verdict = verify(path)
    assert any(f"line 5 signed by key {fingerprint(key.public)}" in line for line in verdict.passed)
    assert any("not whose key it is" in line and "no newer head" in line for line in verdict.notes)
    assert verify(path, signer=key.public).ok
    assert verify(path, signer=fingerprint(key.public)).ok
    for wrong in ("0" * 64, "", key.public[:10], fingerprint("ab" * 32)):
        assert "not signed by the key" in "\n".join(verify(path, signer=wrong).failed)
    head_path(path).unlink()
    assert verify(path).ok
    assert not verify(path, signer=key.public).ok


def test_a_manifest_is_signed_as_a_whole(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    manifest = run / "release" / "manifest.json"
    fields = json.loads(manifest.read_text())
    assert any("manifest.json: signed by key" in line for line in verify(run).passed)
    for change in ({"files": {}}, {"plan_digest": "0"}, {"ledger_heads": {}}, {"public_key": "0" * 64}):
        manifest.write_text(json.dumps({**fields, **change}))
        assert "its signature is not that of its public key" in "\n".join(verify(run).failed)


def test_a_release_re_signed_by_another_key_is_found_by_whoever_knows_the_first(tmp_path: Path) -> None:
    run, forger = write_run(tmp_path / "run"), SigningKey.at(tmp_path / "forger.key")
    known = SigningKey.at(key_path(run / "ledger.jsonl")).public
    manifest = run / "release" / "manifest.json"
    fields = {k: v for k, v in json.loads(manifest.read_text()).items() if k != "signature"}
    fields["public_key"] = forger.public
    manifest.write_text(json.dumps({**fields, "signature": forger.sign(fields)}))
    assert "not signed by the key of the federation's ledger" in "\n".join(verify(run).failed)
    assert "release/manifest.json: not signed by the key that you named" in "\n".join(verify(run, signer=known).failed)


def test_a_release_of_the_first_version_has_no_signature_and_verify_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    manifest = run / "release" / "manifest.json"
    fields = json.loads(manifest.read_text())
    for name in ("signature", "public_key", "signed_heads"):
        del fields[name]
    manifest.write_text(json.dumps(fields))
    for ledger in (run / "ledger.jsonl", run / "nodes/local/ledger.jsonl"):
        head_path(ledger).unlink()
    verdict = verify(run)
    assert verdict.ok, verdict.failed
    assert any("not signed" in line for line in verdict.passed)
