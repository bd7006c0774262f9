"""Reward accuracy on evaluation users: by hand, per topic, and intervals that hold the truth as often as they say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import fedpref
from fedpref.cli.run import evaluation_line
from fedpref.data.preferences import Preferences
from fedpref.evaluation import correctness, evaluate, interval
from reward.pairs import Conversation
from tests.fedpref.conftest import FinishedRun, speak
from tests.tiny import preferences, votes, write_jsonl


def by_length(texts: Sequence[Conversation]) -> npt.NDArray[np.float64]:
    return np.array([float(len(t.completion)) for t in texts])


def by_first_letter(texts: Sequence[Conversation]) -> npt.NDArray[np.float64]:
    """`a` is best, then `b`, ..."""
    return np.array([-float(ord(t.completion[0])) for t in texts])


HAND = preferences(
    [
        ("u", "a", "bb"),  # right; the longer one lost
        ("u", "b", "aa"),  # wrong; the longer one lost
        ("v", "bbb", "cc"),  # right; the longer one won
        ("v", "ax", "ay"),  # a tie in both
    ]
)


def test_accuracy_by_hand() -> None:
    figures = evaluate(HAND, by_first_letter, 200, 0)
    assert figures["pairs"] == 4
    assert figures["users"] == 2
    assert figures["reward_accuracy"] == (1 + 0 + 1 + 0.5) / 4
    assert figures["longer_is_better"] == (0 + 0 + 1 + 0.5) / 4
    assert figures["over_longer_is_better"] == 0.25
    assert evaluate(HAND, by_length, 200, 0)["over_longer_is_better"] == 0.0


def test_every_text_is_scored_once_and_only_if_a_record_needs_it() -> None:
    asked: list[str] = []

    def scores(texts: Sequence[Conversation]) -> npt.NDArray[np.float64]:
        asked.extend(t.completion for t in texts)
        return by_length(texts)

    correctness(HAND.select(np.array([0, 0, 1])), scores)
    assert sorted(asked) == ["a", "aa", "b", "bb"]


def test_a_score_that_is_not_finite_counts_as_a_tie() -> None:
    correct, _ = correctness(HAND, lambda texts: np.full(len(texts), np.nan))
    assert correct.tolist() == [0.5] * 4


def topical(*topics: str) -> Preferences:
    return replace(HAND, topic=np.array(topics))


def test_per_topic_and_the_worst_one_by_hand() -> None:
    figures = evaluate(topical("x", "y", "x", "x"), by_first_letter, 200, 0)
    assert figures["topics"]["x"]["reward_accuracy"] == pytest.approx(2.5 / 3)
    assert figures["topics"]["y"]["reward_accuracy"] == 0.0
    assert figures["worst_topic"] == "y"
    assert figures["topics"]["x"]["pairs"] == 3


def test_a_topic_with_one_vote_and_a_single_user_have_no_interval() -> None:
    figures = evaluate(topical("x", "y", "x", "x"), by_first_letter, 200, 0)
    assert figures["topics"]["y"]["interval"] is None
    assert figures["topics"]["x"]["interval"] is not None
    alone = evaluate(HAND.select(np.array([0, 1])), by_first_letter, 200, 0)
    assert alone["interval"] is None
    assert alone["reward_accuracy"] == 0.5
    assert "[" not in evaluation_line("seen topics", alone)


def test_one_topic_is_no_table_and_no_record_is_no_figure() -> None:
    assert evaluate(topical("x", "x", "x", "x"), by_first_letter, 200, 0)["topics"] == {}
    nothing = evaluate(HAND.select(np.zeros(0, dtype=np.int64)), by_first_letter, 200, 0)
    assert nothing == {"pairs": 0}
    assert "no pairs" in evaluation_line("unseen topics", nothing)
    json.dumps(nothing)


def test_intervals_are_seeded_and_hold_the_estimate() -> None:
    rng = np.random.default_rng(0)
    values, users = rng.integers(0, 2, 200).astype(float), rng.integers(0, 30, 200)
    low, high = interval(values, users, 1000, 3) or (0.0, 0.0)
    assert (low, high) == interval(values, users, 1000, 3)
    assert (low, high) != interval(values, users, 1000, 4)
    assert low < values.mean() < high
    assert interval(np.ones(50), np.arange(50), 200, 0) == (1.0, 1.0)


@pytest.mark.statistical
def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """95 % intervals over 60 people whose own accuracies differ: of 400 simulations at least 88.5 % must hold the truth.

    Percentile intervals of 60 clusters cover about 94 %; P(Binomial(400, 0.93) < 354) < 1e-3. Resampling votes instead
    of people covers about 60 % here and fails, which the last line shows.
    """
    rng, people, hits, naive_hits = np.random.default_rng(5), 60, 0, 0
    for i in range(400):
        accuracy = np.clip(rng.normal(0.7, 0.25, people), 0, 1)
        votes_each = rng.integers(1, 40, people)
        owner = np.repeat(np.arange(people), votes_each)
        values = (rng.random(len(owner)) < accuracy[owner]).astype(float)
        low, high = interval(values, owner, 200, i) or (0.0, 0.0)
        hits += low <= TRUTH <= high
        if i < 60:
            low, high = interval(values, np.arange(len(owner)), 200, i) or (0.0, 0.0)
            naive_hits += low <= TRUTH <= high
    assert hits >= 354
    assert naive_hits < 0.8 * 60


def _mean_of_clipped_normal() -> float:
    """E clip(N(0.7, 0.25), 0, 1), by quadrature; votes and accuracy are independent, so it is the mean of a vote."""
    x = np.linspace(-2, 3, 200001)
    density = np.exp(-0.5 * ((x - 0.7) / 0.25) ** 2) / (0.25 * np.sqrt(2 * np.pi))
    return float(np.sum(np.clip(x, 0, 1) * density) * (x[1] - x[0]))


TRUTH = _mean_of_clipped_normal()


def test_the_runs_own_evaluation_and_eval_on_the_same_records_agree(finished: FinishedRun, tmp_path: Path) -> None:
    """`fedpref eval` on a file with the evaluation users' votes gives the figures of the run."""
    from fedpref.data.loading import load_federated

    split = load_federated(finished.recipe, lambda _: None).split
    rows = [
        {
            "prompt": split.seen.texts[c].prompt[-1][1],
            "chosen": split.seen.texts[c].completion,
            "rejected": split.seen.texts[r].completion,
            "user_id": str(u),
            "topic": str(t),
        }
        for c, r, u, t in zip(split.seen.chosen, split.seen.rejected, split.seen.user, split.seen.topic, strict=True)
    ]
    path = write_jsonl(tmp_path / "held.jsonl", rows)
    spoken = speak("eval", str(finished.path), "--data", str(path), "--json")
    assert spoken.code == 0, spoken.err
    figures, own = json.loads(spoken.out), fedpref.Run(finished.path).evaluation["seen topics"]
    for key in ("pairs", "users", "reward_accuracy", "longer_is_better", "interval"):
        assert figures[key] == pytest.approx(own[key])


def test_eval_gives_reward_accuracy_as_json_without_user_ids(finished: FinishedRun, tmp_path: Path) -> None:
    rows = [{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in votes(20, seed=9)]
    path = write_jsonl(tmp_path / "others.jsonl", rows)
    spoken = speak("eval", str(finished.path), "--data", str(path), "--json")
    figures = json.loads(spoken.out)
    assert 0 <= figures["reward_accuracy"] <= 1
    model = fedpref.Run(finished.path).reward_model()
    chosen = model.score([r["prompt"] for r in rows], [r["chosen"] for r in rows])
    rejected = model.score([r["prompt"] for r in rows], [r["rejected"] for r in rows])
    usable = {(r["prompt"], r["chosen"], r["rejected"]): c > j for r, c, j in zip(rows, chosen, rejected, strict=True)}
    assert figures["reward_accuracy"] == pytest.approx(
        np.mean([usable[r["prompt"], r["chosen"], r["rejected"]] for r in rows])
    )


def test_eval_as_text_names_the_file_and_the_topics(finished: FinishedRun, tmp_path: Path) -> None:
    import yaml

    write_jsonl(tmp_path / "more.jsonl", votes(20, seed=9))
    fields = {"user_id": "user_id", "topic": "topic"}
    description = {"name": "more", "source": "more.jsonl", "license": "CC0-1.0", "fields": fields}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(description))
    spoken = speak("eval", str(finished.path), "--data", str(tmp_path / "more.yaml"))
    assert spoken.code == 0
    assert "reward accuracy" in spoken.out
    for topic in ("cats", "dogs", "birds"):
        assert topic in spoken.out
