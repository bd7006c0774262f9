"""A whole run with `evaluation.federated: true` through the command line: what it prints, books, keeps silent, and refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from unittest import mock

import pytest

import fedpref
from fedpref import api, policy_stage
from fedpref.recipes import read_recipe
from privacy.ledger import read_ledger
from privacy.report import build_report, verify
from privacy.units import Adversary
from tests.fedpref.conftest import Spoken, speak
from tests.fedpref.test_policy_stage import POLICY
from tests.tiny import votes, write_dataset, write_jsonl, write_prompts, write_recipe

BOOKS = ("evaluation.jsonl", "nodes/local/evaluation.jsonl")


def never(*_: object, **__: object) -> None:
    raise AssertionError("evaluation users' votes were read centrally")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, Spoken]:
    """Private random numbers, a project's books, and a policy; central figures and judges would raise."""
    folder = tmp_path_factory.mktemp("federated-run")
    path = write_recipe(
        folder,
        tiny_model,
        datasets=[str(write_dataset(folder, votes(200)))],
        privacy__ledger=str(folder / "project.jsonl"),
        privacy__project_cap=30.0,
        evaluation__federated=True,
        evaluation__target_epsilon=8.0,
        evaluation__policy_samples=1,
        policy={**POLICY, "max_steps": 1, "prompts": str(write_prompts(folder))},
    )
    with mock.patch.object(api, "_evaluate_split", never), mock.patch.object(policy_stage, "_judge", never):
        spoken = speak("run", str(path))
    assert spoken.code == 0, spoken.err
    return folder / "run", spoken


def test_it_plans_prints_and_books_one_event_of_other_people(done: tuple[Path, Spoken]) -> None:
    run, spoken = done
    assert "federated evaluation: other people than train; 2 groups (seen topics, unseen topics)" in spoken.err
    assert "seen topics    reward accuracy, mean over people," in spoken.out
    assert "covers the noise and the drawing of people" in spoken.out
    assert "no held-out judge" in spoken.err
    planned = json.loads((run / "plan.json").read_text())["evaluation"]
    for name in BOOKS:
        view = read_ledger(run / name)
        assert len(view.booked) == len(view.committed) == 1
        assert view.epsilon(Adversary.READER) == pytest.approx(planned["epsilon"]["reader"])


def test_report_and_verify_show_and_check_both_totals(done: tuple[Path, Spoken]) -> None:
    run, _ = done
    fields = build_report(run).fields
    training, evaluated, both = (
        rows[0]["epsilon"]
        for rows in (fields["claim"], fields["evaluation"]["claim"], fields["evaluation"]["together"])
    )
    assert 7.9 < evaluated <= 8.0
    assert max(training, evaluated) < both < training + evaluated
    text = (run / "report.txt").read_text()
    assert "What federated evaluation tells about one evaluation user" in text
    assert "Training and evaluation added up" in text
    verdict = verify(run)
    assert verdict.ok, verdict.failed
    assert verdict.epsilons["reader (an evaluation user)"] == pytest.approx(evaluated)
    assert any(line.startswith("project.jsonl (evaluation): every round") for line in verdict.passed)
    assert speak("budget", "show", str(run)).out.count("evaluation") >= 2


@pytest.mark.parametrize("name", [*BOOKS, "evaluation.json"])
@pytest.mark.parametrize("how", ["edited", "gone"])
def test_verify_finds_books_and_figures_that_were_changed(
    done: tuple[Path, Spoken], tmp_path: Path, name: str, how: str
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(done[0], copy)
    path = copy / name
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes().replace(b"0.", b"1.", 1))
    assert not verify(copy).ok


def test_nothing_that_was_not_noised_is_told_about_evaluation_users(done: tuple[Path, Spoken]) -> None:
    run, spoken = done
    for name in ("ledger.jsonl", "nodes/local/ledger.jsonl", *BOOKS):
        assert "num_evaluation_users" not in read_ledger(run / name).header.facts
    assert "clients; evaluation users held out" in spoken.err
    told = re.findall(r"^features of (?:private|evaluation users').*: (\S+)$", spoken.err, re.MULTILINE)
    assert told
    assert all(re.fullmatch(r"\d{1,3}/100", count) for count in told), "a number of texts"
    assert "NOT protected" not in (run / "report.txt").read_text()
    assert "who are not protected" not in (run / "release/reward/README.md").read_text()
    table = json.loads((run / "evaluation.json").read_text())
    allowed = {"too_few", "accuracy_per_person", "interval", "noised_people", "noise_std"}
    assert all(set(block) <= allowed for block in table.values())
    assert not any(block["judges"] for block in fedpref.Run(run).policy_evaluation.values())


def test_eval_leaves_out_evaluation_users_as_well(done: tuple[Path, Spoken], tmp_path: Path) -> None:
    run, _ = done
    recipe = read_recipe(run / "recipe.yaml")
    assert recipe.evaluation.federated
    own = write_jsonl(tmp_path / "own.jsonl", votes(200))
    spoken = speak("eval", str(run), "--data", str(own), "--json")
    assert spoken.code == 0, spoken.err
    assert json.loads(spoken.out)["pairs"] == 0
