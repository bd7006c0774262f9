"""A record that lies in two places: twice among the private files, or in a private and a public one."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fedpref.config import Recipe
from fedpref.data.copies import _kept, _records, text_digest, without_copies
from fedpref.data.loading import load_federated
from fedpref.data.people import is_named, row_name
from fedpref.data.preferences import Preferences
from fedpref.errors import UnsupportedPlanError
from reward.pairs import Conversation
from tests.tiny import make_recipe, preferences, votes, write_dataset

Rows = list[dict[str, Any]]
SIDES = ("prompt", "chosen", "rejected")
ALL: dict[str, Any] = {"evaluation__user_fraction": 0.0, "evaluation__unseen_topics": []}


def once() -> Rows:
    """Votes of which nobody gave one twice, or both ways."""
    return list({(r["user_id"], frozenset((r["chosen"], r["rejected"]))): r for r in votes()}.values())


def spaced(rows: Rows) -> Rows:
    return [
        {key: f" {value}\n".replace(" ", "  ") if key in SIDES else value for key, value in row.items()} for row in rows
    ]


def without_names(rows: Rows) -> Rows:
    return [{key: value for key, value in row.items() if key != "user_id"} for row in rows]


COPIES: dict[str, Any] = {
    "one more line end": lambda rows: rows,
    "another order": lambda rows: list(reversed(rows)),
    "other blanks": spaced,
    "a column more": lambda rows: [{"site": 1, **row} for row in rows],
}


def two(folder: Path, first: Rows, second: Rows, **changes: Any) -> Recipe:
    """A recipe of two data files; the second has one more line end."""
    write_dataset(folder, first, "a")
    write_dataset(folder, second, "b")
    (folder / "b.jsonl").write_text((folder / "b.jsonl").read_text() + "\n")
    for name, rows in (("a", first), ("b", second)):
        if "user_id" not in rows[0]:
            described = yaml.safe_load((folder / f"{name}.yaml").read_text())
            described["fields"].pop("user_id")
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(described))
    return make_recipe(folder, datasets=[str(folder / "a.yaml"), str(folder / "b.yaml")], **{**ALL, **changes})


def number(recipe: Recipe, said: list[str] | None = None) -> int:
    return sum(len(part) for part in load_federated(recipe, (said if said is not None else []).append).clients.values())


@pytest.mark.parametrize("unit", ["user", "example"])
@pytest.mark.parametrize("copy", COPIES)
def test_a_record_counts_once_whatever_bytes_its_copy_has(tmp_path: Path, unit: str, copy: str) -> None:
    said: list[str] = []
    recipe = two(tmp_path, votes(), COPIES[copy](votes()), privacy__unit=unit)
    once = number(recipe.model_copy(update={"datasets": recipe.datasets[:1]}))
    assert number(recipe, said) == once > 0
    assert any("FP219" in line and line.startswith("b.jsonl") for line in said)


def test_part_of_a_copy_counts_once_and_the_rest_counts(tmp_path: Path) -> None:
    recipe = two(tmp_path, votes(), votes()[::3] + votes(seed=1), privacy__unit="example")
    alone = [number(make_recipe(tmp_path, datasets=[str(write_dataset(tmp_path, r))], **ALL)) for r in (votes(),)]
    assert number(recipe) > alone[0]
    data = load_federated(recipe, lambda _: None)
    told = Counter(
        (user, frozenset((part.texts[c], part.texts[r])), part.texts[c])
        for part in data.clients.values()
        for user, c, r in zip(part.user.tolist(), part.chosen.tolist(), part.rejected.tolist(), strict=True)
    )
    assert max(told.values()) == 1


def test_a_copy_without_the_column_of_names_counts_once_too(tmp_path: Path) -> None:
    recipe = two(tmp_path, once(), without_names(once()), privacy__unit="example")
    assert number(recipe) == number(recipe.model_copy(update={"datasets": recipe.datasets[:1]}))


@pytest.mark.parametrize("names", [True, False])
def test_by_file_a_client_that_is_a_copy_of_another_is_refused(tmp_path: Path, names: bool) -> None:
    rows = votes() if names else without_names(votes())
    changes = {"federation__partition": {"by": "file"}, "privacy__unit": "example"}
    recipe = two(tmp_path, rows, list(reversed(rows)), **changes)
    with pytest.raises(UnsupportedPlanError, match="hold the same records"):
        load_federated(recipe, lambda _: None)


def test_by_file_few_equal_votes_of_nobody_are_no_copy(tmp_path: Path) -> None:
    rows = without_names(votes())[:5]
    changes = {"federation__partition": {"by": "file"}, "privacy__unit": "example"}
    assert number(two(tmp_path, rows, rows, **changes)) == 10


def brute(files: list[Preferences]) -> int:
    """Of every content: its named people, or as many as the fullest file has."""
    people: dict[tuple[str, str], set[str]] = {}
    rows: dict[tuple[str, str], Counter[int]] = {}
    for i, part in enumerate(files):
        for user, c, r in zip(part.user.tolist(), part.chosen.tolist(), part.rejected.tolist(), strict=True):
            key = (part.texts[c].completion, part.texts[r].completion)
            people.setdefault(key, set()).update([user] if is_named(user) else [])
            rows.setdefault(key, Counter())[i] += 1
    return sum(max(len(people[key]), *of.values()) for key, of in rows.items())


def test_one_record_changes_what_is_kept_by_at_most_itself() -> None:
    """Against a slow count; and each record taken away by itself: no content loses or gains more than one."""
    rng = np.random.default_rng(7)

    def drawn(n: int) -> list[tuple[str, str, str]]:
        named = rng.random(n) < 0.4
        sides = rng.permuted(np.tile(["x", "y", "z"], (n, 1)), axis=1)
        who = [f"u{rng.integers(3)}" if yes else row_name(i) for i, yes in enumerate(named)]
        rows = [(user, str(c), str(r)) for user, (c, r, _) in zip(who, sides, strict=True)]
        return list({row: None for row in rows if is_named(row[0])}) + [row for row in rows if not is_named(row[0])]

    def kept(lists: list[list[tuple[str, str, str]]]) -> Counter[tuple[str, str]]:
        files = [preferences(rows) for rows in lists]
        mask = _kept(files, [_records(part, whichever_won=False) for part in files], nameless=True)
        rows = [row for rows in lists for row in rows]
        assert int(mask.sum()) == brute(files)
        return Counter((c, r) for (_, c, r), stays in zip(rows, mask, strict=True) if stays)

    for _ in range(20):
        lists = [drawn(int(rng.integers(1, 8))) for _ in range(3)]
        whole = kept(lists)
        for gone in {row for rows in lists for row in rows}:
            if is_named(gone[0]):  # a person's record is one, in whichever files
                less = kept([[row for row in rows if row != gone] for rows in lists])
                assert sum(((whole - less) + (less - whole)).values()) <= 1
        for i, rows in enumerate(lists):
            for j, row in enumerate(rows):
                if not is_named(row[0]):
                    less = kept([*lists[:i], rows[:j] + rows[j + 1 :], *lists[i + 1 :]])
                    assert sum(((whole - less) + (less - whole)).values()) <= 1


def test_of_no_files_and_of_empty_ones_everything_is_kept(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, privacy__unit="example")
    assert without_copies([], [], recipe) == ([], [])
    nobody = preferences([])
    assert [len(part) for part in without_copies(["a", "b"], [nobody, nobody], recipe)[0]] == [0, 0]
    some = preferences([("u", "x", "y")])
    assert [len(part) for part in without_copies(["a", "b", "c"], [nobody, some, some], recipe)[0]] == [0, 1, 0]


def test_under_randomised_labels_a_copy_with_other_winners_counts_once(tmp_path: Path) -> None:
    """The number of records may depend on no label: a person's pair counts once, whoever wins in the copy."""
    turned = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in votes()]
    labels = {"labels": "randomized_response", "label_epsilon": 1.0}
    privacy = {"noise_multiplier": 1.5, "sample_rate": 0.3, "max_grad_norm": 0.5, **labels}
    counts: set[int] = set()
    for copy in (votes(), turned):
        folder = tmp_path / str(len(counts))
        folder.mkdir()
        counts.add(number(two(folder, votes(), copy, privacy=privacy)))
    recipe = make_recipe(tmp_path, privacy=privacy, **ALL)
    assert counts == {number(recipe)}


def public(folder: Path, text: str, **fields: Any) -> str:
    (folder / "open.jsonl").write_text(text)
    described = {
        "name": "open",
        "source": "open.jsonl",
        "license": "CC0-1.0",
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "public": True,
        "reason": "none",
        **fields,
    }
    (folder / "open.yaml").write_text(yaml.safe_dump(described))
    return str(folder / "open.yaml")


TEXTS = {"format": "prompt_completion", "fields": {"prompt": "prompt", "completion": "chosen", "topic": "topic"}}
OTHER_COLUMNS = {"format": "prompt_completion", "fields": {"prompt": "q", "completion": "a"}}
PROMPTS = {"format": "prompt_only", "fields": {"topic": "topic"}}


def lines(rows: Rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        (lines(votes()) + "\n", TEXTS),
        (lines(spaced(votes())), TEXTS),
        (lines(without_names(votes()[7:8])), TEXTS),
        (lines([{"q": r["prompt"], "a": r["rejected"]} for r in votes()]), OTHER_COLUMNS),
    ],
)
def test_private_feedback_in_other_bytes_is_not_public_text(tmp_path: Path, text: str, fields: dict[str, Any]) -> None:
    recipe = make_recipe(tmp_path, reward__public_data=public(tmp_path, text, **fields))
    with pytest.raises(UnsupportedPlanError, match="public data as well"):
        load_federated(recipe, lambda _: None)


@pytest.mark.parametrize(
    ("text", "refused"),
    [(lines(votes()) + "\n", True), (lines([{"prompt": "Say something about cats.", "topic": "cats"}]), False)],
)
def test_public_prompts_may_be_what_people_were_asked_and_not_what_they_said(
    tmp_path: Path, text: str, refused: bool
) -> None:
    policy = {"prompts": [public(tmp_path, text, **PROMPTS)], "reward_funcs": ["reward_model"]}
    recipe = make_recipe(tmp_path, policy=policy)
    if refused:
        with pytest.raises(UnsupportedPlanError, match="public data as well"):
            load_federated(recipe, lambda _: None)
    else:
        assert load_federated(recipe, lambda _: None).clients


def test_a_text_is_known_by_what_it_says() -> None:
    def digest(prompt: str, completion: str, role: str = "user") -> bytes:
        return text_digest(Conversation(((role, prompt),), completion))

    assert digest("Zoë asks", "a b") == digest(" Zoe\u0308\tasks", "a\n b ")
    others = {digest("Zoë asks", "a b"), digest("Zoë asksa", "b"), digest("Zoë asks", "a b", "system"), digest("", "")}
    assert len(others) == 4
    assert all(len(value) == 16 for value in others)


@pytest.mark.slow  # seconds
def test_shipped_recipes_keep_votes_and_public_data_apart() -> None:
    from fedpref.recipes import find_recipe, read_recipe

    for name in ("quickstart", "fed-grpo"):
        assert load_federated(read_recipe(find_recipe(name)), lambda _: None).clients
