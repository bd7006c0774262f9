"""A recipe's data sets -> clients: one broken client never ends the run of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fedpref.data.loading import load_federated, load_public
from fedpref.errors import DatasetError, MissingUserError, NoDataError, UnsupportedPlanError
from fedpref.plan import make_plan
from privacy.report import verify
from privacy.units import PrivacyUnit
from tests.tiny import fake_features, make_recipe, train, votes, write_dataset, write_jsonl, write_public


def folder_of_files(folder: Path, files: dict[str, list[dict[str, Any]]], **description: Any) -> Path:
    """One JSONL per client and the description of the folder; returns the YAML."""
    (folder / "clients").mkdir()
    for name, rows in files.items():
        write_jsonl(folder / "clients" / f"{name}.jsonl", rows)
    fields = {"user_id": "user_id", "topic": "topic"}
    path = folder / "folder.yaml"
    path.write_text(
        yaml.safe_dump({"name": "f", "source": "clients", "license": "CC0-1.0", "fields": fields, **description})
    )
    return path


def three_clients() -> dict[str, list[dict[str, Any]]]:
    rows = votes()
    return {name: [r for r in rows if int(r["user_id"][1:]) % 3 == i] for i, name in enumerate(("a", "b", "c"))}


def test_a_file_partition_has_one_client_per_file_and_loses_no_record(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, federation__partition={"by": "file"}, evaluation__unseen_topics=[])
    whole = load_federated(recipe.model_copy(update={"datasets": (str(write_dataset(tmp_path, votes())),)}), print)
    files = load_federated(
        recipe.model_copy(update={"datasets": (str(folder_of_files(tmp_path, three_clients())),)}), print
    )
    assert list(files.clients) == ["a", "b", "c"]
    users = [set(part.user) for part in files.clients.values()]
    assert sum(map(len, users)) == len(set().union(*users))
    assert sum(len(part) for part in files.clients.values()) == len(files.split.train) == len(whole.split.train)


@pytest.mark.parametrize("broken", ["a", "b", "c"])
def test_a_truncated_file_silences_its_own_client_only(tmp_path: Path, broken: str) -> None:
    source = folder_of_files(tmp_path, three_clients())
    file = tmp_path / "clients" / f"{broken}.jsonl"
    file.write_text(file.read_text()[:-20])
    recipe = make_recipe(tmp_path, datasets=[str(source)], federation__partition={"by": "file"}, privacy__rng="seeded")
    said: list[str] = []
    data = load_federated(recipe, said.append)
    assert {name: len(part) > 0 for name, part in data.clients.items()} == {n: n != broken for n in "abc"}
    assert any(f"[FP203] client {broken} contributes zero in every round" in line for line in said)
    assert "!" not in "".join(said), "a warning names rows, never texts"
    weight = train(recipe)
    assert np.isfinite(weight).all()
    assert np.linalg.norm(weight) > 0
    assert verify(Path(recipe.output_dir)).ok


def test_a_file_without_users_silences_its_own_client_only(tmp_path: Path) -> None:
    files = three_clients()
    files["b"] = [{**row, "user_id": ""} for row in files["b"]]
    source = folder_of_files(tmp_path, files)
    recipe = make_recipe(tmp_path, datasets=[str(source)], federation__partition={"by": "file"})
    said: list[str] = []
    data = load_federated(recipe, said.append)
    assert len(data.clients["b"]) == 0
    assert any("[FP204] client b" in line for line in said)


def test_a_broken_file_that_alone_holds_an_unseen_topic_does_not_end_the_run(tmp_path: Path) -> None:
    rows = three_clients()
    files = {name: [r for r in part if r["topic"] != "birds"] for name, part in rows.items()}
    files["c"] += [r for r in rows["c"] if r["topic"] == "birds"]
    source = folder_of_files(tmp_path, files)
    file = tmp_path / "clients" / "c.jsonl"
    file.write_text(file.read_text()[:-20])
    recipe = make_recipe(tmp_path, datasets=[str(source)], federation__partition={"by": "file"})
    said: list[str] = []
    data = load_federated(recipe, said.append)
    assert len(data.clients["a"]) > 0
    assert len(data.split.unseen) == 0
    assert any("'birds'" in line for line in said)


def test_files_of_one_stem_are_two_clients(tmp_path: Path) -> None:
    source = folder_of_files(tmp_path, three_clients())
    rows = [{**row, "user_id": f"other-{row['user_id']}"} for row in votes(20, seed=1)]
    write_jsonl(tmp_path / "clients" / "a.json", rows)
    recipe = make_recipe(tmp_path, datasets=[str(source)], federation__partition={"by": "file"})
    data = load_federated(recipe, lambda _: None)
    assert len(data.clients) == 4
    assert sum(len(part) for part in data.clients.values()) == len(data.split.train)


def test_a_person_in_two_files_is_refused(tmp_path: Path) -> None:
    files = three_clients()
    files["c"].append(files["a"][0])
    recipe = make_recipe(
        tmp_path, datasets=[str(folder_of_files(tmp_path, files))], federation__partition={"by": "file"}
    )
    with pytest.raises(UnsupportedPlanError, match="several clients"):
        load_federated(recipe, lambda _: None)


def test_records_without_users_are_fine_for_unit_example_also_in_files(tmp_path: Path) -> None:
    files = {
        name: [{k: v for k, v in row.items() if k != "user_id"} for row in rows]
        for name, rows in three_clients().items()
    }
    source = folder_of_files(tmp_path, files, fields={"topic": "topic"})
    recipe = make_recipe(
        tmp_path, datasets=[str(source)], federation__partition={"by": "file"}, privacy__unit="example"
    )
    data = load_federated(recipe, lambda _: None)
    assert data.num_units(PrivacyUnit.EXAMPLE) >= sum(len(part) for part in data.clients.values())


def test_a_folder_is_read_whole_whatever_the_partition(tmp_path: Path) -> None:
    source = str(folder_of_files(tmp_path, three_clients()))
    data = load_federated(make_recipe(tmp_path, datasets=[source]), lambda _: None)
    whole = load_federated(make_recipe(tmp_path), lambda _: None)
    assert data.num_units(PrivacyUnit.USER) == whole.num_units(PrivacyUnit.USER)


def test_without_files_a_broken_shared_file_is_an_error(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, datasets=[str(write_dataset(tmp_path, [{**votes(1)[0], "user_id": ""}]))])
    with pytest.raises(MissingUserError):
        load_federated(recipe, lambda _: None)


def test_an_empty_client_is_named_and_takes_part(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, federation__partition__num_clients=200, federation__num_rounds=2)
    said: list[str] = []
    data = load_federated(recipe, said.append)
    empty = [name for name, part in data.clients.items() if not len(part)]
    assert len(empty) > 100
    assert sum(f"client {name} has no training records" in line for name in empty for line in said) == len(empty)
    train(recipe)
    assert verify(Path(recipe.output_dir)).ok


def test_nothing_left_to_train_on_is_coded(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, evaluation__unseen_topics=["cats", "dogs", "birds"])
    with pytest.raises(NoDataError, match="No training records are left") as caught:
        load_federated(recipe, lambda _: None)
    assert caught.value.code == "FP205"


def test_an_unseen_topic_that_no_data_have_is_coded(tmp_path: Path) -> None:
    with pytest.raises(NoDataError, match="'fish'"):
        load_federated(make_recipe(tmp_path, evaluation__unseen_topics=["fish"]), lambda _: None)


def test_records_left_out_are_told_by_file_code_and_row(tmp_path: Path) -> None:
    rows = votes()
    rows[3]["rejected"] = rows[3]["chosen"]
    said: list[str] = []
    load_federated(make_recipe(tmp_path, datasets=[str(write_dataset(tmp_path, rows))]), said.append)
    assert any(line.startswith("votes.jsonl: warning[FP212] 1 records left out") and "rows 4)" in line for line in said)
    assert "number" not in "".join(said)  # every text of the tiny federation contains that word


def test_units_are_people_or_records(tmp_path: Path) -> None:
    data = load_federated(make_recipe(tmp_path), lambda _: None)
    evaluated = {*data.split.seen.user, *data.split.unseen.user}
    rows = [row for row in votes() if row["user_id"] not in evaluated]
    assert data.num_units(PrivacyUnit.USER) == len({row["user_id"] for row in rows})
    assert data.num_units(PrivacyUnit.EXAMPLE) == len(rows)


@pytest.mark.parametrize("by", ["hash", "natural", "column"])
def test_zeroing_out_a_person_changes_neither_counts_nor_clients(tmp_path: Path, by: str) -> None:
    rows = [{**row, "silo": f"silo-{int(row['user_id'][1:]) % 5}"} for row in votes()]
    member = next(row["user_id"] for row in rows if row["topic"] != "birds")
    silent = [{**row, "rejected": row["chosen"]} if row["user_id"] == member else row for row in rows]
    seen = []
    for name, content in (("all", rows), ("without", silent)):
        folder = tmp_path / name
        folder.mkdir()
        write_jsonl(folder / "v.jsonl", content)
        fields = {"user_id": "user_id", "topic": "topic", "client": "silo"}
        spec = {"name": "v", "source": "v.jsonl", "license": "CC0-1.0", "fields": fields}
        (folder / "v.yaml").write_text(yaml.safe_dump(spec))
        recipe = make_recipe(
            folder, datasets=[str(folder / "v.yaml")], federation__partition={"by": by, "num_clients": 4}
        )
        data = load_federated(recipe, lambda _: None)
        seen.append((data.num_units(PrivacyUnit.USER), data.num_units(PrivacyUnit.EXAMPLE), list(data.clients)))
    assert seen[0] == seen[1]


def test_a_data_file_named_twice_is_refused(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    twice = recipe.model_copy(update={"datasets": recipe.datasets * 2})
    with pytest.raises(UnsupportedPlanError, match="named twice"):
        load_federated(twice, lambda _: None)


def test_public_text_leaves_out_the_unseen_topics(tmp_path: Path) -> None:
    public = str(write_public(tmp_path))
    assert len(load_public(public, ())) == 48
    left = load_public(public, ("birds",))
    assert len(left) == 32
    assert not any("birds" in text.completion for text in left)


def test_only_what_is_declared_public_shapes_the_projection(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="not declared as public"):
        load_public(str(write_dataset(tmp_path, votes(3))), ())


def test_planning_opens_no_data_file(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    for file in tmp_path.glob("*.jsonl"):
        file.unlink()
    assert make_plan(recipe).rows


def test_the_tiny_features_are_features() -> None:
    """The fake that the fast tests stand on gives one finite row per text, the same in any order."""
    from tests.tiny import preferences

    texts = preferences([("u", "a!!", "b"), ("u", "c", "d!")]).texts
    rows = fake_features(5)(texts)
    assert rows.shape == (4, 5)
    assert np.array_equal(fake_features(5)(texts[::-1])[::-1], rows)
