"""Arbitrary bytes: a chain, or a coded refusal."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.chain import GENESIS, Chain, ChainWriter, parse_chain, read_chain
from privacy.errors import LedgerError
from privacy.events import canonical
from tests.privacy.books import REPEATABLE


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999", "-Infinity", "9" * 5000, "[" * 60000, '"\\ud800"'])
def test_hostile_json_is_refused_with_a_code(text: str) -> None:
    line = f'{{"body":{{"a":{text}}},"hash":"{GENESIS}","kind":"open","prev":"{GENESIS}","seq":0}}\n'
    with pytest.raises(LedgerError):
        parse_chain(line.encode(), "x")


def test_nesting_near_the_recursion_limit_is_refused_with_a_code() -> None:
    for depth in range(800, 1010):
        nested = '{"a":' * depth + "1" + "}" * depth
        line = f'{{"body":{nested},"hash":"{GENESIS}","kind":"open","prev":"{GENESIS}","seq":0}}\n'
        with pytest.raises(LedgerError):
            parse_chain(line.encode(), "x")


@given(st.binary(max_size=200))
@REPEATABLE
def test_any_bytes_are_a_chain_or_a_coded_refusal(noise: bytes) -> None:
    try:
        result = parse_chain(noise, "x")
    except LedgerError:
        return
    assert result == Chain((), noise)


@given(st.lists(st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=4) | st.none()), max_size=4))
@REPEATABLE
def test_what_was_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, bodies: list[dict[str, Any]]) -> None:
    path = tmp_path_factory.mktemp("chain") / "c.jsonl"
    writer = ChainWriter(path)
    written = [writer.append(f"kind {i}", body, durable=False) for i, body in enumerate(bodies)]
    writer.close()
    assert list(read_chain(path).entries) == written
    assert [canonical(entry.body) for entry in written] == [canonical(body) for body in bodies]
