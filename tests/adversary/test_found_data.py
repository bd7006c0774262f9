"""What an attacker found about data: who refuses, who was trained on, what is one record; each as a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import fedpref
from fedpref.api import run
from fedpref.config import Recipe
from fedpref.consent import ask_for_figures, keep_refusals
from fedpref.data.loading import FederatedData, load_federated
from fedpref.data.split import is_evaluation_user
from fedpref.errors import RunFolderError
from fedpref.recipes import validate_recipe
from fedpref.tracking import Trackers
from fedpref.training_feedback import load_all_feedback, without_training_feedback
from privacy.errors import ParameterError
from privacy.ledger import read_ledger
from privacy.terms import Terms
from tests.fedpref.test_evaluation_stage import evaluate
from tests.tiny import make_recipe, preferences, recipe_tree, train, training_input, votes, write_dataset, write_jsonl

BUDGET = {"delta": 1e-5, "epsilon": {"reader": 30, "other_clients": 30, "server": 30}}
AGREES = {"budgets": {"user": BUDGET}, "trust": ["central"], "server": "embedded"}
REFUSES = {**AGREES, "trust": ["distributed"]}
SHOWS = {**AGREES, "unnoised_evaluation": True}
CLIENTS = ("alpha", "beta")
NO_NOISE_TO_SPEAK_OF: dict[str, Any] = {"privacy__noise_multiplier": 20.0, "federation__num_rounds": 2}


def clinics(folder: Path, terms: dict[str, dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """Two clients by file, each with its terms: changes of the tiny recipe."""
    (folder / "clinics").mkdir(parents=True)
    (folder / "terms").mkdir()
    for name in CLIENTS:
        write_jsonl(folder / "clinics" / f"{name}.jsonl", [r for r in votes() if client_of(r["user_id"]) == name])
    for name, of in terms.items():
        (folder / "terms" / f"{name}.yaml").write_text(yaml.safe_dump({"terms": of}))
    described = yaml.safe_load(write_dataset(folder, votes()).read_text()) | {"source": "clinics"}
    (folder / "clinics.yaml").write_text(yaml.safe_dump(described))
    return {
        "datasets": [str(folder / "clinics.yaml")],
        "federation__partition": {"by": "file"},
        "federation__terms": str(folder / "terms"),
        **NO_NOISE_TO_SPEAK_OF,
        **changes,
    }


def client_of(user: str) -> str:
    return CLIENTS[int(user[1:]) % 2]


def consent_after_training(recipe: Recipe) -> tuple[Any, FederatedData]:
    given = training_input(recipe)
    train(recipe)
    node = Path(recipe.output_dir) / "nodes/local"
    return ask_for_figures(recipe, given.plan.digest, given.data, node, lambda _: None), given.data


@pytest.mark.parametrize(
    ("beta", "counts"), [(SHOWS, True), (AGREES, False), (REFUSES, False), ({**SHOWS, "trust": ["distributed"]}, False)]
)
def test_figures_leave_out_the_evaluation_users_of_whoever_does_not_allow_them(
    tmp_path: Path, beta: dict[str, Any], counts: bool
) -> None:
    recipe = make_recipe(tmp_path, **clinics(tmp_path, {"alpha": SHOWS, "beta": beta}))
    consent, data = consent_after_training(recipe)
    held = {name for name in data.roster.evaluation_users if client_of(name) == "beta"}
    assert held
    for kept, part in ((consent.split.seen, data.split.seen), (consent.split.unseen, data.split.unseen)):
        ours = [client_of(user) == "alpha" or counts for user in part.user.tolist()]
        assert kept.user.tolist() == part.user[np.array(ours)].tolist()
    assert consent.people == (frozenset() if counts else held)
    assert set(consent.withheld.user.tolist()) == consent.people


def test_who_refused_before_the_resume_stays_out_and_a_lost_note_shows_nobody(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, **clinics(tmp_path, {"alpha": SHOWS, "beta": SHOWS}))
    given, node = training_input(recipe), tmp_path / "node"
    node.mkdir()

    def shown() -> set[str]:
        consent = ask_for_figures(recipe, given.plan.digest, given.data, node, lambda _: None)
        return {client_of(user) for user in consent.split.seen.user.tolist()}

    with pytest.raises(RunFolderError, match="which clients refused"):
        shown()
    keep_refusals(node, ["beta"])
    keep_refusals(node, [])
    assert shown() == {"alpha"}


def test_by_hash_an_evaluation_user_is_the_client_of_its_name_and_without_terms_everybody_counts(
    tmp_path: Path,
) -> None:
    from fedpref.data.partition import hashed_client

    (tmp_path / "terms").mkdir()
    (tmp_path / "terms/client-1.yaml").write_text(yaml.safe_dump({"terms": AGREES}))
    recipe = make_recipe(tmp_path, federation__terms=str(tmp_path / "terms"), **NO_NOISE_TO_SPEAK_OF)
    consent, data = consent_after_training(recipe)
    assert consent.people == {user for user in data.roster.evaluation_users if hashed_client(user, 3) == 1}
    free = make_recipe(tmp_path)
    everybody = ask_for_figures(free, "", data, tmp_path, lambda _: None)
    assert (everybody.split, everybody.people) == (data.split, frozenset())


def test_the_term_is_a_truth_value() -> None:
    assert not Terms.from_json(AGREES).unnoised_evaluation
    for value in ("true", 1, None):
        with pytest.raises(ParameterError):
            Terms.from_json({**AGREES, "unnoised_evaluation": value})


@pytest.mark.slow  # a whole run of each kind
@pytest.mark.parametrize("adapter", [False, True])
def test_a_whole_run_computes_no_figure_of_a_refusing_client(tmp_path: Path, tiny_model: Path, adapter: bool) -> None:
    changes = clinics(tmp_path, {"alpha": SHOWS, "beta": REFUSES})
    if adapter:
        from tests.fedpref.adapters import adapter_recipe

        recipe = adapter_recipe(tmp_path, tiny_model, **changes, training__max_eval_records=1000)
    else:
        recipe = validate_recipe(recipe_tree(tmp_path, tiny_model, **changes), "clinics")
    finished = run(recipe)
    data = load_federated(recipe, lambda _: None)
    for name, part in (("seen topics", data.split.seen), ("unseen topics", data.split.unseen)):
        ours = sum(client_of(user) == "alpha" for user in part.user.tolist())
        assert 0 < ours < len(part)
        assert finished.evaluation[name]["records" if adapter else "pairs"] == ours
    if not adapter:
        write_jsonl(tmp_path / "again.jsonl", votes())
        again = finished.evaluate(str(tmp_path / "again.jsonl"))
        assert again["pairs"] == sum(finished.evaluation[name]["pairs"] for name in ("seen topics", "unseen topics"))


def swapped(recipe: Recipe, folder: Path) -> None:
    """A training user's rows get another name, which trains, too."""
    victim = load_federated(recipe, lambda _: None).roster.users[3]
    new = next(
        name for i in range(1000) if not is_evaluation_user(np.array([name := f"n{i}"]), recipe.evaluation).any()
    )
    write_jsonl(folder / "votes.jsonl", [r | {"user_id": new} if r["user_id"] == victim else r for r in votes()])


def test_a_data_file_swapped_before_the_resume_is_refused(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = validate_recipe(recipe_tree(tmp_path, tiny_model, federation__num_rounds=2), "swapped")

    def killed(self: Trackers, figures: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trackers, "log", killed)
        with pytest.raises(KeyboardInterrupt):
            run(recipe)
    kept = (Path(recipe.output_dir) / "nodes/local/data.json").read_bytes()
    swapped(recipe, tmp_path)
    with pytest.raises(RunFolderError, match="whom this run was trained on") as caught:
        run(recipe, resume=True)
    assert caught.value.code == "FP501"
    assert (Path(recipe.output_dir) / "nodes/local/data.json").read_bytes() == kept
    write_jsonl(tmp_path / "votes.jsonl", votes())
    assert run(recipe, resume=True).status["status"] == "finished"


def test_a_start_that_failed_before_any_book_may_go_on_with_a_mended_file(tmp_path: Path, tiny_model: Path) -> None:
    recipe = validate_recipe(recipe_tree(tmp_path, tiny_model, federation__num_rounds=1), "mended")
    (tmp_path / "votes.jsonl").write_text("{broken")
    with pytest.raises(fedpref.errors.BrokenFileError):
        run(recipe)
    write_jsonl(tmp_path / "votes.jsonl", votes())
    assert run(recipe, resume=True).status["status"] == "finished"


def test_a_name_that_looks_like_a_row_is_a_persons(tmp_path: Path) -> None:
    rows = [row | {"user_id": "#" + row["user_id"][1:]} for row in votes()]
    recipe = make_recipe(tmp_path, datasets=[str(write_dataset(tmp_path, rows))])
    own = load_all_feedback(recipe)
    victim = own.roster.users[0]
    assert victim.startswith("#")
    theirs = preferences([(victim, "new", "text"), (f" {victim}", "new", "words"), ("x", "a", "b")])
    assert without_training_feedback(theirs, own)[1] == 1  # the middle one is a row without a user_id


def test_no_file_can_hold_the_name_of_a_row(tmp_path: Path) -> None:
    from fedpref.data.people import is_named, person_of, row_name

    for value in (row_name(3), " #3", "\u00a0#3", "\u2003#3", "\t#3", "\u200b #3", "#3", 3, 3.0):
        assert is_named(person_of(value)), value
    assert not is_named(row_name(3))
    rows = [row | {"user_id": None} for row in votes()[:2]] + [row | {"user_id": " #1"} for row in votes()[2:3]]
    recipe = make_recipe(
        tmp_path,
        datasets=[str(write_dataset(tmp_path, rows))],
        privacy__unit="example",
        evaluation__unseen_topics=[],
        evaluation__user_fraction=0.0,
    )
    assert load_federated(recipe, lambda _: None).roster.users == (" #1", " #2", "#1")


def test_no_book_counts_evaluation_users_who_are_clients_of_their_own(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "evaluation__federated": True,
        "evaluation__target_epsilon": 60.0,
        **NO_NOISE_TO_SPEAK_OF,
    }
    for by, number in (("natural", None), ("hash", 3)):
        folder = tmp_path / by
        folder.mkdir()
        recipe = make_recipe(folder, federation__partition={"by": by, "num_clients": number}, **changes)
        evaluate(recipe)
        for book in ("evaluation.jsonl", "nodes/local/evaluation.jsonl"):
            facts = read_ledger(Path(recipe.output_dir) / book).header.facts
            assert facts.get("num_clients") == number
            assert len(training_input(recipe).data.roster.evaluation_users) not in facts.values()
