"""One model for any number of clients: peak memory with 1,000 clients is within 10 % of that with 10."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

CHILD = """
import resource, sys, tempfile
from pathlib import Path
from fedpref.api import run
from tests.fedpref.adapters import adapter_recipe
clients, model = int(sys.argv[1]), Path(sys.argv[2])
from tests.tiny import votes, write_dataset
folder = Path(tempfile.mkdtemp())
data = write_dataset(folder, votes(300, 4))
partition = {"by": "hash", "num_clients": clients}
run(adapter_recipe(folder, model, datasets=[str(data)], federation__partition=partition, federation__num_rounds=2,
                   federation__num_units=250, privacy__sample_rate=0.2, training__adapter="lora_core"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_clients(tmp_path: Path, tiny_model: Path) -> None:
    peaks = []
    for clients in (10, 1000):
        command = [sys.executable, "-W", "ignore", "-c", CHILD, str(clients), str(tiny_model)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] < 1.1 * peaks[0]
