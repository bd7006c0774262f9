"""What leaves a finished run: a reward model in two lines, a card, a manifest that names every byte."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import safetensors.numpy

import fedpref
import reward
from fedpref.evaluation import evaluate
from fedpref.plan import make_plan
from privacy.ledger import read_ledger
from privacy.report import verify
from tests.fedpref.conftest import FinishedRun
from tests.tiny import fake_features, make_recipe, preferences, train, votes


def test_the_manifest_names_every_released_file_and_the_heads_of_all_ledgers(finished: FinishedRun) -> None:
    release = finished.path / "release"
    manifest = json.loads((release / "manifest.json").read_text())
    files = {str(p.relative_to(release)): p for p in release.rglob("*") if p.is_file() and p.name != "manifest.json"}
    assert manifest["files"] == {name: hashlib.sha256(p.read_bytes()).hexdigest() for name, p in files.items()}
    assert manifest["plan_digest"] == make_plan(finished.recipe).digest
    assert manifest["ledger_heads"] == {
        name: read_ledger(finished.path / name).head for name in ("ledger.jsonl", "nodes/local/ledger.jsonl")
    }


def test_the_released_head_is_the_mean_of_the_late_checkpoints(finished: FinishedRun) -> None:
    head = safetensors.numpy.load_file(finished.path / "release/reward/reward_head.safetensors")["score.weight"]
    late = [
        safetensors.numpy.load_file(finished.path / f"checkpoints/round-{n:06d}.safetensors")["parameters"]
        for n in (4, 5, 6)
    ]
    np.testing.assert_allclose(head, np.mean(late, axis=0)[None], rtol=1e-6)


def test_two_lines_load_and_score(finished: FinishedRun) -> None:
    model = reward.load(finished.path / "release/reward")
    scores = model.score(["Why read books?"] * 2, ["Because they last.", "!!!!!!!!"])
    assert len(scores) == 2
    assert all(np.isfinite(scores))
    assert scores == fedpref.Run(finished.path).reward_model().score(
        ["Why read books?"] * 2, ["Because they last.", "!!!!!!!!"]
    )


def test_the_model_card_states_data_privacy_and_evaluation(finished: FinishedRun) -> None:
    card = (finished.path / "release/reward/README.md").read_text()
    report = json.loads((finished.path / "report.json").read_text())
    assert report["summary"] in card
    for line in report["assumptions"]:
        assert line in card
    for row in report["claim"]:
        assert row["described"] in card
    assert "CC0-1.0" in card
    assert "public text" in card
    assert "evaluation users, who are not protected" in card
    accuracy = fedpref.Run(finished.path).evaluation["seen topics"]["reward_accuracy"]
    assert f"{100 * accuracy:.1f} %" in card
    seen = fedpref.Run(finished.path).evaluation["seen topics"]
    worst = seen["topics"][seen["worst_topic"]]["reward_accuracy"]
    assert worst == min(of["reward_accuracy"] for of in seen["topics"].values())
    assert f"worst topic `{seen['worst_topic']}`: {100 * worst:.1f} %" in card
    assert card.count("worst topic") == 1  # a single unseen topic has no worst one


def test_a_release_that_was_changed_afterwards_is_seen_in_the_manifest(finished: FinishedRun, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished.path, copy)
    assert verify(copy).ok
    manifest = json.loads((copy / "release/manifest.json").read_text())
    manifest["ledger_heads"]["ledger.jsonl"] = "0" * 64
    (copy / "release/manifest.json").write_text(json.dumps(manifest))
    assert not verify(copy).ok


def test_a_run_is_opened_again_with_recipe_report_and_evaluation(finished: FinishedRun) -> None:
    run = fedpref.Run(finished.path)
    assert run.recipe == finished.recipe
    assert run.report().summary.startswith("NOT PRIVATE")
    assert run.evaluation["seen topics"]["pairs"] > 0
    assert run.status["status"] == "finished"


def test_a_head_trained_on_planted_votes_ranks_the_votes_of_others(tmp_path: Path) -> None:
    """The tiny voters like exclamation marks nine times in ten: the trained head does too, and a zero head does not."""
    privacy = {"noise_multiplier": 0, "sample_rate": 1.0, "rng": "seeded"}
    weight = train(make_recipe(tmp_path, privacy=privacy, federation__num_rounds=20))
    features, rows = fake_features(8), votes(40, 4, seed=7)
    others = preferences([(r["user_id"], r["chosen"], r["rejected"]) for r in rows])
    assert evaluate(others, lambda texts: features(texts) @ weight, 100, 0)["reward_accuracy"] > 0.75
    assert evaluate(others, lambda texts: features(texts) @ np.zeros(8), 100, 0)["reward_accuracy"] == 0.5
