"""Verify: what a stranger can check from the files alone, and what makes it fail."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from privacy.__main__ import main
from privacy.chain import ChainWriter
from privacy.events import GaussianEvent, NonPrivateEvent
from privacy.ledger import Ledger, read_ledger
from privacy.report import build_report, verify
from privacy.signing import SigningKey, head_path, key_path
from privacy.units import Adversary, PrivacyUnit
from tests.privacy.books import events, header, write_ledger, write_manifest, write_report, write_run

LEDGERS = ("ledger.jsonl", "nodes/local/ledger.jsonl")


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("verify") / "run", target_epsilon=8.0)


@pytest.fixture
def run(tmp_path: Path, honest: Path) -> Path:
    """A copy of an honest run, to be spoilt."""
    return Path(shutil.copytree(honest, tmp_path / "run"))


def drop_last_lines(path: Path, n: int, *, signed: bool = True) -> None:
    """Cut a ledger; ``signed=False`` takes its signed head away as well, as whoever can write the folder can."""
    if not signed:
        head_path(path).unlink(missing_ok=True)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: len(lines) - n]))


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    fields = json.loads(path.read_text(encoding="utf-8"))
    change(fields)
    path.write_text(json.dumps(fields), encoding="utf-8")


def failures(target: Path, head: str | None = None) -> str:
    verdict = verify(target, head)
    assert verdict.ok == (not verdict.failed)
    return "\n".join(verdict.failed)


def test_an_honest_run_is_verified_and_its_epsilons_recomputed(run: Path) -> None:
    verdict = verify(run)
    assert verdict.ok, verdict.failed
    view = read_ledger(run / "ledger.jsonl")
    assert verdict.epsilons == {
        "reader": view.epsilon(Adversary.READER),
        "other_clients": view.epsilon(Adversary.OTHER_CLIENTS),
        "server": None,
    }
    for name in LEDGERS:
        assert any(line.startswith(f"{name}: 7 lines, chain intact") for line in verdict.passed)
        assert any(line.startswith(f"{name}: complete up to the anchor") for line in verdict.passed)
    assert any(line.startswith("report.json: every figure recomputed") for line in verdict.passed)
    assert verdict.to_text().endswith("verified\n")
    assert "NOT VERIFIED" not in verdict.to_text()


def test_without_a_manifest_completeness_is_not_shown_and_verify_says_so(run: Path) -> None:
    shutil.rmtree(run / "release")
    verdict = verify(run)
    assert verdict.ok
    assert sum("completeness not shown" in line for line in verdict.passed) == 2


@pytest.mark.parametrize("name", LEDGERS)
def test_a_ledger_cut_or_rolled_back_is_found_against_the_manifest(run: Path, name: str) -> None:
    for _ in range(3):
        drop_last_lines(run / name, 2)
        assert f"{name}: its head" in failures(run)


@pytest.mark.parametrize("name", LEDGERS)
def test_a_ledger_that_went_on_after_the_release_is_found_against_the_manifest(run: Path, name: str) -> None:
    writer = ChainWriter(run / name)
    writer.append("reserve", {"round": 9, "events": {a.value: e.to_json() for a, e in events().items()}}, durable=True)
    writer.close()
    assert f"{name}: its head" in failures(run)


def test_a_head_known_from_elsewhere_takes_the_place_of_the_manifest(run: Path) -> None:
    head = read_ledger(run / "ledger.jsonl").head
    shutil.rmtree(run / "release")
    assert verify(run, head).ok
    drop_last_lines(run / "ledger.jsonl", 2)
    assert "ledger.jsonl: line 7 is not the one that was signed" in failures(run)
    drop_last_lines(run / "ledger.jsonl", 0, signed=False)
    (run / "report.json").unlink()
    assert verify(run).ok
    assert "ledger.jsonl: does not hold the anchor" in failures(run, head)


def test_an_attacker_who_rewrites_manifest_and_report_too_is_found_against_that_head(run: Path) -> None:
    head = read_ledger(run / "ledger.jsonl").head
    for name in LEDGERS:
        drop_last_lines(run / name, 2, signed=False)
        key = SigningKey.at(key_path(run / name))  # who can write the folder can read its keys
        Ledger(run / name, read_ledger(run / name).header, signer=key).close()
    write_report(run)
    write_manifest(run)
    assert verify(run).ok
    assert "ledger.jsonl: does not hold the anchor" in failures(run, head)


def test_a_missing_node_ledger_is_found(run: Path) -> None:
    shutil.rmtree(run / "nodes")
    assert "nodes/local/ledger.jsonl: named in the release manifest, but missing" in failures(run)
    shutil.rmtree(run / "release")
    assert failures(run) == "nodes/: no node ledger"


def test_a_missing_federation_ledger_is_found(run: Path) -> None:
    (run / "ledger.jsonl").unlink()
    assert "ledger.jsonl: cannot be read" in failures(run)


@pytest.mark.parametrize("name", LEDGERS)
def test_an_edited_ledger_is_found(run: Path, name: str) -> None:
    path = run / name
    path.write_bytes(path.read_bytes().replace(b'"noise_multiplier":8.0', b'"noise_multiplier":9.0', 1))
    assert f"{name}: " in failures(run)
    assert verify(run).to_text().endswith("NOT VERIFIED\n")


@pytest.mark.parametrize("key", ["claim", "summary", "facts", "rounds_reserved", "nodes", "ledgers", "target_epsilon"])
def test_a_report_without_one_of_its_parts_is_found(run: Path, key: str) -> None:
    edit_json(run / "report.json", lambda fields: fields.pop(key))
    assert failures(run) == f"report.json: differs from what the ledgers say in {key}"


def scale_epsilon(fields: dict[str, Any], factor: float) -> None:
    fields["claim"][0]["epsilon"] *= factor


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda f: scale_epsilon(f, 0.99), id="a smaller epsilon"),
        pytest.param(lambda f: scale_epsilon(f, 1 - 1e-5), id="a slightly smaller epsilon"),
        pytest.param(lambda f: f["claim"][0].update(epsilon=None), id="no epsilon"),
        pytest.param(lambda f: f["claim"][0].update(epsilon="0.1"), id="epsilon as a string"),
        pytest.param(lambda f: f["claim"][0].update(epsilon=True), id="epsilon as a bool"),
        pytest.param(lambda f: f["claim"][0].update(epsilon=float("nan")), id="epsilon NaN"),
        pytest.param(lambda f: f["claim"][2].update(trusted=False), id="a trusted server hidden"),
        pytest.param(lambda f: f["claim"][2].update(epsilon=1.0), id="an epsilon for a trusted server"),
        pytest.param(lambda f: f["claim"].pop(), id="an adversary left out"),
        pytest.param(lambda f: f["claim"].reverse(), id="rows exchanged"),
        pytest.param(lambda f: f["assumptions"].pop(0), id="an assumption left out"),
        pytest.param(lambda f: f.update(delta=1e-9), id="another delta"),
        pytest.param(lambda f: f.update(unit="client"), id="another unit"),
        pytest.param(lambda f: f.update(surplus=1), id="a surplus field"),
        pytest.param(lambda f: f["nodes"][0]["rows"][0].update(epsilon=0.1), id="a node's epsilon"),
        pytest.param(lambda f: f["ledgers"][0].update(head="0" * 64), id="another head"),
    ],
)
def test_a_tampered_report_is_found(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit_json(run / "report.json", change)
    assert "report.json: differs" in failures(run)


def test_another_processors_last_bits_are_no_tampering(run: Path) -> None:
    edit_json(run / "report.json", lambda f: scale_epsilon(f, 1 + 1e-9))
    assert verify(run).ok


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 100_000])
@pytest.mark.parametrize("file", ["report.json", "release/manifest.json"])
def test_a_report_or_manifest_that_cannot_be_read_fails_without_a_traceback(
    run: Path, file: str, content: bytes
) -> None:
    (run / file).write_bytes(content)
    assert f"{Path(file).name}: " in failures(run)


@pytest.mark.parametrize("heads", [[1, 2], "abc", None, 3, {"ledger.jsonl": 3}, {"ledger.jsonl": None}])
def test_a_manifest_whose_heads_are_no_table_of_hashes_fails_without_a_traceback(run: Path, heads: Any) -> None:
    edit_json(run / "release" / "manifest.json", lambda fields: fields.update(ledger_heads=heads))
    assert "manifest.json: " in failures(run)


def change_released_file(release: Path) -> None:
    (release / "reward" / "head.bin").write_bytes(b"weightS")


def add_released_file(release: Path) -> None:
    (release / "adapter.bin").write_bytes(b"trained without any noise")


def remove_released_file(release: Path) -> None:
    (release / "reward" / "head.bin").unlink()


@pytest.mark.parametrize("change", [change_released_file, add_released_file, remove_released_file])
def test_a_release_that_is_not_the_one_of_the_manifest_is_found(run: Path, change: Callable[[Path], None]) -> None:
    change(run / "release")
    assert "release/" in failures(run)


@pytest.mark.parametrize("files", [None, [], "reward/head.bin", {}, {"reward/head.bin": None}])
def test_a_manifest_whose_files_are_no_table_of_digests_fails_without_a_traceback(run: Path, files: Any) -> None:
    edit_json(run / "release" / "manifest.json", lambda fields: fields.update(files=files))
    assert "release/" in failures(run)


@pytest.mark.parametrize(
    "changed",
    [{"run": "other"}, {"unit": PrivacyUnit.EXAMPLE}, {"target_delta": 1e-9}, {"private_rng": False}],
    ids=lambda c: next(iter(c)),
)
def test_a_node_ledger_of_another_run_is_found_without_any_anchor(
    run: Path, tmp_path: Path, changed: dict[str, Any]
) -> None:
    other = write_run(tmp_path / "other", **changed)
    shutil.copy(other / LEDGERS[1], run / LEDGERS[1])
    shutil.rmtree(run / "release")
    assert "different terms" in failures(run)


@pytest.mark.parametrize(("shortened", "scope"), [(0, "federation"), (1, "node:local")])
def test_a_ledger_that_lacks_rounds_of_the_other_is_found_without_any_anchor(
    run: Path, shortened: int, scope: str
) -> None:
    shutil.rmtree(run / "release")
    (run / "report.json").unlink()
    drop_last_lines(run / LEDGERS[shortened], 2, signed=False)
    assert verify(run).ok  # so a run looks that is under way: the newest round in one ledger alone
    drop_last_lines(run / LEDGERS[shortened], 2)
    assert f"{scope}: round 2 is not booked" in failures(run)


def test_a_finished_run_lacks_no_round_of_its_plan(tmp_path: Path) -> None:
    assert verify(write_run(tmp_path / "whole", rounds=3, facts={"num_rounds": 3})).ok
    assert "round 4 is not booked" in failures(write_run(tmp_path / "short", rounds=3, facts={"num_rounds": 4}))


@pytest.mark.parametrize("number", [10**12, 10**30])
def test_absurd_round_numbers_fail_without_filling_the_memory(tmp_path: Path, number: int) -> None:
    run = write_run(tmp_path / "planned", rounds=1, facts={"num_rounds": number})
    assert "round 2 is not booked" in failures(run)
    shutil.rmtree(run / "release")
    append_reservation(run / "ledger.jsonl", number, GaussianEvent(8.0, 0.5).to_json())
    assert "node:local: round 2 is not booked" in failures(run)


def append_reservation(path: Path, number: int, event: Any) -> None:
    writer = ChainWriter(path)
    booked = {**{a.value: e.to_json() for a, e in events().items()}, "reader": event}
    writer.append("reserve", {"round": number, "events": booked}, durable=True)
    writer.close()


def test_an_event_outside_the_vocabulary_fails_without_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    write_ledger(path, 1)
    append_reservation(path, 2, {"kind": "laplace", "scale": 1.0})
    assert "Not an event" in failures(path)


def test_an_event_beyond_the_accountant_fails_without_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    write_ledger(path, 1, target_epsilon=8.0)
    append_reservation(path, 2, {**GaussianEvent(1e300, 1.0).to_json()})
    assert "epsilon against reader" in failures(path)


def test_a_delta_that_is_no_probability_fails_without_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    write_ledger(path, 0, target_delta=2.0)
    assert "delta=2.0" in failures(path)


@pytest.mark.parametrize(
    "event", [GaussianEvent(0.5, 1.0), NonPrivateEvent("no noise")], ids=["too little noise", "no noise"]
)
def test_a_ledger_above_its_own_budget_fails(tmp_path: Path, event: GaussianEvent | NonPrivateEvent) -> None:
    """The writer refuses such a round; so a ledger that holds it was not written by an honest one."""
    path = tmp_path / "ledger.jsonl"
    write_ledger(path, 1, target_epsilon=2.0)
    append_reservation(path, 2, event.to_json())
    assert "epsilon against reader is" in failures(path)
    assert "above the budget 2" in failures(path)


def test_a_seeded_run_within_its_nominal_budget_is_verified_with_no_finite_epsilon(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", private_rng=False, target_epsilon=8.0)
    verdict = verify(run)
    assert verdict.ok, verdict.failed
    assert verdict.epsilons == dict.fromkeys(("reader", "other_clients", "server"))
    assert "against reader: no finite epsilon" in verdict.to_text()


def test_nothing_is_verified_where_nothing_is(tmp_path: Path) -> None:
    assert not verify(tmp_path / "nowhere").ok
    assert not verify(tmp_path).ok
    (tmp_path / "empty.jsonl").touch()
    assert not verify(tmp_path / "empty.jsonl").ok


def test_a_single_ledger_file_can_be_verified(tmp_path: Path) -> None:
    head = write_ledger(tmp_path / "ledger.jsonl", 2)
    assert verify(tmp_path / "ledger.jsonl", head).ok
    assert not verify(tmp_path / "ledger.jsonl", "0" * 64).ok


def test_the_exit_code_is_0_if_verified_and_1_if_not(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(run)]) == 0
    assert capsys.readouterr().out == verify(run).to_text()
    assert main(["verify", str(run), "--head", "0" * 64]) == 1
    assert "NOT VERIFIED" in capsys.readouterr().out
    assert main(["verify", str(run / "ledger.jsonl"), "--head", read_ledger(run / "ledger.jsonl").head]) == 0
    assert main(["verify", str(run / "nowhere")]) == 1


def test_json_is_one_object_whose_ok_is_the_exit_code(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(run), "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict == verify(run).to_json()
    assert verdict["ok"] is True
    edit_json(run / "report.json", lambda f: scale_epsilon(f, 0.5))
    assert main(["verify", str(run), "--json"]) == 1
    verdict = json.loads(capsys.readouterr().out)
    assert (verdict["ok"], verdict["failed"]) == (False, ["report.json: differs from what the ledgers say in claim"])


@pytest.mark.parametrize("arguments", [[], ["verify"], ["audit", "x"], ["verify", "x", "--nonsense"]])
def test_wrong_usage_ends_with_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    capsys.readouterr()


@pytest.mark.slow  # seconds
def test_the_module_runs_as_a_program_in_another_folder(run: Path, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    code = "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); runpy.run_module('privacy', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, str(root), "verify", str(run), "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"] is True


def test_a_report_is_what_the_ledgers_say_also_while_a_round_is_open(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rounds=1)
    for name, file in zip(("federation", "node:local"), LEDGERS, strict=True):
        assert read_ledger(run / file).header == header(scope=name)
        append_reservation(run / file, 2, GaussianEvent(8.0, 0.5).to_json())
    assert build_report(run).fields["rounds_reserved"] == 2
    assert build_report(run).fields["rounds_committed"] == 1
    shutil.rmtree(run / "release")
    assert "report.json: differs" in failures(run)
