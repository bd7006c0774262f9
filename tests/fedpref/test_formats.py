"""TRL's formats, implicit prompts, ranked lists and ratings; each in its place."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trl

from fedpref.data.formats import USES, require
from fedpref.data.loading import load_federated, load_public
from fedpref.data.people import row_name
from fedpref.data.preferences import check_records
from fedpref.data.reading import Reading, read_dataset
from fedpref.data.spec import DatasetSpec
from fedpref.data.transcripts import extract_prompt, parse_transcript
from fedpref.errors import DatasetError, UnsupportedPlanError, WrongFormatError
from tests.tiny import make_recipe, votes, write_dataset, write_jsonl

Q = [{"role": "user", "content": "Why?"}]
YES, NO = ([{"role": "assistant", "content": text}] for text in ("yes", "no"))


def read(folder: Path, rows: list[dict[str, Any]], **description: Any) -> Reading:
    path = write_jsonl(folder / "d.jsonl", rows)
    reading = Reading(DatasetSpec(name="d", source=str(path), license="CC0-1.0", **description), need_user=False)
    reading.rows = [row for table in reading.tables() for row in table.to_pylist()]  # type: ignore[attr-defined]
    return reading


def pairs(reading: Reading) -> list[tuple[str, str, str, str]]:
    return [
        (r["user_id"], r["prompt"][-1]["content"], r["chosen"][0]["content"], r["rejected"][0]["content"])
        for r in reading.rows  # type: ignore[attr-defined]
    ]


def random_text(rng: np.random.Generator) -> str:
    return "".join(rng.choice(list("ab "), size=int(rng.integers(2, 9))))


def test_implicit_prompts_of_strings_are_trls() -> None:
    rng = np.random.default_rng(0)
    checked = 0
    while checked < 300:
        chosen, rejected = random_text(rng), random_text(rng)
        if chosen[0] != rejected[0]:
            continue  # nothing in common: TRL looks at the last character then
        theirs = trl.extract_prompt({"chosen": chosen, "rejected": rejected})
        assert extract_prompt(chosen, rejected) == (theirs["prompt"], theirs["chosen"], theirs["rejected"])
        checked += 1


def test_implicit_prompts_of_conversations_are_trls() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        sides = []
        for _ in range(2):
            turns = [("user", "assistant")[i % 2] for i in range(2 * int(rng.integers(1, 4)))]
            sides.append([{"role": role, "content": str(rng.integers(2))} for role in turns])
        theirs = trl.extract_prompt({"chosen": sides[0], "rejected": sides[1]})
        assert extract_prompt(*sides) == (theirs["prompt"], theirs["chosen"], theirs["rejected"])


def test_a_transcripts_prompt_is_all_but_the_last_answer(tmp_path: Path) -> None:
    start = "\n\nHuman: Hi\n\nAssistant: Hello, Human: dear\n\nHuman: Why?\n\nAssistant: "
    row = {"chosen": f"{start}Because it is so.", "rejected": f"{start}Because\n\nof that."}
    (record,) = read(tmp_path, [row]).rows  # type: ignore[attr-defined]
    assert [m["role"] for m in record["prompt"]] == ["user", "assistant", "user"]
    assert record["prompt"][1]["content"] == "Hello, Human: dear"
    assert record["chosen"] == [{"role": "assistant", "content": "Because it is so."}]
    assert record["rejected"] == [{"role": "assistant", "content": "Because\n\nof that."}]


def test_what_is_no_transcript_is_none() -> None:
    assert parse_transcript("Human beings are kind.") is None
    assert parse_transcript("well\n\nHuman: a\n\nAssistant: b") is None
    assert parse_transcript("Human: a\n\nHuman: b\n\nAssistant: c") == [
        {"role": "user", "content": "a\n\nb"},
        {"role": "assistant", "content": "c"},
    ]


def test_rows_that_part_early_are_counted_and_left_out(tmp_path: Path) -> None:
    fine = {"chosen": Q + YES, "rejected": Q + NO, "user_id": "anna"}
    early = {"chosen": Q + YES + Q + YES, "rejected": Q + NO + Q + NO, "user_id": "bert"}
    nothing = {"chosen": YES, "rejected": NO, "user_id": "cleo"}
    reading = read(tmp_path, [fine, early, nothing])
    assert pairs(reading) == [("anna", "Why?", "yes", "no")]
    assert reading.problems == {"FP218": [2, 3]}
    assert {user for user, _, _ in reading.members} == {"anna", "bert", "cleo"}


def test_a_prompt_repeated_in_whole_conversations_is_extracted_as_trl_does(tmp_path: Path) -> None:
    row = {"prompt": "Why?", "chosen": Q + YES, "rejected": Q + NO}
    assert pairs(read(tmp_path, [row])) == [(row_name(1), "Why?", "yes", "no")]


def test_a_ranked_list_gives_every_pair_of_different_places(tmp_path: Path) -> None:
    row = {"prompt": "Why?", "completions": ["a", "b", "c", "d"], "user_id": "anna"}
    reading = read(tmp_path, [row], format="ranked")
    assert pairs(reading) == [("anna", "Why?", x, y) for x, y in combinations("abcd", 2)]
    assert not reading.problems


def test_ratings_of_a_list_are_compared_and_ties_left_out(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Why?", "completions": ["a", "b", "c"], "scores": [1, 3.5, 1], "user_id": "anna"},
        {"prompt": "Why?", "completions": ["a", "b"], "scores": [2, 2], "user_id": "bert"},
    ]
    reading = read(tmp_path, rows, format="ranked", fields={"ratings": "scores"})
    assert pairs(reading) == [("anna", "Why?", "b", "a"), ("anna", "Why?", "b", "c")]
    assert reading.problems == {"FP217": [1, 2]}
    assert len(reading.members) == 2


def rated_rows(rng: np.random.Generator, n: int) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"q{rng.integers(3)}",
            "completion": f"answer {i}",
            "rating": int(rng.integers(1, 4)),
            "user_id": f"u{rng.integers(4)}",
        }
        for i in range(n)
    ]


def test_ratings_become_the_pairs_of_a_slow_loop(tmp_path: Path) -> None:
    rows = rated_rows(np.random.default_rng(2), 60)
    expected = set()
    for a in rows:
        for b in rows:
            if (a["user_id"], a["prompt"]) == (b["user_id"], b["prompt"]) and a["rating"] > b["rating"]:
                expected.add((a["user_id"], a["prompt"], a["completion"], b["completion"]))
    found = pairs(read(tmp_path, rows, format="rated"))
    assert len(found) > 50
    assert len(found) == len(set(found))
    assert set(found) == expected


def test_a_person_with_ties_only_stays_a_member_and_contributes_nothing(tmp_path: Path) -> None:
    rows = rated_rows(np.random.default_rng(3), 200)
    rows += [{"prompt": "q0", "completion": f"tie {i}", "rating": 2, "user_id": "tied"} for i in range(3)]
    source = write_dataset(tmp_path, rows)
    source.write_text(source.read_text().replace("topic: topic", "prompt: prompt") + "format: rated\n")
    recipe = make_recipe(tmp_path, datasets=[str(source)], evaluation__unseen_topics=[], evaluation__user_fraction=0.0)
    said: list[str] = []
    data = load_federated(recipe, said.append)
    assert "tied" in data.roster.users
    assert "tied" not in data.split.train.user
    assert data.num_units(recipe.privacy.unit) == 5
    assert any("[FP217]" in line and "rows" in line for line in said)


@pytest.mark.parametrize("shape", ["ranked", "rated"])
def test_several_pairs_a_record_need_unit_user(tmp_path: Path, shape: str) -> None:
    source = write_dataset(tmp_path, votes())
    source.write_text(source.read_text() + f"format: {shape}\n")
    recipe = make_recipe(tmp_path, datasets=[str(source)], privacy__unit="example")
    with pytest.raises(UnsupportedPlanError, match="several pairs each"):
        load_federated(recipe, print)


@pytest.mark.parametrize(
    ("shape", "row", "says"),
    [
        ("unpaired_preference", {"prompt": "q", "completion": "a", "label": "secret"}, "neither true nor false"),
        ("unpaired_preference", {"prompt": "q", "completion": "a", "label": 2}, "neither true nor false"),
        ("rated", {"prompt": "q", "completion": "a", "rating": "secret"}, "no number"),
        ("rated", {"prompt": "q", "completion": "a", "rating": float("nan")}, "not a number"),
        ("ranked", {"prompt": "q", "completions": "secret"}, "no list"),
        ("ranked", {"prompt": "q", "completions": []}, "no list"),
        ("prompt_only", {"prompt": 3}, "string or a non-empty list"),
    ],
)
def test_a_row_outside_its_format_is_coded_without_its_value(
    tmp_path: Path, shape: Any, row: dict[str, Any], says: str
) -> None:
    with pytest.raises(DatasetError, match=says) as caught:
        read(tmp_path, [row], format=shape)
    assert "row 1" in caught.value.what
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("label", [True, 1, 1.0, "true", " TRUE ", "1"])
def test_labels_that_mean_true(tmp_path: Path, label: Any) -> None:
    rows = [{"prompt": "q", "completion": "a", "label": label}]
    assert read(tmp_path, rows, format="unpaired_preference").rows[0]["label"] is True  # type: ignore[attr-defined]


def test_each_format_in_the_wrong_place_says_where_it_belongs(tmp_path: Path) -> None:
    for shape, use in USES.items():
        spec = DatasetSpec(name="d", source="d.jsonl", license="CC0-1.0", format=shape)
        require(spec, use)
        for other in set(USES.values()) - {use}:
            with pytest.raises(WrongFormatError, match=f"gives no {other}") as caught:
                require(spec, other)
            assert caught.value.code == "FP207"
    with pytest.raises(WrongFormatError, match="evaluation only"):
        require(DatasetSpec(name="d", source="d", license="x", evaluation_only=True), "pairs")


def test_a_recipe_refuses_prompts_as_votes_and_votes_as_public_text(tmp_path: Path) -> None:
    with pytest.raises(WrongFormatError, match="svamp_train: has the format prompt_only"):
        load_federated(make_recipe(tmp_path, datasets=["svamp_train"]), print)
    with pytest.raises(DatasetError, match="not declared as public"):
        load_public("ukpconvarg1", ())


def test_whole_numbers_name_one_person_however_a_file_spells_them(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b", "user_id": user} for user in (7, 7.0, 7.5)]
    path = write_jsonl(tmp_path / "n.jsonl", rows)
    data = read_dataset(DatasetSpec(name="n", source=str(path), license="CC0-1.0"), need_user=True)
    assert data["user_id"][:] == ["7", "7", "7.5"]
    assert len(check_records(data)[0]) == 2
