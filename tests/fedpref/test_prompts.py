"""Public prompts: declared, distinct, without held-out topics; the shipped sets are what they say."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml

import fedpref
from fedpref.data.prompts import load_prompts
from fedpref.data.spec import find_dataset
from fedpref.errors import DatasetError, NoDataError, WrongFormatError
from fedpref.improvement import load_groups
from tests.tiny import write_jsonl

ROWS = [
    {"question": "One and one?", "kind": "sum", "solution": "One, one.\n#### 2"},
    {"question": "Two times four?", "kind": "product", "solution": "#### 7 no\n#### 8 "},
    {"question": "One and one?", "kind": "sum", "solution": "again #### 2"},
    {"question": "  ", "kind": "sum", "solution": "#### 0"},
]


def write_prompts(folder: Path, **changes: Any) -> str:
    write_jsonl(folder / "p.jsonl", ROWS)
    tree = {
        "name": "p",
        "source": "p.jsonl",
        "format": "prompt_only",
        "fields": {"prompt": "question", "topic": "kind", "answer": "solution"},
        "answer_after": "####",
        "license": "CC0-1.0",
        "sha256": hashlib.sha256((folder / "p.jsonl").read_bytes()).hexdigest(),
        "public": True,
        "reason": "made up for a test",
        **changes,
    }
    (folder / "p.yaml").write_text(yaml.safe_dump(tree))
    return str(folder / "p.yaml")


def test_columns_order_answers_and_duplicates(tmp_path: Path) -> None:
    prompts = load_prompts(write_prompts(tmp_path))
    assert prompts.to_list() == [
        {"prompt": [{"role": "user", "content": "One and one?"}], "topic": "sum", "answer": "2"},
        {"prompt": [{"role": "user", "content": "Two times four?"}], "topic": "product", "answer": "8"},
    ]
    assert prompts.cache_files == []


def test_held_out_topics_are_absent_and_nothing_left_is_coded(tmp_path: Path) -> None:
    name = write_prompts(tmp_path)
    assert load_prompts(name, ("sum",))["topic"][:] == ["product"]
    with pytest.raises(NoDataError, match="no prompts are left"):
        load_prompts(name, ("sum", "product"))


def test_what_is_not_declared_as_public_prompts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="not declared as public prompts"):
        load_prompts(write_prompts(tmp_path, public=False))
    with pytest.raises(WrongFormatError, match="gives no prompts"):
        load_prompts(write_prompts(tmp_path, format="prompt_completion"))
    name = write_prompts(tmp_path, evaluation_only=True)
    with pytest.raises(WrongFormatError, match="evaluation only"):
        load_prompts(name)
    assert len(load_prompts(name, training=False)) == 2


def test_svamps_parts_share_no_problem_and_answers_are_numbers() -> None:
    parts = [load_prompts(f"svamp_{part}") for part in ("train", "test")]
    assert [len(part) for part in parts] == [658, 219]
    for part in parts:
        assert part.column_names == ["prompt", "topic", "answer"]
        assert all(re.fullmatch(r"-?\d+(\.\d+)?", answer) for answer in part["answer"])
    words = [[frozenset(re.findall(r"[a-z]+", row["prompt"][0]["content"].lower())) for row in part] for part in parts]
    closest = max(len(a & b) / len(a | b) for a in words[0] for b in words[1])
    assert closest < 0.6


def test_arithmetic_is_right_and_its_parts_share_no_pair_of_operands() -> None:
    operation = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}
    pairs: list[set[frozenset[int]]] = []
    for part, records in (("train", 240), ("test", 120)):
        rows = load_prompts(f"arithmetic_{part}")
        assert len(rows) == records
        pairs.append(set())
        for row in rows:
            left, sign, right = row["prompt"][0]["content"].removeprefix("What is ").removesuffix("?").split()
            a, b = int(left), int(right)
            assert row["answer"] == str(operation[sign](a, b))
            assert sign != "/" or a % b == 0
            pairs[-1].add(frozenset((a // b if sign == "/" else a, b)))
    assert not pairs[0] & pairs[1]


def test_a_recipe_may_name_several_sets_of_prompts() -> None:
    recipe = fedpref.load_recipe("reasoning").recipe
    assert recipe.policy is not None
    one = recipe.policy.model_copy(update={"prompts": ("svamp_train",), "test_prompts": ("svamp_test",)})
    both, single = load_groups(recipe, recipe.policy), load_groups(recipe, one)
    assert len(both.train) == 658 + 240
    assert both.train[: len(single.train)] == single.train
    assert {name: len(rows) for name, rows in both.evaluation.items()} == {"svamp_test": 219, "arithmetic_test": 120}
    without_answers = recipe.policy.model_copy(update={"prompts": ("svamp_train", "ukpconvarg1_questions")})
    assert set(load_groups(recipe, without_answers).train[0]) == {"prompt", "topic"}
    given_as_text = fedpref.load_recipe("reasoning", policy__prompts="svamp_train").recipe.policy
    assert given_as_text is not None
    assert given_as_text.prompts == ("svamp_train",)


def test_the_questions_are_the_prompts_of_the_public_completions_and_of_the_votes() -> None:
    questions = load_prompts("ukpconvarg1_questions")
    assert len(questions) == 28
    assert len(set(questions["topic"])) == 14
    mine = {(row["prompt"][0]["content"], row["topic"]) for row in questions}
    for name, topic in (("ukpconvarg1_public", "topic"), ("ukpconvarg1", "domain")):
        table = pyarrow.parquet.read_table(find_dataset(name).path, columns=["prompt", topic])
        assert {(row["prompt"][0]["content"], row[topic]) for row in table.to_pylist()} == mine
    left = load_prompts("ukpconvarg1_questions", ("TV is better than Books", "Ban Plastic Water Bottles"))
    assert len(left) == 24


def test_the_licence_travels_with_the_embedded_file() -> None:
    folder = find_dataset("svamp_train").path.parent
    assert "Copyright (c) 2021 Arkil Patel" in (folder / "svamp.LICENSE").read_text()
