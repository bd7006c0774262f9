"""The report: its first sentence is for everybody, its table leaves nobody out, its figures come from the ledgers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.__main__ import main
from privacy.accounting import epsilon
from privacy.errors import LedgerError
from privacy.events import GaussianEvent
from privacy.report import Verdict, build_report, render_text
from privacy.report.build import rounded_up
from privacy.report.text import epsilon_text
from privacy.units import Adversary, PrivacyUnit, Trust
from tests.privacy.books import DELTA, REPEATABLE, write_run
from tests.privacy.oracles import discrete


def claimed(run: Path, adversary: Adversary = Adversary.READER) -> dict[str, Any]:
    (row,) = (row for row in build_report(run).fields["claim"] if row["adversary"] == adversary.value)
    return dict(row)


def test_the_first_sentence_says_who_is_protected_against_what_and_by_how_much(tmp_path: Path) -> None:
    summary = build_report(write_run(tmp_path / "run")).summary
    assert summary.startswith("Each of the 1,234 people in this federation is protected:")
    assert "whoever reads what was released" in summary
    assert "at delta = 1e-05 (user level)" in summary
    assert "the server is trusted and sees every client's un-noised sum" in summary
    assert f"epsilon = {rounded_up(epsilon({GaussianEvent(8.0, 0.5): 3}, DELTA))} at" in summary


@REPEATABLE
@given(st.floats(0.0, 1e3))
def test_a_printed_epsilon_is_rounded_up_never_down(exact: float) -> None:
    assert exact - 1e-12 * exact <= float(rounded_up(exact)) < exact + 1.0001e-4
    row = {"trusted": False, "epsilon": exact, "delta": DELTA, "unit": "user"}
    assert epsilon_text(row).startswith(f"epsilon {rounded_up(exact)} at")
    verdict = Verdict()
    verdict.book("reader", exact, DELTA, "user")
    assert f"epsilon {rounded_up(exact)} at delta {DELTA:g}, unit user\n" in verdict.to_text()


@pytest.mark.parametrize(
    ("unit", "phrase"),
    [
        (PrivacyUnit.USER, "1,234 people"),
        (PrivacyUnit.EXAMPLE, "1,234 preference records"),
        (PrivacyUnit.CLIENT, "1,234 clients"),
    ],
)
def test_the_first_sentence_names_the_unit(tmp_path: Path, unit: PrivacyUnit, phrase: str) -> None:
    summary = build_report(write_run(tmp_path / "run", unit=unit)).summary
    assert phrase in summary
    assert f"({unit.value} level)" in summary


def test_without_a_declared_number_the_sentence_speaks_of_each(tmp_path: Path) -> None:
    assert build_report(write_run(tmp_path / "run", facts={})).summary.startswith("Each person in this federation")


def test_under_local_trust_the_sentence_says_that_nobody_is_trusted(tmp_path: Path) -> None:
    report = build_report(write_run(tmp_path / "run", trust=Trust.LOCAL))
    assert "nobody is trusted: the same holds against the server" in report.summary
    assert "trusted, not checked" not in render_text(report)


def test_a_run_with_seeded_random_numbers_is_not_private_in_the_first_words(tmp_path: Path) -> None:
    report = build_report(write_run(tmp_path / "run", private_rng=False))
    assert report.summary.startswith("NOT PRIVATE:")
    assert "seeded" in report.summary
    assert render_text(report).startswith("NOT PRIVATE:")
    nominal = epsilon({GaussianEvent(8.0, 0.5): 3}, DELTA)
    for row in report.fields["claim"]:
        assert row["epsilon"] is None
    assert report.fields["claim"][0]["epsilon_if_random_numbers_were_private"] == nominal
    assert f"INFINITE ({rounded_up(nominal)} had the random numbers been private)" in render_text(report)
    assert not re.search(r"  epsilon \d", render_text(report))  # no finite claim anywhere


def test_a_run_without_noise_is_not_private_in_the_first_words(tmp_path: Path) -> None:
    report = build_report(write_run(tmp_path / "run", noise_multiplier=0.0))
    assert report.summary.startswith("NOT PRIVATE:")
    assert claimed(tmp_path / "run")["epsilon"] is None
    assert "INFINITE" in render_text(report)


def test_every_adversary_has_a_row_and_no_epsilon_stands_without_one(tmp_path: Path) -> None:
    report = build_report(write_run(tmp_path / "run"))
    tables = [report.fields["claim"], *(node["rows"] for node in report.fields["nodes"])]
    assert len(tables) == 2
    for rows in tables:
        assert [row["adversary"] for row in rows] == [a.value for a in Adversary]
        assert all(row["described"] == Adversary(row["adversary"]).described for row in rows)
        assert all(row["unit"] == "user" and row["delta"] == DELTA for row in rows)
    text = render_text(report)
    for line in text.splitlines():
        if re.search(r"epsilon \d", line):
            assert any(a.described in line for a in Adversary), line
    for adversary in Adversary:
        assert text.count(adversary.described) == 2


def test_a_trusted_server_has_a_row_that_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    row = claimed(run, Adversary.SERVER)
    assert (row["trusted"], row["epsilon"]) == (True, None)
    assert epsilon_text(row) == "none: trusted"
    lines = [line for line in render_text(build_report(run)).splitlines() if "honest-but-curious server" in line]
    assert len(lines) == 2
    assert all(line.endswith("none: trusted") for line in lines)


def test_figures_are_composed_from_the_ledgers(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rounds=4)
    fields = build_report(run).fields
    assert claimed(run)["epsilon"] == epsilon({discrete(8.0, 0.5): 4}, DELTA)
    assert claimed(run)["events"] == [{"count": 4, "event": discrete(8.0, 0.5).to_json()}]
    assert fields["nodes"][0]["rows"][0]["epsilon"] == epsilon({GaussianEvent(8.0, 1.0): 4}, DELTA)
    assert (fields["rounds_reserved"], fields["rounds_committed"]) == (4, 4)
    assert [x["file"] for x in fields["ledgers"]] == ["ledger.jsonl", "nodes/local/ledger.jsonl"]
    assert all(x["entries"] == 9 for x in fields["ledgers"])


def test_a_run_that_has_booked_nothing_has_spent_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rounds=0)
    assert claimed(run)["epsilon"] == 0.0
    assert "epsilon = 0.0000" in build_report(run).summary


def test_assumptions_name_the_people_who_are_not_protected(tmp_path: Path) -> None:
    text = " ".join(build_report(write_run(tmp_path / "run")).fields["assumptions"])
    assert "56 evaluation users" in text
    assert "NOT protected" in text
    assert "not checked" in text
    none = " ".join(build_report(write_run(tmp_path / "none", facts={"num_evaluation_users": 0})).fields["assumptions"])
    assert "evaluation users" not in none


def test_the_text_holds_public_constants_heads_and_the_way_to_check(tmp_path: Path) -> None:
    report = build_report(write_run(tmp_path / "run"))
    text = render_text(report)
    assert "public constant max_grad_norm = 1.0" in text
    for ledger in report.fields["ledgers"]:
        assert ledger["head"] in text
    assert "python -m privacy verify" in text


def test_a_report_is_json_without_nan_or_infinity(tmp_path: Path) -> None:
    for name, private in (("a", True), ("b", False)):
        fields = build_report(write_run(tmp_path / name, private_rng=private)).fields
        assert json.loads(json.dumps(fields, allow_nan=False)) == fields


@pytest.mark.parametrize("missing", ["ledger.jsonl", "nodes/local/ledger.jsonl"])
def test_there_is_no_report_without_both_ledgers(tmp_path: Path, missing: str) -> None:
    run = write_run(tmp_path / "run")
    (run / missing).unlink()
    with pytest.raises(LedgerError):
        build_report(run)


def test_there_is_no_report_of_a_broken_ledger(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    ledger = run / "nodes" / "local" / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes().replace(b'"round":2', b'"round":3'))
    with pytest.raises(LedgerError):
        build_report(run)


def test_report_prints_text_or_one_json_object_and_ends_with_code_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == (run / "report.txt").read_text(encoding="utf-8")
    assert main(["report", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == build_report(run).fields


def test_report_of_nothing_prints_what_why_and_fix_and_ends_with_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path / "nowhere")]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert [line.split(":")[0].strip() for line in printed.err.splitlines()] == [
        "error[FP420] ledger.jsonl",
        "why",
        "fix",
    ]


def test_infinity_is_spelled_out() -> None:
    row = {
        "trusted": False,
        "epsilon": None,
        "epsilon_if_random_numbers_were_private": None,
        "delta": DELTA,
        "unit": "user",
    }
    assert epsilon_text(row) == "INFINITE"
    assert epsilon_text({**row, "epsilon": 1.25}) == "epsilon 1.2500 at delta 1e-05, unit user"
