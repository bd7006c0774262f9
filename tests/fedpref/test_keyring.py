"""Identity files and pinned keys: private, never overwritten, never replaced silently."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedpref.keyring import new_identity, read_identity, read_pinned, trust
from privacy.secagg.errors import KeyFileError
from privacy.secagg.keys import Identity, fingerprint
from tests.fedpref.conftest import speak

KEYS = [Identity.new().public.hex() for _ in range(3)]


def test_an_identity_is_private_and_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    made = new_identity(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_identity(path).public == made.public
    with pytest.raises(KeyFileError, match="exists"):
        new_identity(path)
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match="others may read"):
        read_identity(path)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"schema": "fedpref-identity-1", "private": "xx", "public": "yy"}']
)
def test_a_file_that_is_no_identity_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "identity.json"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(KeyFileError):
        read_identity(path)
    with pytest.raises(KeyFileError):
        read_identity(tmp_path / "missing.json")


def test_halves_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    new_identity(path)
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "public": KEYS[0]}))
    with pytest.raises(KeyFileError, match="halves"):
        read_identity(path)


def test_pinned_keys_are_read_back_and_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "trusted.json"
    trust(path, "0", KEYS[0])
    with pytest.raises(KeyFileError, match="server"):
        read_pinned(path)
    trust(path, "server", KEYS[1])
    assert trust(path, "0", KEYS[0]) == fingerprint(bytes.fromhex(KEYS[0]))  # again: nothing changes
    pinned = read_pinned(path)
    assert pinned.server.hex() == KEYS[1]
    assert {k: v.hex() for k, v in pinned.clients.items()} == {0: KEYS[0]}
    for who, key in (("0", KEYS[2]), ("server", KEYS[2]), ("1", KEYS[0]), ("1", KEYS[1])):
        with pytest.raises(KeyFileError):
            trust(path, who, key)
    for who, key in (("-1", KEYS[2]), ("01", KEYS[2]), ("x", KEYS[2]), ("1", "zz"), ("1", KEYS[2].upper())):
        with pytest.raises(KeyFileError):
            trust(path, who, key)


def test_from_the_command_line(tmp_path: Path) -> None:
    identity, trusted = tmp_path / "identity.json", tmp_path / "trusted.json"
    made = speak("keys", "new", str(identity))
    shown = speak("keys", "show", str(identity))
    assert (made.code, shown.code) == (0, 0)
    public = shown.out.split()[2]
    assert public in made.out
    assert json.loads(identity.read_text())["private"] not in made.out + shown.out
    assert speak("keys", "trust", str(trusted), "server", public).code == 0
    assert read_pinned(trusted).server.hex() == public
    assert speak("keys", "trust", str(trusted), "7", KEYS[1]).code == 0
    told = speak("keys", "pinned", str(trusted))
    assert told.out.split("\n")[:3] == ["server:", *shown.out.split("\n")[:2]]
    assert f"client 7:\npublic key   {KEYS[1]}" in told.out
    assert speak("keys", "pinned", str(identity)).code == 1
    assert speak("keys", "trust", str(trusted), "server", KEYS[0]).code == 1
