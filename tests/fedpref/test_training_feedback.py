"""No figure is ever computed from a training user's feedback, whatever file it comes in (guarantees.md rule 18)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import fedpref
from fedpref.data.people import row_name
from fedpref.data.preferences import Preferences
from fedpref.data.split import is_evaluation_user
from fedpref.errors import DatasetError
from fedpref.training_feedback import load_all_feedback, without_training_feedback
from tests.fedpref.conftest import FinishedRun, planted_votes, speak
from tests.tiny import make_recipe, preferences, write_jsonl


def all_votes(folder: Path) -> tuple[Preferences, Preferences, Preferences]:
    """What the tiny run's data hold, the part of its evaluation users, and the rest."""
    recipe = make_recipe(folder)
    run = load_all_feedback(recipe)
    everything = Preferences.concat([*run.clients.values(), run.split.seen, run.split.unseen])
    held = is_evaluation_user(everything.user, recipe.evaluation)
    assert 0 < held.sum() < len(everything)
    return everything, everything.select(held), everything.select(~held)


def nameless(data: Preferences) -> Preferences:
    users = np.array([row_name(i + 1) for i in range(len(data))], dtype=np.str_)
    return Preferences(data.texts, data.chosen, data.rejected, users, data.topic, data.client)


def swapped(data: Preferences) -> Preferences:
    return Preferences(data.texts, data.rejected, data.chosen, data.user, data.topic, data.client)


def test_of_the_runs_own_people_only_evaluation_users_count_on_all_topics(tmp_path: Path) -> None:
    everything, held, rest = all_votes(tmp_path)
    assert "birds" in rest.topic  # an unseen topic: trained on by nobody, and a training user's all the same
    order = np.random.default_rng(0).permutation(len(everything))
    kept, left_out = without_training_feedback(everything.select(order), load_all_feedback(make_recipe(tmp_path)))
    assert left_out == len(rest)
    assert sorted(kept.user.tolist()) == sorted(held.user.tolist())


@pytest.mark.parametrize("turn", [nameless, lambda data: swapped(nameless(data))])
def test_a_copy_without_names_is_known_by_its_pairs(tmp_path: Path, turn: object) -> None:
    _, _, rest = all_votes(tmp_path)
    kept, left_out = without_training_feedback(turn(rest), load_all_feedback(make_recipe(tmp_path)))  # type: ignore[operator]
    assert (len(kept), left_out) == (0, len(rest))


def test_other_people_and_other_pairs_are_kept(tmp_path: Path) -> None:
    run = load_all_feedback(make_recipe(tmp_path))
    _, _, rest = all_votes(tmp_path)
    strangers = Preferences(
        rest.texts, rest.chosen, rest.rejected, np.char.add(rest.user, "-else"), rest.topic, rest.client
    )
    assert without_training_feedback(strangers, run)[1] == 0
    assert without_training_feedback(preferences([(row_name(1), "new", "text"), ("x", "a", "b")]), run)[1] == 0
    assert len(without_training_feedback(preferences([]), run)[0]) == 0


def test_eval_sees_through_a_re_exported_copy(finished: FinishedRun, tmp_path: Path) -> None:
    """Other bytes, another order, a column more: the figures are those of evaluation users all the same."""
    copy = write_jsonl(tmp_path / "copy.jsonl", [{"site": 1, **row} for row in reversed(planted_votes())])
    spoken = speak("eval", str(finished.path), "--data", str(copy), "--json")
    assert spoken.code == 0, spoken.err
    own = fedpref.Run(finished.path).evaluation
    assert json.loads(spoken.out)["pairs"] == own["seen topics"]["pairs"] + own["unseen topics"]["pairs"]
    assert "votes of the run's own training users are left out" in spoken.err


def test_without_the_runs_data_nobody_can_tell_who_is_who(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    (tmp_path / "votes.yaml").unlink()
    with pytest.raises(DatasetError):
        load_all_feedback(recipe)
