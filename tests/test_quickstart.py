"""The quickstart as its user runs it, with the real embedded model (make test-model)."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

import fedpref
import reward
from privacy.units import Adversary

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of the quickstart through the command line."""
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    command = [sys.executable, "-m", "fedpref", "run", "quickstart", f"output_dir={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "is protected" in done.stdout
    return folder


def test_it_beats_longer_is_better_on_topics_that_it_never_saw(run_folder: Path) -> None:
    for block in json.loads((run_folder / "evaluation.json").read_text()).values():
        assert block["over_longer_is_better_interval"][0] > 0


def test_the_released_figures_stay_within_the_target(run_folder: Path) -> None:
    report = fedpref.Run(run_folder).report()
    claim = {row["adversary"]: row for row in report.fields["claim"]}
    assert 1.9 < claim[Adversary.READER.value]["epsilon"] <= 2.0
    assert not claim[Adversary.SERVER.value]["trusted"]
    assert 1.9 < claim[Adversary.SERVER.value]["epsilon"] <= 2.0


def test_the_released_model_prefers_an_argument_to_noise(run_folder: Path) -> None:
    model = reward.load(run_folder / "release" / "reward")
    question = "Topic under debate: TV is better than Books\nWrite a short argument that supports this side: Books"
    good, bad = model.score(
        [question, question],
        ["Books make you think for yourself, because every reader has to picture what the words describe.", "idk lol"],
    )
    assert math.isfinite(good)
    assert good > bad


def test_the_policy_earns_more_reward_than_its_base_model(run_folder: Path) -> None:
    run = fedpref.Run(run_folder)
    for group in ("seen topics", "unseen topics"):
        block = run.policy_evaluation[group]
        assert block["rewards"]["reward_model"]["difference"] > 0, group
        (judge,) = block["judges"].values()
        assert judge["accuracy_on_held_out_votes"] > 0.6
        assert 0 <= judge["length_controlled_win_rate"] <= 1
    seen = run.policy_evaluation["seen topics"]
    assert seen["rewards"]["reward_model"]["difference_interval"][0] > 0
    assert seen["kl_to_base"]["nats_per_completion"] > 0


def test_the_shipped_public_text_is_what_the_description_says(run_folder: Path) -> None:
    from fedpref.data.loading import load_public

    public = load_public("ukpconvarg1_public", ())
    assert len(public) == 672
    assert len({c.prompt for c in public}) == 28
    assert run_folder.exists()
