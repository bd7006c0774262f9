"""Are two answers the same? Asked of a process of its own, with a deadline: no text can hang or fill the program that asks."""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading

from reward.errors import RewardFunctionError

DEADLINE = 5.0  # seconds for one comparison, which takes milliseconds
START = 120.0  # seconds for the imports
LONGEST = 20_000  # characters that are looked at, from the end: there the answer is


class AnswerChecker:
    """One worker, started when first asked and again after one that had to be ended.

    | case | result |
    |---|---|
    | the gold answer cannot be parsed | None |
    | no end within ``DEADLINE`` seconds, out of memory, the worker dies | 0: no answer that can be checked |
    | a text of more than ``LONGEST`` characters | its end counts |
    | the worker does not start | RewardFunctionError |
    """

    def __init__(self, deadline: float = DEADLINE) -> None:
        self._deadline, self._lock = deadline, threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, text: str, gold: str) -> float | None:
        """1 where the final answer of ``text`` equals ``gold``, 0 where not, None where ``gold`` cannot be parsed."""
        question = json.dumps([text[-LONGEST:], gold[-LONGEST:]]).encode() + b"\n"
        with self._lock:
            process = self._started()
            answer = _ask(process, question, self._deadline)
            if answer is None:
                self.close()
                return 0.0
            value: float | None = json.loads(answer)
            return value

    def close(self) -> None:
        """End the worker, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "policy.answer_worker"],  # -P: no module of the working directory
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # parsers name what they cannot read
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
            if _ask(self._process, b"", START) != b"ready\n":
                self.close()
                raise RewardFunctionError(
                    "The program that compares answers does not start.",
                    "`python -m policy.answer_worker` ended, or was not ready within two minutes.",
                    "Run it by hand to see why; `fedpref doctor` checks the installation.",
                )
        return self._process


def _ask(process: subprocess.Popen[bytes], question: bytes, deadline: float) -> bytes | None:
    """The worker's next line; None if it does not come in time."""
    if process.stdin is None or process.stdout is None:
        return None
    try:
        process.stdin.write(question)
        process.stdin.flush()
    except BrokenPipeError:
        return None
    if not select.select([process.stdout], [], [], deadline)[0]:
        return None
    return process.stdout.readline() or None


same_answer = AnswerChecker()
atexit.register(same_answer.close)
