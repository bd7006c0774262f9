"""Flower's SecAgg+ on the task of ``benchmarks.secagg``: its client's own stage functions, in one process, no transport.

Needs ``flwr`` (1.41 was used), which is no dependency; ``benchmarks.secagg`` leaves it out where it cannot be imported.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from flwr.client.mod.secure_aggregation.secaggplus_mod import (
    SecAggPlusState,
    _collect_masked_vectors,
    _setup,
    _share_keys,
)
from flwr.common import ndarrays_to_parameters

_SETUP: dict[str, Any] = {
    "clipping_range": 8.0,
    "target_range": 1 << 22,
    "mod_range": 1 << 32,
    "max_weight": 1000.0,
}


def _ready(members: int) -> tuple[list[Any], dict[str, float], dict[str, Any]]:
    """Everybody's state after the shares; CPU seconds of client 0; what it is sent next."""
    states, spent = [], dict[str, float]()
    configs = {**_SETUP, "sample_num": members, "share_num": members, "threshold": -(-9 * members // 10)}
    keys = {}
    for i in range(members):
        state = SecAggPlusState()
        state.nid = i + 1
        start = time.process_time()
        answer = _setup(state, configs)
        spent.setdefault("keys", time.process_time() - start)
        keys[str(i + 1)] = (answer["pk1"], answer["pk2"])
        states.append(state)
    sources, ciphertexts = [], []
    for i, state in enumerate(states):
        start = time.process_time()
        answer = _share_keys(state, keys)
        spent.setdefault("shares", time.process_time() - start)
        for to, text in zip(answer["dsts"], answer["ctxts"], strict=True):
            if to == 1:
                sources.append(i + 1)
                ciphertexts.append(text)
    return states, spent, {"srcs": sources, "ctxts": ciphertexts}


def client_cost(dimension: int, members: int) -> dict[str, Any]:
    """Best CPU seconds of three, and bytes of one upload."""
    delta = np.random.default_rng(0).standard_normal(dimension, dtype=np.float32)
    best: dict[str, float] = {}
    for _ in range(3):
        states, spent, configs = _ready(members)
        parameters = ndarrays_to_parameters([delta])
        start = time.process_time()
        answer = _collect_masked_vectors(states[0], configs, 1000, parameters)
        spent["masks"] = time.process_time() - start
        for name, seconds in spent.items():
            best[name] = min(best.get(name, seconds), seconds)
    upload = sum(len(part) for part in next(iter(answer.values())))
    return {
        "dimension": dimension,
        "members": members,
        "cpu_seconds": sum(best.values()),
        **{f"cpu_{k}": v for k, v in best.items()},
        "upload_bytes": upload,
        "upload_vs_float32": upload / (4 * dimension),
    }
