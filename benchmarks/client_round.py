"""Pairs per second of a client's DPO epochs, against TRL's DPOTrainer on the same pairs, model, adapter and type.

    python -m benchmarks.client_round                        # 16 pairs, 3 epochs, bf16, one thread
    python -m benchmarks.client_round --pairs 64 --dtype float32 --only ours,trl

Every variant runs in a process of its own; seconds are CPU seconds of training alone (the reference pass included, loading
and tokenising not), memory is the process's peak. Variants:

| name | what |
|---|---|
| ours | unit `client`: local AdamW steps, references once per text, prompts shared, head on answer tokens |
| ours_private | unit `example`: exact per-pair gradients, clipped to the grid, one step an epoch |
| trl | DPOTrainer, `precompute_ref_log_probs`, no activation checkpointing |
| trl_defaults | DPOTrainer as it comes: activation checkpointing, the reference in every step |
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

VARIANTS = ("ours", "ours_private", "trl", "trl_defaults")
MODEL = "embedded/smollm2-135m-instruct"


def main() -> None:
    """Run the variants and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--only", default=",".join(VARIANTS))
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.variant:
        print(json.dumps(_measure(given)))
        return
    rows = {}
    for name in given.only.split(","):
        options = ["--pairs", str(given.pairs), "--epochs", str(given.epochs), "--batch", str(given.batch)]
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.client_round", "--variant", name, *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        done = subprocess.run(  # noqa: S603
            [*command, "--dtype", given.dtype], capture_output=True, text=True, check=False, env=environment
        )
        if done.returncode:
            print(f"{name}: failed\n{done.stderr[-2000:]}")
            continue
        rows[name] = json.loads(done.stdout.splitlines()[-1])
    base = rows.get("trl", {}).get("pairs_per_second")
    print(f"{given.pairs} pairs, {given.epochs} epochs, batch {given.batch}, {given.dtype}, 1 thread")
    for name, row in rows.items():
        ratio = f"{row['pairs_per_second'] / base:6.2f}x" if base else ""
        print(
            f"{name:<14} {row['pairs_per_second']:8.3f} pairs/s {row['seconds']:8.1f} s {row['peak_gb']:6.2f} GB {ratio}"
        )


def _measure(given: Any) -> dict[str, float]:
    run: dict[str, Callable[[Any], float]] = {
        "ours": _ours,
        "ours_private": _private,
        "trl": lambda g: _trl(g, best=True),
        "trl_defaults": lambda g: _trl(g, best=False),
    }
    seconds = run[given.variant](given)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"pairs_per_second": given.pairs * given.epochs / seconds, "seconds": seconds, "peak_gb": peak}


def _recipe(given: Any, **training: Any) -> Any:
    from fedpref.recipes import find_recipe, read_recipe

    local = {} if given.variant == "ours_private" else {"training.local.per_device_train_batch_size": given.batch}
    unit = "example" if given.variant == "ours_private" else "client"
    adapter = {"training.adapter": "lora", "privacy.noise_multiplier": 1.0, "privacy.target_epsilon": None}
    epochs = {} if given.variant == "ours_private" else {"training.local.num_train_epochs": given.epochs}
    changes = {"privacy.unit": unit, "dtype": given.dtype, "max_length": 384, **adapter, **local, **epochs, **training}
    return read_recipe(find_recipe("fed-dpo"), changes)


def _pairs(given: Any) -> Any:
    """The first pairs of the embedded votes, in the file's order."""
    import numpy as np

    from fedpref.data.preferences import check_records
    from fedpref.data.reading import read_dataset
    from fedpref.data.spec import find_dataset

    data, _ = check_records(read_dataset(find_dataset("ukpconvarg1"), need_user=True))
    return data.select(np.arange(0, len(data), len(data) // given.pairs)[: given.pairs])


def _work(given: Any) -> tuple[Any, Any]:
    from dataclasses import replace

    import numpy as np
    import torch

    from fedpref.adapter_stage import make_runtime, make_trainee

    torch.set_num_threads(1)
    recipe, data = _recipe(given), _pairs(given)
    one = replace(data, user=np.full(len(data), "one"))
    runtime = make_runtime(recipe)
    return runtime, make_trainee(recipe, runtime, 1).work({"one": one})


def _ours(given: Any) -> float:
    import numpy as np

    from fedpref.client.contribution import RoundClipping

    runtime, work = _work(given)
    parameters = runtime.part.start.double().numpy()
    start = time.process_time()
    list(work.clipped_sums(parameters, np.ones(1, dtype=np.bool_), RoundClipping(1.0)))
    return time.process_time() - start


def _private(given: Any) -> float:
    import numpy as np

    from fedpref.client.contribution import RoundClipping

    runtime, work = _work(given)
    parameters = runtime.part.start.double().numpy()
    everybody = np.ones(len(work.units), dtype=np.bool_)
    start = time.process_time()
    for _ in range(given.epochs):
        (total,) = work.clipped_sums(parameters, everybody, RoundClipping(0.5))
        parameters = parameters - 0.01 * total.value
    return time.process_time() - start


def _trl(given: Any, *, best: bool) -> float:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    from reward.backbone import load_backbone

    torch.set_num_threads(1)
    data = _pairs(given)
    rows = []
    for chosen, rejected in zip(data.chosen, data.rejected, strict=True):
        prompt = [{"role": role, "content": content} for role, content in data.texts[chosen].prompt]
        answers = {"chosen": data.texts[chosen].completion, "rejected": data.texts[rejected].completion}
        said = {key: [{"role": "assistant", "content": text}] for key, text in answers.items()}
        rows.append({"prompt": prompt, **said})
    backbone = load_backbone(MODEL, dtype=given.dtype)
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=str(Path(folder)),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=not best,
            precompute_ref_log_probs=best,
            per_device_train_batch_size=given.batch,
            num_train_epochs=given.epochs,
            learning_rate=1e-4,
            max_length=384,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        start = time.process_time()  # the reference pass is in the constructor
        trainer = DPOTrainer(
            model=backbone.model,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=backbone.tokenizer,
            peft_config=lora,
        )
        trainer.train()
        return time.process_time() - start


if __name__ == "__main__":
    main()
