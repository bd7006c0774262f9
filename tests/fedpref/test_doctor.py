"""The doctor finds what is wrong with a machine, above all a foreign package that hides one of ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedpref import doctor
from tests.fedpref.conftest import speak

ROOT = Path(doctor.__file__).parent.parent


def test_the_four_packages_share_one_folder() -> None:
    one, where = doctor.shared_folder()
    assert one, where
    assert where.count(str(ROOT)) == 4


@pytest.mark.parametrize("name", ["policy", "reward", "privacy"])
@pytest.mark.parametrize("namespace", [False, True])
def test_a_foreign_package_of_the_same_name_is_found(tmp_path: Path, name: str, namespace: bool) -> None:
    """As when an unrelated `policy` from the package index comes first on the path; also one without `__init__.py`."""
    foreign = tmp_path / "site-packages"
    (foreign / name).mkdir(parents=True)
    (foreign / name / ("module.py" if namespace else "__init__.py")).write_text("")
    ours = tmp_path / "ours"
    ours.mkdir()
    for package in doctor.PACKAGES:
        if package != name or not namespace:
            (ours / package).symlink_to(ROOT / package)
    code = "from fedpref.doctor import shared_folder; print(*shared_folder())"
    environment = {**os.environ, "PYTHONPATH": f"{foreign}{os.pathsep}{ours}"}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("False"), done.stdout


def test_a_foreign_package_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "shared_folder", lambda: (False, "policy in /elsewhere"))
    check = next(c for c in doctor.examine() if c.name == "packages together")
    assert "/elsewhere" in check.found
    assert "pip uninstall" in check.fix


def test_this_machine_is_fit_and_the_accountant_gives_the_known_number() -> None:
    checks = {check.name: check for check in doctor.examine()}
    for name in ("python", "packages together", "torch", "accountant", "random numbers", "embedded model"):
        assert not checks[name].fix, checks[name]
    assert "1.828" in checks["accountant"].found


@pytest.mark.parametrize(
    ("version", "fits"), [((3, 10, 9), False), ((3, 11, 0), True), ((3, 13, 9), True), ((3, 14, 0), False)]
)
def test_a_wrong_python_is_named(monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...], fits: bool) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    check = doctor._python()
    monkeypatch.undo()
    assert bool(check.fix) is not fits
    assert check.found == ".".join(map(str, version))


def test_a_disk_without_room_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12, 10**6))  # type: ignore[attr-defined]
    check = doctor._disk()
    monkeypatch.undo()
    assert check.fix.startswith("make room")


def test_the_command_ends_with_1_if_something_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    fine, wrong = doctor.Check("a", "x"), doctor.Check("b", "y", "mend it")
    monkeypatch.setattr(doctor, "examine", lambda: iter([fine, wrong]))
    spoken = speak("doctor", "--json")
    assert spoken.code == 1
    assert [c["fix"] for c in json.loads(spoken.out)["checks"]] == ["", "mend it"]
    assert "-> mend it" in speak("doctor").out
    monkeypatch.setattr(doctor, "examine", lambda: iter([fine]))
    assert speak("doctor").code == 0
