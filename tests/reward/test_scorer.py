"""A released reward model: the same scores after loading, coded refusal of anything else, a reward function for TRL."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy

import reward
from reward.errors import ConversationError, ModelNotFoundError, RewardModelError
from reward.features import FeatureConfig, FeatureExtractor
from reward.head import PublicProjection
from reward.pairs import Conversation
from reward.scorer import CONFIG, WEIGHTS, RewardModel, head_scores, reward_model_files

D = 6
PROMPTS = ["Why?", "Why?", "Say something."]
COMPLETIONS = ["Because.", "", "a longer text, with !!!"]


@pytest.fixture(scope="module")
def fitted(tiny_model: Path) -> tuple[FeatureConfig, PublicProjection, npt.NDArray[np.float64]]:
    config = FeatureConfig(str(tiny_model), 1, 64, dtype="float32")
    public = [Conversation((("user", f"q{i % 3}"),), f"answer {i} {'!' * (i % 5)}") for i in range(20)]
    projection = PublicProjection.fit(FeatureExtractor(config)(public), D)
    return config, projection, np.random.default_rng(0).normal(size=D)


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, fitted: tuple[FeatureConfig, PublicProjection, npt.NDArray[np.float64]]
) -> Path:
    path = tmp_path_factory.mktemp("reward")
    for name, content in reward_model_files(*fitted).items():
        (path / name).write_bytes(content)
    return path


def test_a_loaded_model_scores_as_the_parts_that_were_saved(
    folder: Path, fitted: tuple[FeatureConfig, PublicProjection, npt.NDArray[np.float64]]
) -> None:
    config, projection, weight = fitted
    conversations = [Conversation((("user", p),), c) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    expected = head_scores(projection(FeatureExtractor(config)(conversations)), weight.astype(np.float32))
    scores = reward.load(folder).score(PROMPTS, COMPLETIONS)
    assert scores == expected.tolist()
    assert len(set(scores)) == 3
    assert all(type(score) is float for score in scores)


def test_strings_and_messages_are_the_same_conversation(folder: Path) -> None:
    model = reward.load(str(folder))
    prompts = [[{"role": "user", "content": p}] for p in PROMPTS]
    completions = [[{"role": "assistant", "content": c}] for c in COMPLETIONS]
    assert model.score(prompts, completions) == model.score(PROMPTS, COMPLETIONS)


def test_trl_calls_it_with_columns_that_it_ignores(folder: Path) -> None:
    model = reward.load(folder)
    scores = model(prompts=PROMPTS, completions=COMPLETIONS, completion_ids=[[1]] * 3, answer=["x"] * 3)
    assert scores == model.score(PROMPTS, COMPLETIONS)
    assert model.__name__ == "fedpref_reward"


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        (3, "a"),
        ("a", None),
        ([], "a"),
        ([{"role": "user"}], "a"),
        ("a", [{"role": "x", "content": "1"}] * 2),
        ("a", {}),
    ],
)
def test_what_is_no_conversation_is_coded(folder: Path, prompt: Any, completion: Any) -> None:
    with pytest.raises(ConversationError) as caught:
        reward.load(folder).score([prompt], [completion])
    assert caught.value.code == "FP310"


def test_prompts_and_completions_of_different_number_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="shorter"):
        reward.load(folder).score(PROMPTS, COMPLETIONS[:2])


def broken_copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def refused(path: Path) -> RewardModelError:
    with pytest.raises(RewardModelError) as caught:
        RewardModel.load(path)
    assert caught.value.code == "FP303"
    assert "release/reward" in caught.value.fix
    return caught.value


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    refused(tmp_path)
    refused(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file")


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated_weights_are_refused(folder: Path, tmp_path: Path, keep: float) -> None:
    path = broken_copy(folder, tmp_path / "m") / WEIGHTS
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else int(keep)])
    refused(path.parent)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "{}", '{"format": "fedpref-reward-1"}'])
def test_a_broken_configuration_is_refused(folder: Path, tmp_path: Path, content: str) -> None:
    path = broken_copy(folder, tmp_path / "m") / CONFIG
    path.write_text(content)
    refused(path.parent)


@pytest.mark.parametrize("change", [{"format": "fedpref-reward-2"}, {"features": {"layer": 1}}, {"features": None}])
def test_another_format_is_refused(folder: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    path = broken_copy(folder, tmp_path / "m") / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    refused(path.parent)


@pytest.mark.parametrize("name", ["mean", "std", "components", "score.weight"])
def test_a_missing_tensor_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    path = broken_copy(folder, tmp_path / "m") / WEIGHTS
    tensors = safetensors.numpy.load_file(path)
    del tensors[name]
    safetensors.numpy.save_file(tensors, path)
    refused(path.parent)


def test_tensors_that_do_not_fit_each_other_are_refused(folder: Path, tmp_path: Path) -> None:
    path = broken_copy(folder, tmp_path / "m") / WEIGHTS
    tensors = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file({**tensors, "score.weight": np.zeros((1, D + 1), np.float32)}, path)
    refused(path.parent)


def test_a_base_model_that_is_gone_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = broken_copy(folder, tmp_path / "m") / CONFIG
    config = json.loads(path.read_text())
    config["features"]["model_name_or_path"] = str(tmp_path / "gone")
    path.write_text(json.dumps(config))
    with pytest.raises(ModelNotFoundError, match="gone"):
        RewardModel.load(path.parent)


def test_the_saved_files_are_plain_tensors_and_json(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG, WEIGHTS]
    tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    assert {name: value.shape for name, value in tensors.items()} == {
        "mean": (32,),
        "std": (32,),
        "components": (32, D),
        "score.weight": (1, D),
    }
    assert {value.dtype for value in tensors.values()} == {np.dtype(np.float32)}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")  # trl 1.16 itself
def test_it_drives_trls_grpo_trainer_for_a_step(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    """``GRPOTrainer(reward_funcs=[reward.load(path)])`` runs, asks for every completion, and logs our reward."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    model, asked = reward.load(folder), list[str]()
    score = model.score

    def spy(prompts: Any, completions: Any) -> list[float]:
        asked.extend(str(c) for c in completions)
        return score(prompts, completions)

    model.score = spy  # type: ignore[method-assign]
    settings = GRPOConfig(
        output_dir=str(tmp_path / "grpo"),
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=8,
        max_steps=1,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        seed=0,
    )
    trainer = GRPOTrainer(
        model=str(tiny_model),
        reward_funcs=[model],
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": ["Why?", "Say something."]}),
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
    )
    trainer.train()
    assert len(asked) == 4
    logged = [entry for entry in trainer.state.log_history if "rewards/fedpref_reward/mean" in entry]
    assert len(logged) == 1
    assert np.isfinite(logged[0]["rewards/fedpref_reward/mean"])
