"""Compares answers with math-verify, line by line: a program of its own, since a text can ask for a number that never ends.

Reads JSON ``[text, gold]``, writes ``1.0``, ``0.0`` or ``null`` (the gold answer cannot be parsed), a line each.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys

MEMORY = 2 * 2**30


def same_answer(text: str, gold: str) -> float | None:
    """1 where the final answer of ``text`` equals ``gold``, 0 where not, None where ``gold`` cannot be parsed."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    configs = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    # No timeouts here: theirs are signals, which a running multiplication of Python's integers does not hear.
    expected = parse(gold, extraction_config=configs, parsing_timeout=None)
    if not expected:
        return None
    return float(verify(expected, parse(text, extraction_config=configs, parsing_timeout=None), timeout_seconds=None))


def main() -> None:
    """Until the pipe ends. Says ``ready`` once everything is imported: the asker's clock starts there."""
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it prints what it cannot parse, and that is private
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    answers, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
    same_answer("1", "1")
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        text, gold = json.loads(line)
        try:
            value = same_answer(text, gold)
        except Exception:  # parsers of strangers' LaTeX may raise anything, MemoryError included
            value = 0.0
        print(json.dumps(value), file=answers, flush=True)


if __name__ == "__main__":
    main()
