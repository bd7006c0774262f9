"""The privacy officer's laptop: no torch, no data, and every figure checked."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from privacy.report import render_text
from privacy.report.build import build_report
from tests.privacy.books import write_run

ROOT = Path(__file__).parents[2]
NEEDED = ["numpy", "scipy", "dp-accounting", "cryptography"]

WITHOUT_TORCH = """
import sys
import privacy, privacy.report, privacy.__main__, fedpref.config, fedpref.cli
from fedpref.cli import report, verify
import typer
try:
    verify.verify(__import__("pathlib").Path(sys.argv[1]))
except typer.Exit as ended:
    assert ended.exit_code == 0, ended.exit_code
report.report(__import__("pathlib").Path(sys.argv[1]))
heavy = sorted({"torch", "transformers", "datasets", "pyarrow", "peft", "trl", "opacus"} & set(sys.modules))
print("\\nimported:", heavy)
"""

ALONE = """
import sys
import privacy.accounting, privacy.calibration, privacy.mechanism, privacy.report, privacy.sealed
rooms = {name.split(".")[0] for name in sys.modules}
print(sorted(rooms & {"fedpref", "reward", "policy", "torch", "pydantic", "transformers", "yaml", "typer"}))
"""


def run_python(python: Path | str, *arguments: str, cwd: Path) -> str:
    done = subprocess.run([str(python), *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_verify_and_report_of_the_command_line_do_not_import_torch(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    out = run_python(sys.executable, "-c", WITHOUT_TORCH, str(run), cwd=ROOT)
    assert "verified" in out
    assert out.splitlines()[-1] == "imported: []"


def test_the_privacy_room_imports_no_other_room_and_no_torch() -> None:
    assert run_python(sys.executable, "-c", ALONE, cwd=ROOT).strip() == "[]"


@pytest.mark.slow
def test_verify_and_report_work_where_torch_cannot_be_imported(tmp_path: Path) -> None:
    """`pip install --no-deps .` and four libraries, in a fresh environment, from another folder."""
    run = write_run(tmp_path / "run", target_epsilon=8.0)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    venv.create(tmp_path / "laptop", with_pip=True)
    python = tmp_path / "laptop" / "bin" / "python"
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    constraints = ROOT / "constraints.txt"
    pins = ["-c", str(constraints)] if constraints.exists() else []
    run_python(python, *pip, "--no-deps", str(ROOT), cwd=elsewhere)
    run_python(python, *pip, *pins, *NEEDED, cwd=elsewhere)

    gone = "import importlib.util as u; print([m for m in ('torch', 'pydantic', 'typer') if u.find_spec(m)])"
    assert run_python(python, "-c", gone, cwd=elsewhere).strip() == "[]"
    where = run_python(python, "-c", "import privacy; print(privacy.__file__)", cwd=elsewhere)
    assert str(tmp_path / "laptop") in where  # the installed package, not the working tree

    verdict = json.loads(run_python(python, "-m", "privacy", "verify", str(run), "--json", cwd=elsewhere))
    assert verdict["ok"] is True
    assert any("report.json: every figure recomputed" in line for line in verdict["passed"])
    assert "verified" in run_python(python, "-m", "privacy", "verify", str(run), cwd=elsewhere)
    assert run_python(python, "-m", "privacy", "report", str(run), cwd=elsewhere) == render_text(build_report(run))

    (run / "report.json").write_text("{}", encoding="utf-8")
    refused = subprocess.run(
        [str(python), "-m", "privacy", "verify", str(run)], cwd=elsewhere, capture_output=True, check=False
    )
    assert refused.returncode == 1
