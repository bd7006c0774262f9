"""What a private training step costs: CPU time and memory against the non-private step, and against peers.

Fixed here, before any run: SmolLM2-135M, LoRA of rank 8 on queries and values, and on all linear layers; 4 pairs of 2 x 128
tokens, DPO loss, the privacy unit is the pair; one thread, the dtype that the probe of ``reward.backbone`` chooses. A
private step is one engine pass, clipping, summing, Gaussian noise from the operating system's CSPRNG, AdamW; the
non-private one is the mean loss, norm clipping, AdamW. In each of 15 rounds the steps run as plain, own, plain, Opacus,
ghost; a method's ratio is its CPU time over the mean of the plain steps before and after it. Figures are medians over
rounds with 95 % bootstrap intervals; the limit holds for the interval's upper end. Memory is the growth of the resident
peak during a step over what was resident before it, median of 3.

    python -m benchmarks.dp_step            table, then one JSON object (about 22 minutes of CPU)
    python -m benchmarks.dp_step --json     only the JSON object
    python -m benchmarks.dp_step --own      without the peers (about 10 minutes)
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.steps import ADAPTERS, Steps
from reward.backbone import load_backbone, quiet_transformers

MODEL = "embedded/smollm2-135m-instruct"
ROUNDS, BOOTSTRAP = 15, 10_000
LIMIT = {"q,v": 1.08, "all linears": 1.12}
MEMORY_LIMIT = 1.1
OWN, PEERS = "book_keeping", ("opacus", "ghost")


def say(text: str) -> None:
    """Progress, apart from results."""
    sys.stderr.write(text + "\n")


class Timed:
    """Runs one step of a method, with Opacus' hooks only while its own step runs."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def run(self, method: str, around: Callable[[Callable[[], None]], float]) -> float:
        """``around`` measures the step and returns a number."""
        steps = self.steps
        with steps.opacus_hooks() if method == "opacus" else nullcontext():
            if method == "plain":
                return around(steps.plain)
            return around(lambda: steps.private(getattr(steps, method)))


def cpu_seconds(step: Callable[[], None]) -> float:
    """CPU seconds of this process."""
    gc.collect()
    start = time.process_time()
    step()
    return time.process_time() - start


def peak_memory(step: Callable[[], None]) -> float:
    """Growth of the resident peak, MB (Linux)."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    before = _status("VmRSS")
    step()
    return (_status("VmHWM") - before) / 1e3


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(key)))


def exactness(steps: Steps, methods: list[str]) -> dict[str, float]:
    """Largest difference of each method's clipped sum from the loop's, relative to its largest entry."""
    expected, found = steps.loop(), {}
    for method in methods:
        with steps.opacus_hooks() if method == "opacus" else nullcontext():
            found[method] = float((getattr(steps, method)() - expected).abs().max() / expected.abs().max())
    return found


def measure(base: Any, adapter: str, peers: bool, rounds: int) -> dict[str, Any]:
    """One table: an adapter's steps by every method."""
    with quiet_transformers():
        steps = Steps(base, adapter)
    timed, methods = Timed(steps), [OWN, *PEERS] if peers else [OWN]
    errors = exactness(steps, methods)
    say(f"{adapter}: exactness {errors}")
    memory = {m: float(np.median([timed.run(m, peak_memory) for _ in range(3)])) for m in ("plain", *methods)}
    say(f"{adapter}: memory {memory}")
    order = ["plain", OWN, "plain", *PEERS] if peers else ["plain", OWN]
    sequence = order * rounds + ["plain"]
    times = []
    for i, method in enumerate(sequence):
        times.append(timed.run(method, cpu_seconds))
        say(f"{adapter} {i + 1}/{len(sequence)} {method}: {times[-1]:.3f} CPU s")
    steps.model.unload()
    plain = [t for t, m in zip(times, sequence, strict=True) if m == "plain"]
    result: dict[str, Any] = {
        "dimension": steps.dimension,
        "plain": {"cpu_seconds": float(np.median(plain)), "memory_mb": memory["plain"]},
    }
    for method in methods:
        result[method] = {
            "ratio": summary(ratios(times, sequence, method)),
            "memory_mb": memory[method],
            "memory_ratio": memory[method] / memory["plain"],
            "error": errors[method],
        }
    own = result[OWN]
    result["holds"] = bool(own["ratio"]["interval"][1] <= LIMIT[adapter] and own["memory_ratio"] <= MEMORY_LIMIT)
    return result


def ratios(times: list[float], sequence: list[str], method: str) -> list[float]:
    """A method's steps over the mean of the plain steps next before and next after each."""
    plain = [i for i, m in enumerate(sequence) if m == "plain"]
    found = []
    for i, name in enumerate(sequence):
        if name == method:
            before, after = max(j for j in plain if j < i), min(j for j in plain if j > i)
            found.append(2 * times[i] / (times[before] + times[after]))
    return found


def summary(values: list[float]) -> dict[str, Any]:
    """Median with a 95 % bootstrap interval, and all values."""
    draws = np.random.default_rng(0).choice(values, size=(BOOTSTRAP, len(values)))
    interval = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return {"median": float(np.median(values)), "interval": [float(x) for x in interval], "all": values}


def table(result: dict[str, Any]) -> None:
    """For people."""
    print(f"{MODEL}, {result['dtype']}, one thread; CPU time and memory of a step over the non-private step")
    for adapter in ADAPTERS:
        rows = result["adapters"][adapter]
        plain = rows["plain"]
        print(
            f"LoRA r=8, {adapter}: {rows['dimension']:,} parameters; non-private {plain['cpu_seconds']:.2f} CPU s, ",
            end="",
        )
        print(f"{plain['memory_mb']:.0f} MB")
        for method in (m for m in (OWN, *PEERS) if m in rows):
            r = rows[method]
            low, high = r["ratio"]["interval"]
            time_cell = f"{r['ratio']['median']:.3f} [{low:.3f}, {high:.3f}]"
            print(f"  {method:<13} time {time_cell}   memory {r['memory_ratio']:.3f}   error {r['error']:.1e}")
        print(f"  limits {LIMIT[adapter]} and {MEMORY_LIMIT}: {'hold' if rows['holds'] else 'DO NOT HOLD'}")


def main() -> None:
    """Progress to stderr, figures to stdout, one JSON object last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    parser.add_argument("--own", action="store_true", help="without the peers")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = load_backbone(MODEL, say=say).model
    result: dict[str, Any] = {
        "benchmark": "dp_step",
        "dtype": str(base.dtype).removeprefix("torch."),
        "rounds": options.rounds,
        "adapters": {a: measure(base, a, not options.own, options.rounds) for a in ADAPTERS},
    }
    if not options.json:
        table(result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
