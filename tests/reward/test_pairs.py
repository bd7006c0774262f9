"""TRL's standard and conversational forms become one conversation."""

from __future__ import annotations

from typing import Any

import pytest

from reward.errors import ConversationError
from reward.pairs import Conversation, as_conversation, render

WHY = [{"role": "user", "content": "Why?"}]


def test_both_forms_give_the_same_conversation() -> None:
    answer = [{"role": "assistant", "content": "So."}]
    expected = Conversation((("user", "Why?"),), "So.")
    for prompt, completion in (("Why?", "So."), (WHY, answer), ("Why?", answer), (WHY, "So."), (tuple(WHY), answer)):
        assert as_conversation(prompt, completion) == expected


def test_every_message_of_a_prompt_is_kept_in_order() -> None:
    messages = [{"role": "system", "content": "s"}, *WHY, {"role": "assistant", "content": "a"}, *WHY]
    assert as_conversation(messages, "x").prompt == (
        ("system", "s"),
        ("user", "Why?"),
        ("assistant", "a"),
        ("user", "Why?"),
    )


@pytest.mark.parametrize("prompt", [None, 3, [], {}, ["Why?"], [{"role": "user"}], [{"role": "user", "content": None}]])
def test_another_prompt_is_coded(prompt: Any) -> None:
    with pytest.raises(ConversationError) as caught:
        as_conversation(prompt, "x")
    assert caught.value.code == "FP310"
    assert caught.value.to_json().keys() == {"code", "what", "why", "fix"}
    assert caught.value.diagnostics().startswith("error[FP310] ")


@pytest.mark.parametrize("completion", [None, 3, [], WHY * 2, [{"content": "x"}]])
def test_another_completion_is_coded(completion: Any) -> None:
    with pytest.raises(ConversationError):
        as_conversation("Why?", completion)


def test_an_error_never_quotes_the_text() -> None:
    with pytest.raises(ConversationError) as caught:
        as_conversation("Why?", [{"role": "assistant", "content": "Zebra"}] * 2)
    assert "Zebra" not in str(caught.value)


class Template:
    """A tokenizer, as far as rendering needs one."""

    def __init__(self, chat_template: str | None) -> None:
        self.chat_template = chat_template

    def apply_chat_template(self, messages: list[dict[str, str]], **options: bool) -> str:
        assert options == {"add_generation_prompt": True, "tokenize": False}
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"


def test_a_prompt_is_rendered_by_the_template_and_without_one_as_plain_lines() -> None:
    prompt = (("system", "Be brief."), ("user", "Why?"))
    assert render(Template("some"), prompt) == "<system>Be brief.<user>Why?<assistant>"
    assert render(Template(None), prompt) == "Be brief.\nWhy?\n"
    assert render(Template(None), (("user", ""),)) == "\n"
