"""Conversations and batches of preference pairs, in TRL's formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from reward.errors import ConversationError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Conversation", "ConversationError", "FeaturePairs", "as_conversation", "render"]


class Conversation(NamedTuple):
    """A prompt (role and content of every message, ending with the user's) and one completion."""

    prompt: tuple[tuple[str, str], ...]
    completion: str


def as_conversation(prompt: Any, completion: Any) -> Conversation:
    """TRL's standard (strings) or conversational (lists of messages) form -> a conversation.

    Raises:
        ConversationError: another type, a message without role or content, or a completion of several messages.
    """
    if isinstance(prompt, str):
        messages: tuple[tuple[str, str], ...] = (("user", prompt),)
    else:
        messages = tuple(_message(m) for m in _list(prompt))
    if isinstance(completion, str):
        return Conversation(messages, completion)
    answers = [_message(m) for m in _list(completion)]
    if len(answers) != 1:
        raise _wrong(f"a completion of {len(answers)} messages; one is expected")
    return Conversation(messages, answers[0][1])


def render(tokenizer: Any, prompt: tuple[tuple[str, str], ...]) -> str:
    """A prompt as the text that a completion follows: by the tokenizer's chat template, with the assistant's turn opened.

    | case | result |
    |---|---|
    | no chat template (a base model) | the messages, each with a newline behind it |
    | empty message | what the template makes of it; without one, a newline |

    Raises:
        ConversationError: the template refuses it, as some do for a system message or two turns of one role. The message
            says nothing of the text.
    """
    if not tokenizer.chat_template:
        return "".join(f"{content}\n" for _, content in prompt)
    messages = [{"role": role, "content": content} for role, content in prompt]
    try:
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    except Exception as error:  # a model's template is a program of its own and may raise anything
        raise ConversationError(
            "The model's chat template refuses a prompt.",
            f"It raised {type(error).__name__}: some take no system message, or no two turns of one role.",
            "Leave the prompt out, or write it as one message of the user.",
        ) from None


def _list(value: Any) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)) or not value:
        raise _wrong(f"a {type(value).__name__} where a string or a non-empty list of messages is expected")
    return value


def _message(value: Any) -> tuple[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(value.get(k), str) for k in ("role", "content")):
        raise _wrong("a message without `role` and `content`")
    return value["role"], value["content"]


def _wrong(why: str) -> ConversationError:
    return ConversationError(
        "Not a conversation.", f"It has {why}.", "Use TRL's formats: strings, or lists of {role, content}."
    )


@dataclass(frozen=True)
class FeaturePairs:
    """A batch of preference pairs as features.

    Shapes: ``chosen`` and ``rejected`` [n, d] (mixed layers: [n, layers, d]) fp32;
    ``weight`` [n] (a record's weight within its unit); ``row_unit`` [n]
    int64, the privacy unit of every record, added by the collator and never seen by an objective.
    """

    chosen: Tensor
    rejected: Tensor
    weight: Tensor
    row_unit: Tensor
