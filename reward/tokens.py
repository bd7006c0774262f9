"""Token batches: records of one prompt and its answers, as rows that a causal language model is called on.

Two layouts of the same records. ``separate``: one model row per answer, [first answers; second answers; ...] as TRL lays
out pairs. ``shared``: one model row per record, the prompt once and its answers behind it; every answer sees the prompt
and itself only, and its positions go on from the prompt's, so that scores and log-probabilities are those of separate
rows with the prompt's work done once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from reward.errors import TokenBatchError
from reward.pairs import Conversation, render

Layout = Literal["shared", "separate"]
PaddingSide = Literal["right", "left"]
PADDING, PROMPT = -1, 0


class TokenRecord(NamedTuple):
    """The tokens of a prompt (at least one) and of each of its answers, without padding."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[tuple[int, ...], ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of its row in the shared layout, for batches by token budget."""
        return len(self.prompt_ids) + sum(map(len, self.answer_ids))


def tokenize(
    tokenizer: Any,
    prompt: tuple[tuple[str, str], ...],
    completions: Sequence[str],
    *,
    max_length: int | None = None,
) -> TokenRecord:
    """A prompt's messages and completions -> tokens, as TRL's trainers make them of conversations.

    An answer is what the chat template puts behind the prompt with the assistant's turn opened: the completion, the end of
    the turn, and what follows it. Without a template it is the completion and the end-of-sequence token. Where prompt and
    answer merge into other tokens, the answers begin where the first of them departs from the prompt's tokens.

    Args:
        max_length: of prompt and answer together; what is beyond it is cut off at the end (TRL's ``keep_start``).

    | case | result |
    |---|---|
    | a prompt that fills max_length | answers without tokens (TRL drops the record: a size that depends on private text) |
    | empty completion | the template's end of turn, or the end-of-sequence token |
    | a prompt without tokens | one end-of-sequence token, which the first token of the answer is predicted from |
    | equal completions | equal answers |
    """
    head = _ids(tokenizer, render(tokenizer, prompt))
    wholes = [_ids(tokenizer, _rendered(tokenizer, Conversation(prompt, text))) for text in completions]
    begin = min((_common(head, whole) for whole in wholes), default=len(head))
    prompt_ids = (head[:begin] or [tokenizer.eos_token_id])[:max_length]
    room = None if max_length is None else max_length - len(prompt_ids)
    return TokenRecord(tuple(prompt_ids), tuple(tuple(whole[begin:][:room]) for whole in wholes))


@dataclass(frozen=True)
class TokenRows:
    """Padded records.

    Attributes:
        input_ids: int64 [rows, T].
        answer: int64 [rows, T]: -1 padding, 0 prompt, a > 0 a token of the record's a-th answer.
        num_answers: answers of every record, k.
        layout: ``shared``: rows = n. ``separate``: rows = k n, row a n + i holds answer a + 1 of record i.
    """

    input_ids: Tensor
    answer: Tensor
    num_answers: int
    layout: Layout

    @property
    def rows_per_record(self) -> int:
        """1 or k."""
        return 1 if self.layout == "shared" else self.num_answers

    @property
    def num_records(self) -> int:
        """n."""
        return len(self.input_ids) // self.rows_per_record

    @property
    def attention_mask(self) -> Tensor:
        """1 for tokens, 0 for padding, int64 [rows, T]."""
        return (self.answer != PADDING).long()

    @property
    def completion_mask(self) -> Tensor:
        """1 for tokens of answers, int64 [rows, T]."""
        return (self.answer > PROMPT).long()

    @property
    def position_ids(self) -> Tensor:
        """Every token's place in its own prompt-and-answer sequence, int64 [rows, T]; 0 for padding."""
        prompt = self.answer == PROMPT
        places = prompt.long().cumsum(1) - 1
        length = prompt.sum(1, keepdim=True)
        for number in range(1, self.num_answers + 1):
            mine = self.answer == number
            places = torch.where(mine, length + mine.long().cumsum(1) - 1, places)
        return places.masked_fill(self.answer == PADDING, 0)

    @property
    def answer_lengths(self) -> Tensor:
        """Tokens of every answer, int64 [n, k]."""
        if self.layout == "separate":
            return self.by_record((self.answer > PROMPT).sum(1, keepdim=True))
        return torch.stack([(self.answer == number).sum(1) for number in range(1, self.num_answers + 1)], dim=1)

    @property
    def answer_slots(self) -> tuple[Tensor, Tensor]:
        """Of every answer token, row by row: which answer it belongs to (record k + answer - 1), and its place in it."""
        row, column = (self.answer > PROMPT).nonzero(as_tuple=True)
        answer = self.answer[row, column]
        slot = (row % max(self.num_records, 1)) * self.num_answers + answer - 1
        length = (self.answer == PROMPT).sum(1)
        return slot, self.position_ids[row, column] - length[row]

    @property
    def predictions(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of every answer token, in that order: its row, the column whose hidden state predicts it, and the token.

        That column is the token's left neighbour, or the prompt's last one for the first token of an answer.
        """
        row, column = (self.answer > PROMPT).nonzero(as_tuple=True)
        left = (column - 1).clamp(min=0)
        same = self.answer[row, left] == self.answer[row, column]
        return row, torch.where(same, left, self.prompt_end[row]), self.input_ids[row, column]

    @property
    def prompt_end(self) -> Tensor:
        """The column of every row's last prompt token, int64 [rows]."""
        columns = torch.arange(self.answer.shape[1], device=self.answer.device)
        return (
            torch.where(self.answer == PROMPT, columns, 0).amax(1)
            if len(columns)
            else columns.new_zeros(len(self.answer))
        )

    @property
    def answer_end(self) -> Tensor:
        """The column of the last token of every answer in its row (the prompt's where it has none), [rows, k or 1]."""
        columns = torch.arange(self.answer.shape[1], device=self.answer.device)
        numbers = range(1, self.num_answers + 1)
        mine = [self.answer == n for n in numbers] if self.layout == "shared" else [self.answer > PROMPT]
        ends = [torch.where(m, columns, -1).amax(1) if len(columns) else columns.new_zeros(len(m)) for m in mine]
        end = torch.stack(ends, dim=1)
        return torch.where(end < 0, self.prompt_end[:, None], end)

    def by_record(self, values: Tensor) -> Tensor:
        """What was computed at ``answer_end``, [rows, k or 1] -> [n, k]."""
        return values if self.layout == "shared" else values.view(self.num_answers, -1).T

    def model_row_unit(self, row_unit: Tensor) -> Tensor:
        """The unit of every model row, [rows], from that of every record, [n]."""
        return row_unit.repeat(self.rows_per_record)

    def select(self, records: Tensor) -> TokenRows:
        """The records of a mask (bool [n]) or of a list of numbers (int64), without columns that are padding only."""
        chosen = records.nonzero()[:, 0] if records.dtype == torch.bool else records
        rows = torch.cat([chosen + part * self.num_records for part in range(self.rows_per_record)])
        answer = self.answer[rows]
        used = (answer != PADDING).any(0)
        return TokenRows(self.input_ids[rows][:, used], answer[:, used], self.num_answers, self.layout)

    def to(self, device: torch.device | str) -> TokenRows:
        """On another device."""
        return TokenRows(self.input_ids.to(device), self.answer.to(device), self.num_answers, self.layout)


def collate(
    records: Sequence[TokenRecord],
    *,
    num_answers: int,
    pad_token_id: int = 0,
    layout: Layout = "shared",
    padding_side: PaddingSide = "right",
) -> TokenRows:
    """Records -> one padded batch.

    Args:
        records: each with ``num_answers`` answers.
        pad_token_id: under the padding; no loss depends on it.

    | case | result |
    |---|---|
    | no records | [0, 0] |
    | an answer without tokens | a row (or a part of one) without answer tokens |

    Raises:
        TokenBatchError: a record with another number of answers, or without a prompt token.
    """
    if any(len(r.answer_ids) != num_answers or not r.prompt_ids for r in records):
        raise TokenBatchError(
            "A record does not fit the batch.",
            f"Every record has a prompt of at least one token and {num_answers} answers.",
            "Make records with reward.tokens.tokenize.",
        )
    rows = [_parts(r, range(num_answers)) for r in records]
    if layout == "separate":
        rows = [_parts(r, [number]) for number in range(num_answers) for r in records]
    width = max((len(ids) for ids, _ in rows), default=0)
    input_ids, answer = torch.full((len(rows), width), pad_token_id), torch.full((len(rows), width), PADDING)
    for row, (ids, numbers) in enumerate(rows):
        begin = 0 if padding_side == "right" else width - len(ids)
        input_ids[row, begin : begin + len(ids)] = torch.tensor(ids)
        answer[row, begin : begin + len(ids)] = torch.tensor(numbers)
    return TokenRows(input_ids, answer, num_answers, layout)


def _parts(record: TokenRecord, answers: Sequence[int]) -> tuple[list[int], list[int]]:
    """Tokens and answer numbers of one model row."""
    ids, numbers = list(record.prompt_ids), [PROMPT] * len(record.prompt_ids)
    for number in answers:
        ids += record.answer_ids[number]
        numbers += [number + 1] * len(record.answer_ids[number])
    return ids, numbers


def _rendered(tokenizer: Any, conversation: Conversation) -> str:
    if not tokenizer.chat_template:
        return render(tokenizer, conversation.prompt) + conversation.completion + (tokenizer.eos_token or "")
    messages = [{"role": role, "content": content} for role, content in conversation.prompt]
    messages.append({"role": "assistant", "content": conversation.completion})
    return str(tokenizer.apply_chat_template(messages, tokenize=False))


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _common(head: list[int], whole: list[int]) -> int:
    """Length of the longest common beginning."""
    return next((i for i, (a, b) in enumerate(zip(head, whole, strict=False)) if a != b), min(len(head), len(whole)))
