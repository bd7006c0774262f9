"""Records become tokens by the chat template, are cut at the end, and are laid out in either layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from reward.errors import TokenBatchError
from reward.selection import choice_ids, selector_record, shown_first
from reward.tokens import TokenRecord, collate, tokenize

PROMPT = (("user", "Why?"),)
RECORDS = [TokenRecord((5, 6, 7), ((8, 9), (10,))), TokenRecord((11,), ((), (12, 13, 14)))]


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def text(tokenizer: Any, ids: tuple[int, ...]) -> str:
    return str(tokenizer.decode(ids))


def test_an_answer_is_what_the_template_puts_behind_the_prompt(tokenizer: Any) -> None:
    record = tokenize(tokenizer, PROMPT, ["So.", ""])
    assert text(tokenizer, record.prompt_ids) == "<s>user: Why?</s><s>assistant: "
    assert [text(tokenizer, answer) for answer in record.answer_ids] == ["So.</s>", "</s>"]
    assert record.num_tokens == len(record.prompt_ids) + 4 + 1


def test_without_a_template_the_end_of_sequence_follows_the_completion(tokenizer: Any, tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    plain = AutoTokenizer.from_pretrained(tiny_model)
    plain.chat_template = None
    record = tokenize(plain, PROMPT, ["So."])
    assert text(plain, record.prompt_ids) == "Why?\n"
    assert text(plain, record.answer_ids[0]) == "So.</s>"
    assert tokenize(plain, (), ["a"]).prompt_ids == (plain.eos_token_id,)


def test_what_exceeds_max_length_is_cut_at_the_end(tokenizer: Any) -> None:
    whole = tokenize(tokenizer, PROMPT, ["So it is.", "No."])
    length = len(whole.prompt_ids)
    cut = tokenize(tokenizer, PROMPT, ["So it is.", "No."], max_length=length + 5)
    assert cut.prompt_ids == whole.prompt_ids
    assert cut.answer_ids == (whole.answer_ids[0][:5], whole.answer_ids[1][:5])
    full = tokenize(tokenizer, PROMPT, ["So it is.", "No."], max_length=length)
    assert full == TokenRecord(whole.prompt_ids, ((), ()))


def test_separate_rows_are_those_of_trl() -> None:
    rows = collate(RECORDS, num_answers=2, layout="separate")
    assert rows.input_ids.tolist() == [[5, 6, 7, 8, 9], [11, 0, 0, 0, 0], [5, 6, 7, 10, 0], [11, 12, 13, 14, 0]]
    assert rows.completion_mask.tolist() == [[0, 0, 0, 1, 1], [0] * 5, [0, 0, 0, 1, 0], [0, 1, 1, 1, 0]]
    assert rows.model_row_unit(torch.tensor([4, 7])).tolist() == [4, 7, 4, 7]
    assert rows.answer_lengths.tolist() == [[2, 1], [0, 3]]


def test_shared_rows_hold_the_prompt_once_and_positions_begin_anew_behind_it() -> None:
    rows = collate(RECORDS, num_answers=2, padding_side="left", pad_token_id=3)
    assert rows.input_ids.tolist() == [[5, 6, 7, 8, 9, 10], [3, 3, 11, 12, 13, 14]]
    assert rows.position_ids.tolist() == [[0, 1, 2, 3, 4, 3], [0, 0, 0, 1, 2, 3]]
    assert rows.model_row_unit(torch.tensor([4, 7])).tolist() == [4, 7]
    assert rows.answer_lengths.tolist() == [[2, 1], [0, 3]]
    assert rows.answer_end.tolist() == [[4, 5], [2, 5]]


@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_selected_records_keep_their_rows_and_lose_idle_columns(layout: Any) -> None:
    rows = collate(RECORDS, num_answers=2, layout=layout)
    alone = rows.select(torch.tensor([False, True]))
    assert alone.num_records == 1
    fresh = collate(RECORDS[1:], num_answers=2, layout=layout)
    assert torch.equal(alone.input_ids, fresh.input_ids)
    assert torch.equal(alone.answer, fresh.answer)
    assert rows.select(torch.tensor([1, 0, 1])).num_records == 3
    assert collate([], num_answers=2, layout=layout).num_records == 0


def test_a_record_that_does_not_fit_is_refused() -> None:
    with pytest.raises(TokenBatchError, match="FP312"):
        collate(RECORDS, num_answers=3)
    with pytest.raises(TokenBatchError, match="prompt"):
        collate([TokenRecord((), ((1,),))], num_answers=1)


def test_the_selector_shows_answers_in_an_order_that_the_vote_does_not_decide(tokenizer: Any) -> None:
    labels = set()
    for chosen, rejected in (("yes", "no"), ("one", "two"), ("left", "right"), ("up", "down")):
        record, label = selector_record(tokenizer, PROMPT, chosen, rejected)
        turned, other = selector_record(tokenizer, PROMPT, rejected, chosen)
        assert record == turned
        assert label + other == 1
        assert label == int(not shown_first(chosen, rejected))
        shown = text(tokenizer, record.prompt_ids)
        assert f"Answer {'AB'[label]}: {chosen}\n" in shown
        labels.add(label)
    assert labels == {0, 1}
    assert [tokenizer.decode([i]) for i in choice_ids(tokenizer)] == ["A", "B"]


def test_long_answers_of_a_question_are_cut_alike(tokenizer: Any) -> None:
    empty = len(selector_record(tokenizer, PROMPT, "", "")[0].prompt_ids)
    record, _ = selector_record(tokenizer, PROMPT, "z" * 90, "q" * 70, max_length=empty + 22)
    shown = text(tokenizer, record.prompt_ids)
    assert shown.count("z") == shown.count("q") == 10
    assert len(record.prompt_ids) <= empty + 22
    assert shown.endswith("assistant: ")
    tight, _ = selector_record(tokenizer, PROMPT, "x" * 9, "y" * 9, max_length=7)
    assert len(tight.prompt_ids) == 7
