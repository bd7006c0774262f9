"""Records that carry no preference are left out, named by row and code, judged within each user alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from fedpref.data.preferences import Preferences, RecordProblem, check_records
from tests.tiny import preferences

PLANTED = "Zebra-planted"


def records(*rows: tuple[str, str, str], prompt: str = "Why?") -> Dataset:
    """(user, chosen, rejected) in the form that ``read_dataset`` gives."""

    def message(role: str, content: str) -> list[dict[str, str]]:
        return [{"role": role, "content": content}]

    return Dataset.from_dict(
        {
            "prompt": [message("user", prompt) for _ in rows],
            "chosen": [message("assistant", chosen) for _, chosen, _ in rows],
            "rejected": [message("assistant", rejected) for _, _, rejected in rows],
            "user_id": [user for user, _, _ in rows],
            "topic": ["t"] * len(rows),
            "client": [""] * len(rows),
        }
    )


def codes(problems: list[RecordProblem]) -> dict[str, tuple[int, ...]]:
    return {problem.code: problem.rows for problem in problems}


def votes_of(data: Preferences) -> list[tuple[str, str, str]]:
    text = [t.completion for t in data.texts]
    return [(str(u), text[c], text[r]) for u, c, r in zip(data.user, data.chosen, data.rejected, strict=True)]


def test_sound_records_pass_in_order_over_distinct_texts() -> None:
    rows = [("u1", "a", "b"), ("u2", "b", "a"), ("u1", "b", "c"), ("u2", "a", "c")]
    data, problems = check_records(records(*rows))
    assert problems == []
    assert votes_of(data) == rows
    assert len(data.texts) == 3


@pytest.mark.parametrize(("chosen", "rejected"), [("", "b"), ("a", ""), (" \n\t", "b"), ("", "")])
def test_an_empty_answer_is_fp211(chosen: str, rejected: str) -> None:
    data, problems = check_records(records(("u", "a", "b"), ("u", chosen, rejected)))
    assert codes(problems) == {"FP211": (2,)}
    assert votes_of(data) == [("u", "a", "b")]


def test_an_empty_prompt_is_fp211() -> None:
    data, problems = check_records(records(("u", "a", "b"), prompt="  "))
    assert codes(problems) == {"FP211": (1,)}
    assert len(data) == 0


def test_chosen_equal_to_rejected_is_fp212() -> None:
    data, problems = check_records(records(("u", "a", "a"), ("u", "a", "b")))
    assert codes(problems) == {"FP212": (1,)}
    assert votes_of(data) == [("u", "a", "b")]


def test_a_vote_given_twice_is_fp213_and_counts_once() -> None:
    data, problems = check_records(records(("u", "a", "b"), ("v", "a", "b"), ("u", "a", "b"), ("u", "a", "b")))
    assert codes(problems) == {"FP213": (3, 4)}
    assert votes_of(data) == [("u", "a", "b"), ("v", "a", "b")]


def test_a_vote_both_ways_is_fp214_and_counts_not_at_all() -> None:
    data, problems = check_records(records(("u", "a", "b"), ("u", "c", "d"), ("u", "b", "a"), ("v", "b", "a")))
    assert codes(problems) == {"FP214": (1, 3)}
    assert votes_of(data) == [("u", "c", "d"), ("v", "b", "a")]


def test_twice_and_both_ways_leaves_nothing_of_that_pair() -> None:
    data, problems = check_records(records(("u", "a", "b"), ("u", "a", "b"), ("u", "b", "a")))
    assert codes(problems) == {"FP213": (2,), "FP214": (1, 3)}
    assert len(data) == 0


def test_the_same_texts_under_another_prompt_are_another_vote() -> None:
    rows: list[dict[str, Any]] = [
        *records(("u", "a", "b"), prompt="one").to_list(),
        *records(("u", "a", "b"), prompt="two").to_list(),
    ]
    data, problems = check_records(Dataset.from_list(rows))
    assert problems == []
    assert len(data) == 2


def test_one_users_records_never_change_what_is_kept_of_another() -> None:
    """Zero-out: whatever v sends, what remains of u is the same (otherwise v's presence would leak through u)."""
    of_u = [("u", "a", "b"), ("u", "a", "b"), ("u", "c", "c"), ("u", "d", "e")]
    alone, _ = check_records(records(*of_u))
    for of_v in ([("v", "a", "b")], [("v", "b", "a"), ("v", "e", "d")], [("v", "a", "a"), ("v", "", "x")]):
        both, _ = check_records(records(*of_v, *of_u))
        assert [vote for vote in votes_of(both) if vote[0] == "u"] == votes_of(alone)


def test_a_problem_names_code_and_rows_but_no_text_and_no_person() -> None:
    rows = [(f"{PLANTED}-person", f"{PLANTED}{i}", f"{PLANTED}{i}") for i in range(9)]
    _, (problem,) = check_records(records(*rows))
    line = problem.describe()
    assert line.startswith("warning[FP212] 9 records left out")
    assert "rows 1, 2, 3, 4, 5 …" in line
    assert "fix:" in line
    assert PLANTED not in line
    assert PLANTED not in repr(problem)


def test_no_records_at_all_are_no_error_here() -> None:
    data, problems = check_records(records())
    assert (len(data), problems) == (0, [])
    assert data.used_texts == []


def test_concat_keeps_votes_over_one_table_of_distinct_texts() -> None:
    first, second = preferences([("u", "a", "b")]), preferences([("v", "b", "c"), ("v", "c", "a")])
    both = Preferences.concat([first, second])
    assert votes_of(both) == [("u", "a", "b"), ("v", "b", "c"), ("v", "c", "a")]
    assert len(both.texts) == 3
    assert len(Preferences.concat([])) == 0


def test_select_and_used_texts_speak_of_the_selected_records_only() -> None:
    data = preferences([("u", "a", "b"), ("v", "c", "d")])
    of_v = data.select(np.array([False, True]))
    assert [t.completion for t in of_v.used_texts] == ["c", "d"]
