"""Public text for a projection: the base model's own completions of public prompts."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow
import pyarrow.parquet
import yaml

from fedpref.data.reading import read_dataset
from fedpref.data.spec import find_dataset
from fedpref.display import Display
from fedpref.errors import DatasetError
from fedpref.journal import write_durably
from policy.rollout import sample_completions
from reward.backbone import load_backbone


def complete_prompts(
    data: str,
    out: Path,
    *,
    reason: str,
    model: str,
    num_generations: int,
    max_completion_length: int,
    seed: int,
    dtype: str,
    display: Display,
) -> Path:
    """Sample completions of every distinct prompt of a data set; write Parquet and its YAML description.

    Only prompts and topics are read; they must be public, which ``reason`` says. Every second completion is cut at a
    random length, so that the projection sees lengths as varied as people's texts.

    Raises:
        DatasetError, ModelNotFoundError: nothing of that name, or ``out`` is there already.
        DiskError: the disk refused; every file is whole or not there.
    """
    described = out.with_suffix(".yaml")
    if taken := next((path for path in (out, described) if path.exists()), None):
        raise DatasetError(
            f"{taken} is there already.", "Nothing is written over it.", "Name another file, or remove it."
        )
    spec = find_dataset(data)
    prompts: dict[str, str] = {}
    for row in read_dataset(spec, need_user=False):
        prompts.setdefault(row["prompt"][-1]["content"], row["topic"])
    ordered = sorted(prompts, key=lambda prompt: (prompts[prompt], prompt))
    backbone = load_backbone(model, dtype=dtype, say=display.say)
    conversations = sample_completions(
        backbone,
        ordered,
        num_generations=num_generations,
        max_completion_length=max_completion_length,
        seed=seed,
        vary_length=True,
        progress=lambda done, total: display.progress("completions", done, total),
    )
    rows = [
        {
            "prompt": [{"role": "user", "content": c.prompt[-1][1]}],
            "completion": [{"role": "assistant", "content": c.completion}],
            "topic": prompts[c.prompt[-1][1]],
        }
        for c in conversations
    ]
    content = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), content, compression="zstd")
    write_durably(out, content.getvalue().to_pybytes())
    description = {
        "name": out.stem,
        "description": f"{len(rows)} completions of the prompts of {spec.name}, sampled from {model} at temperature 1.",
        "source": out.name,
        "format": "prompt_completion",
        "fields": {"prompt": "prompt", "completion": "completion", "topic": "topic"},
        "license": "that of the base model",
        "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
        "public": True,
        "reason": reason,
        "facts": {"texts": len(rows)},
    }
    write_durably(described, yaml.safe_dump(description, sort_keys=False, allow_unicode=True).encode())
    return described
