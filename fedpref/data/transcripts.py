"""Implicit prompts: the common beginning of chosen and rejected, as TRL's ``extract_prompt`` finds it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant): ?")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def parse_transcript(text: str) -> list[dict[str, str]] | None:
    """`Human: … Assistant: …` (as hh-rlhf has it) -> messages; None if the text does not start with such a turn.

    Two turns of one speaker in a row are one message.
    """
    pieces = _TURN.split(text.strip("\n") if _TURN.match(text.lstrip("\n")) else text)
    if len(pieces) < 3 or pieces[0].strip():
        return None
    messages: list[dict[str, str]] = []
    for speaker, content in zip(pieces[1::2], pieces[2::2], strict=True):
        if messages and messages[-1]["role"] == _ROLES[speaker]:
            messages[-1]["content"] += f"\n\n{content.strip()}"
        else:
            messages.append({"role": _ROLES[speaker], "content": content.strip()})
    return messages


def is_messages(value: Any) -> bool:
    """TRL's conversational form: a non-empty list whose first element has a role."""
    return isinstance(value, Sequence) and bool(value) and isinstance(value[0], Mapping) and "role" in value[0]


def extract_prompt(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """(prompt, chosen, rejected) of a record whose prompt is implicit.

    | chosen and rejected | prompt |
    |---|---|
    | lists of messages | the messages that both begin with |
    | `Human: … Assistant: …` transcripts | the same, of their turns |
    | other strings | the characters that both begin with, up to the last space (TRL's rule) |

    Sides of which one is the beginning of the other keep at least their last message, so that no answer is lost.
    """
    if isinstance(chosen, str) and isinstance(rejected, str):
        turns = parse_transcript(chosen), parse_transcript(rejected)
        if turns[0] is None or turns[1] is None:
            return _split_strings(chosen, rejected)
        chosen, rejected = turns
    if not isinstance(chosen, Sequence) or not isinstance(rejected, Sequence):
        return None, chosen, rejected  # the caller names the row
    end = 0
    while end < min(len(chosen), len(rejected)) - 1 and chosen[end] == rejected[end]:
        end += 1
    return list(chosen[:end]), list(chosen[end:]), list(rejected[end:])


def _split_strings(chosen: str, rejected: str) -> tuple[str, str, str]:
    shorter = min(len(chosen), len(rejected))
    end = next((i for i in range(shorter) if chosen[i] != rejected[i]), max(shorter - 1, 0))
    if end and end < shorter and chosen[end] != rejected[end] and chosen[end - 1] == " ":
        end -= 1  # the space belongs to the answer
    return chosen[:end], chosen[end:], rejected[end:]
