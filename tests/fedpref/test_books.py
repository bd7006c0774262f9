"""A run among others: the project's books, the clients' terms, and who takes part when somebody refuses."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fedpref.channel.base import Failure, RoundRequest
from fedpref.channel.local import LocalChannel
from fedpref.client.guard import client_configs, read_client_config
from fedpref.client.remembered import RememberedBook
from fedpref.config import Recipe
from fedpref.errors import NoDataError, RecipeError
from fedpref.folder import RunFolder
from fedpref.journal import SealedJournal
from fedpref.recipes import read_recipe
from fedpref.training import train_reward_head
from privacy.errors import BudgetError, LedgerError, ParameterError
from privacy.ledger import Ledger, Reservation, read_ledger
from privacy.project import read_project
from privacy.report import build_report, render_text, verify
from privacy.sealed import Entrusted, sealed_from_bytes
from privacy.units import Adversary, PrivacyUnit, Trust
from tests.fedpref.conftest import speak
from tests.privacy.oracles import discrete
from tests.tiny import make_recipe, train, training_input, write_recipe

EVENT = discrete(1.5, 0.3)
ROUNDS = 6


def in_project(folder: Path, name: str, **changes: Any) -> Recipe:
    (folder / name).mkdir()
    ledger = str(folder / "books" / "project.jsonl")
    return make_recipe(folder / name, privacy__ledger=ledger, privacy__project_cap=6.0, **changes)


def test_two_runs_on_the_same_people_are_added_up_and_the_third_is_refused_before_it_starts(tmp_path: Path) -> None:
    first, second = in_project(tmp_path, "first"), in_project(tmp_path, "second")
    train(first)
    train(second)
    view = read_project(tmp_path / "books/project.jsonl")
    assert view.spent(PrivacyUnit.USER, Adversary.READER) == Counter({EVENT: 2 * ROUNDS})
    assert [run.datasets for run in view.runs] == [tuple(first.datasets), tuple(second.datasets)]
    third = in_project(tmp_path, "third", federation__num_rounds=60)
    with pytest.raises(BudgetError) as caught:
        train(third)
    assert "refused before it starts" in caught.value.what
    assert "rounds at this noise" in caught.value.fix
    assert "noise_multiplier" in caught.value.fix
    assert len(read_ledger(Path(third.output_dir) / "ledger.jsonl").reservations) == 0
    assert read_project(tmp_path / "books/project.jsonl").spent(PrivacyUnit.USER, Adversary.READER) == Counter(
        {EVENT: 2 * ROUNDS}
    )


def test_the_report_names_all_runs_together_and_the_run_keeps_a_copy_of_the_books(tmp_path: Path) -> None:
    recipe = in_project(tmp_path, "first")
    train(recipe)
    run = Path(recipe.output_dir)
    assert (run / "project.jsonl").read_bytes() == (tmp_path / "books/project.jsonl").read_bytes()
    report = build_report(run)
    row = report.fields["project"][0]
    assert (row["cap"], row["runs"], row["rounds"]) == (6.0, 1, ROUNDS)
    assert row["filter_bound"] >= report.fields["claim"][0]["epsilon"]
    text = " ".join(render_text(report).split())
    assert "All runs on these people together" in text
    assert "a run that did not is in no total here" in text
    alone = make_recipe(tmp_path)
    train(alone)
    assert build_report(Path(alone.output_dir)).fields["project"] is None


def test_a_seeded_run_and_a_cap_without_books_are_no_recipes(tmp_path: Path) -> None:
    for changes in ({"privacy__ledger": "x.jsonl", "privacy__rng": "seeded"}, {"privacy__project_cap": 3.0}):
        with pytest.raises(RecipeError):
            make_recipe(tmp_path, **changes)


FORM: dict[str, Any] = {
    "budgets": {"user": {"delta": 1e-5, "epsilon": {"reader": 40.0, "other_clients": 40.0, "server": 40.0}}},
    "trust": ["central"],
    "server": "embedded",
}


def write_terms(path: Path, **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"terms": {**FORM, **changes}}), encoding="utf-8")
    return path


REFUSALS: list[tuple[str, dict[str, Any]]] = [
    ("trust", {"trust": ["local"]}),
    ("min_clients", {"min_clients": 4}),
    ("expires", {"expires": "2020-01-01"}),
    ("recipes", {"recipes": ["another"]}),
    ("server", {"server": "a key"}),
    ("budgets", {"budgets": {"example": FORM["budgets"]["user"]}}),
]


def spied(monkeypatch: pytest.MonkeyPatch) -> list[list[bytes | Failure]]:
    seen: list[list[bytes | Failure]] = []
    exchange = LocalChannel.exchange

    def spy(self: LocalChannel, request: RoundRequest) -> list[bytes | Failure]:
        seen.append(exchange(self, request))
        return seen[-1]

    monkeypatch.setattr(LocalChannel, "exchange", spy)
    return seen


@pytest.mark.parametrize(("term", "change"), REFUSALS)
def test_one_client_that_refuses_sends_a_coded_failure_and_the_run_of_the_others_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, term: str, change: dict[str, Any]
) -> None:
    seen = spied(monkeypatch)
    recipe = make_recipe(tmp_path, federation__terms=str(tmp_path / "terms"), federation__num_rounds=2)
    given, said, asked = training_input(recipe), list[str](), list[Any]()
    names = list(given.data.clients)
    write_terms(tmp_path / "terms" / f"{names[1]}.yaml", **change)
    texts_of = set(given.data.clients[names[1]].used_texts) - {
        t for name in (names[0], names[2]) for t in given.data.clients[name].used_texts
    }
    folder = RunFolder(Path(recipe.output_dir))
    folder.begin(recipe, given.plan.digest, resume=False)

    def features(texts: Any) -> Any:
        asked.extend(texts)
        return given.features(texts)

    weight = train_reward_head(replace(given, features=features), folder, [], said.append)
    assert np.isfinite(weight).all()
    for number, replies in enumerate(seen, 1):
        assert [type(reply) for reply in replies] == [bytes, Failure, bytes]
        refused = replies[1]
        assert isinstance(refused, Failure)
        assert refused.code == "FP413"
        assert refused.why == f"[FP413] refused by the client's terms: {term}"  # nothing of what was spent elsewhere
        assert isinstance(sealed_from_bytes(replies[0], Entrusted, 0, number, 8), Entrusted)  # type: ignore[arg-type]
    assert not texts_of & set(asked), "the data of a client that refused were touched"
    assert any("FP413" in line for line in said)


def test_if_every_client_refuses_nothing_is_booked_at_the_node_and_the_run_stops(tmp_path: Path) -> None:
    terms = write_terms(tmp_path / "client.yaml", trust=["local"])
    recipe = make_recipe(tmp_path, federation__terms=str(terms))
    with pytest.raises(NoDataError):
        train(recipe)
    assert read_ledger(Path(recipe.output_dir) / "nodes/local/ledger.jsonl").num_entries == 1
    assert not (tmp_path / "client.books.jsonl").exists()


def test_a_client_books_over_all_runs_and_refuses_the_one_that_would_pass_its_terms(tmp_path: Path) -> None:
    """The figures are its own: un-amplified, because it cannot vouch for what a trusted server does."""
    budget = {"user": {"delta": 1e-5, "epsilon": dict.fromkeys(("reader", "other_clients", "server"), 11.0)}}
    terms = write_terms(tmp_path / "client.yaml", budgets=budget)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        recipe = make_recipe(tmp_path / name, federation__terms=str(terms))
        if name == "first":
            train(recipe)
        else:
            with pytest.raises(NoDataError):
                train(recipe)
    view = read_project(tmp_path / "client.books.jsonl")
    assert view.spent(PrivacyUnit.USER, Adversary.READER) == Counter({discrete(1.5, 1.0): ROUNDS})


def test_terms_can_be_tightened_along_the_way_but_not_loosened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spied(monkeypatch)
    terms = tmp_path / "client.yaml"
    for name, most in (("first", 60.0), ("tighter", 59.0), ("looser", 61.0)):
        budget = {"user": {"delta": 1e-5, "epsilon": dict.fromkeys(("reader", "other_clients", "server"), most)}}
        write_terms(terms, budgets=budget)
        (tmp_path / name).mkdir()
        recipe = make_recipe(tmp_path / name, federation__terms=str(terms), federation__num_rounds=1)
        if name == "looser":
            with pytest.raises(NoDataError):
                train(recipe)
        else:
            train(recipe)
    assert [isinstance(replies[0], Failure) for replies in seen] == [False, False, True]
    last = seen[-1][0]
    assert isinstance(last, Failure)
    assert last.code == "FP410"


@pytest.mark.parametrize("content", ["", "[]", "terms: {}", "a: 1", "{", "terms: {trust: [local]}\nledger: 7"])
def test_a_clients_file_that_is_none_stops_the_run_before_it_begins(tmp_path: Path, content: str) -> None:
    (tmp_path / "client.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(ParameterError):
        read_client_config(tmp_path / "client.yaml")


def test_a_folder_of_terms_names_clients_that_exist(tmp_path: Path) -> None:
    with pytest.raises(ParameterError):
        client_configs(tmp_path, ["a"])
    write_terms(tmp_path / "b.yaml")
    with pytest.raises(ParameterError, match="'b'"):
        client_configs(tmp_path, ["a"])
    assert list(client_configs(tmp_path, ["a", "b"])) == [1]


@pytest.mark.slow  # calibrations and sweeps: seconds
def test_budget_show_says_what_is_left(tmp_path: Path) -> None:
    recipe = in_project(tmp_path, "first", privacy__target_epsilon=4.0, privacy__noise_multiplier=None)
    train(recipe)
    spoken = speak("budget", "show", recipe.output_dir, "--json")
    assert spoken.code == 0, spoken.err
    rows = json.loads(spoken.out)[recipe.output_dir]
    reader = next(row for row in rows if row["book"] == "federation" and row["adversary"] == "reader")
    assert reader["cap"] == 4.0
    assert 3.9 < reader["spent"] <= 4.0
    assert reader["rounds_left"] == 0
    server = next(row for row in rows if row["book"] == "federation" and row["adversary"] == "server")
    assert (server["trusted"], server["spent"], server["left"]) == (True, None, None)
    assert "rounds left" in speak("budget", "show", recipe.output_dir).out
    assert speak("budget", "show", str(tmp_path / "nowhere")).code == 1


def test_what_can_be_refused_early_is_refused_before_a_folder_is_made_or_a_data_file_opened(tmp_path: Path) -> None:
    terms = write_terms(tmp_path / "client.yaml", min_clients=4)
    for number, changes in enumerate(
        (
            {"federation__terms": str(terms)},
            {"privacy__ledger": str(tmp_path / "p.jsonl"), "privacy__project_cap": 1.0},
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = write_recipe(folder, Path("no-model"), **changes)
        (folder / "votes.jsonl").unlink()
        spoken = speak("run", str(path))
        assert spoken.code == 1
        assert ("FP413" if number == 0 else "FP410") in spoken.err
        assert not (folder / "run").exists()
        assert not (tmp_path / "p.jsonl").exists()


def test_under_local_trust_the_projects_books_have_what_the_node_booked_also_a_round_that_it_repeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = in_project(tmp_path, "first", privacy__trust="local")
    save, calls = SealedJournal.save, list[int]()

    def damaged(self: SealedJournal, reservation: Reservation, messages: list[bytes]) -> None:
        save(self, reservation, messages)
        calls.append(reservation.round)
        if calls == [1, 2, 3]:  # killed once: the kept bytes are damaged, and may have been sent
            path = Path(recipe.output_dir) / "nodes/local/sealed.bin"
            path.write_bytes(path.read_bytes()[:-1])
            raise KeyboardInterrupt

    monkeypatch.setattr(SealedJournal, "save", damaged)
    with pytest.raises(KeyboardInterrupt):
        train(recipe)
    train(recipe, resume=True)
    run = Path(recipe.output_dir)
    booked = read_ledger(run / "nodes/local/ledger.jsonl").nominal(Adversary.SERVER)
    assert booked == Counter({EVENT: ROUNDS + 1})
    assert read_ledger(run / "ledger.jsonl").nominal(Adversary.SERVER) == Counter({EVENT: ROUNDS})
    view = read_project(tmp_path / "books/project.jsonl")
    for adversary in Adversary:
        assert view.spent(PrivacyUnit.USER, adversary) == booked
    (only,) = view.runs
    assert (only.scope, only.trust) == ("node:local", Trust.LOCAL)
    verdict = verify(run)
    assert verdict.ok, verdict.failed
    assert any("every round of this run is booked" in line for line in verdict.passed)
    third = in_project(tmp_path, "third", privacy__trust="local", federation__num_rounds=60)
    with pytest.raises(BudgetError):
        train(third)


def test_a_relative_path_of_the_books_is_meant_from_the_recipe_wherever_the_command_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe(tmp_path, Path("no-model"), privacy__ledger="books/p.jsonl", federation__terms="../terms")
    seen = set()
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        recipe = read_recipe(path)
        seen.add((recipe.privacy.ledger, recipe.federation.terms))
    monkeypatch.chdir(tmp_path)
    seen.add((read_recipe(Path("recipe.yaml")).privacy.ledger, str(tmp_path.parent / "terms")))
    assert seen == {(str(tmp_path / "books/p.jsonl"), str(tmp_path.parent / "terms"))}
    over = read_recipe(path, {"privacy.ledger": "q.jsonl"})
    assert over.privacy.ledger == str(tmp_path / "q.jsonl")


def test_a_client_that_refused_when_labels_were_drawn_and_agrees_later_stays_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"privacy__labels": "randomized_response", "privacy__label_epsilon": 1.0}
    recipe = make_recipe(tmp_path, federation__terms=str(tmp_path / "terms"), **changes)
    names = list(training_input(recipe).data.clients)
    write_terms(tmp_path / "terms" / f"{names[1]}.yaml", expires="2020-01-01")
    commit, rounds = Ledger.commit, list[int]()

    def killed(self: Ledger, reservation: Reservation) -> None:
        rounds.append(reservation.round)
        if reservation.round == 3 and rounds.count(3) == 1:
            raise KeyboardInterrupt
        commit(self, reservation)

    monkeypatch.setattr(Ledger, "commit", killed)
    with pytest.raises(KeyboardInterrupt):
        train(recipe)
    kept = (Path(recipe.output_dir) / "nodes/local/labels.bin").read_bytes()
    write_terms(tmp_path / "terms" / f"{names[1]}.yaml")  # it renewed its terms
    seen = spied(monkeypatch)
    assert np.isfinite(train(recipe, resume=True)).all()
    assert (Path(recipe.output_dir) / "nodes/local/labels.bin").read_bytes() == kept  # no label is drawn a second time
    last = seen[-1][1]
    assert isinstance(last, bytes)  # of the same size as everybody's, and of nobody's records
    message = sealed_from_bytes(last, Entrusted, 1, ROUNDS, 8)
    assert isinstance(message, Entrusted)
    assert not message.value.any()


@pytest.mark.parametrize("loss", ["gone", "cut", "gone with its key and head", "another book"])
def test_a_clients_own_books_lost_between_kill_and_resume_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    recipe = make_recipe(tmp_path, federation__terms=str(write_terms(tmp_path / "client.yaml")))
    commit, rounds = Ledger.commit, list[int]()

    def killed(self: Ledger, reservation: Reservation) -> None:
        rounds.append(reservation.round)
        if reservation.round == 3 and rounds.count(3) == 1:
            raise KeyboardInterrupt
        commit(self, reservation)

    monkeypatch.setattr(Ledger, "commit", killed)
    with pytest.raises(KeyboardInterrupt):
        train(recipe)
    book = tmp_path / "client.books.jsonl"
    lines = book.read_bytes().splitlines(keepends=True)
    beside = [path for path in tmp_path.glob("client.books*") if path != book]
    if loss == "cut":
        book.write_bytes(b"".join(lines[:-1]))
    else:
        book.unlink()
    for path in beside if loss != "gone" else []:  # or the signed head would tell
        path.unlink()
    if loss == "another book":
        (tmp_path / "other").mkdir()
        train(make_recipe(tmp_path / "other", federation__terms=recipe.federation.terms))
    said = list[str]()
    given, folder = training_input(recipe), RunFolder(Path(recipe.output_dir))
    folder.begin(recipe, given.plan.digest, resume=True)
    with pytest.raises(NoDataError):  # all clients share these terms, so nobody takes part
        train_reward_head(given, folder, [], said.append)
    assert any(LedgerError.code in line for line in said), said
    assert book.exists() is (loss in {"cut", "another book"})  # no new books were begun
    if loss == "cut":
        book.write_bytes(b"".join(lines))
        assert np.isfinite(train(recipe, resume=True)).all()
        assert read_project(book).spent(PrivacyUnit.USER, Adversary.READER) == Counter({discrete(1.5, 1.0): ROUNDS})


def test_a_memory_that_cannot_be_read_is_no_reason_to_believe_the_books(tmp_path: Path) -> None:
    remembered = RememberedBook(tmp_path / "0.json")
    remembered.check_present(tmp_path / "none yet")
    for content in ("", "[]", "{}", '{"schema": "fedpref-remembered-1", "lines": "1", "head": ""}'):
        (tmp_path / "0.json").write_text(content, encoding="utf-8")
        with pytest.raises(LedgerError):
            remembered.check_present(tmp_path / "none yet")
