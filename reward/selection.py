"""Questions which of two answers is better, for a binary selector; shown in an order that says nothing about the vote."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from reward.errors import TokenBatchError
from reward.tokens import TokenRecord, tokenize

CHOICES = ("A", "B")


def shown_first(chosen: str, rejected: str) -> bool:
    """Is the chosen answer shown first? By the digests of both texts, so that a person's vote does not decide it.

    For two equal texts by a bit of their digest, so that the letters stay balanced.
    """
    first, second = _digest(chosen), _digest(rejected)
    return first < second if first != second else first[0] % 2 == 0


def selector_record(
    tokenizer: Any, prompt: tuple[tuple[str, str], ...], chosen: str, rejected: str, *, max_length: int | None = None
) -> tuple[TokenRecord, int]:
    """The question, and the label of the preferred answer: 0 if it is shown first, else 1.

    | case | result |
    |---|---|
    | the question is longer than max_length | each answer is cut at the end to the same number of tokens, until it fits |
    | no room for any of an answer | both are empty; the question's last tokens are kept |
    """
    first = shown_first(chosen, rejected)
    texts = (chosen, rejected) if first else (rejected, chosen)
    question = _question(prompt, texts)
    ids = tokenize(tokenizer, question, []).prompt_ids
    if max_length is not None and len(ids) > max_length:
        answers = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
        empty = len(tokenize(tokenizer, _question(prompt, ("", "")), []).prompt_ids)
        room = max(0, (max_length - empty) // 2 - 1)
        cut = tuple(tokenizer.decode(a[:room], skip_special_tokens=True) for a in answers)
        ids = tokenize(tokenizer, _question(prompt, (cut[0], cut[1])), []).prompt_ids[-max_length:]
    return TokenRecord(tuple(ids), ((),)), 0 if first else 1


def choice_ids(tokenizer: Any) -> tuple[int, int]:
    """The tokens that begin the answers "A" and "B" of the assistant.

    Raises:
        TokenBatchError: a tokenizer that begins both with the same token.
    """
    ids: Sequence[int] = [tokenizer(choice, add_special_tokens=False)["input_ids"][0] for choice in CHOICES]
    if ids[0] == ids[1]:
        raise TokenBatchError(
            "The tokenizer cannot tell the choices apart.",
            "It begins A and B with the same token.",
            "Use another base model for the selector.",
        )
    return ids[0], ids[1]


def _question(prompt: tuple[tuple[str, str], ...], texts: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    asked = "\n".join(content for _, content in prompt)
    shown = f"Answer A: {texts[0]}\n\nAnswer B: {texts[1]}"
    return (("user", f"{asked}\n\n{shown}\n\nWhich answer is better, A or B? Reply with the letter."),)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
