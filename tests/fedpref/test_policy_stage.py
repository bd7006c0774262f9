"""The second half of a run, through the command line and the API, on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import fedpref
from fedpref.errors import DatasetError, TrackerError
from fedpref.folder import RunFolder
from fedpref.tracking import Trackers, is_policy_figure
from reward.errors import RewardFunctionError
from tests.fedpref.conftest import speak
from tests.tiny import write_prompts, write_recipe

POLICY: dict[str, Any] = {
    "max_steps": 3,
    "prompts_per_step": 2,
    "num_generations": 3,
    "max_completion_length": 6,
    "lora_r": 2,
    "learning_rate": 0.01,
}


def recipe(folder: Path, model: Path, **policy: Any) -> Path:
    prompts = str(write_prompts(folder))
    return write_recipe(
        folder,
        model,
        privacy__rng="seeded",
        policy={**POLICY, "prompts": prompts, **policy},
        evaluation__policy_samples=2,
        evaluation__judge_layer=2,
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("policy-run")
    spoken = speak("run", str(recipe(folder, tiny_model)))
    assert spoken.code == 0, spoken.err
    return folder / "run", spoken.out


def test_a_run_prints_both_halves(done: tuple[Path, str]) -> None:
    _, out = done
    assert "win rate over the base model, by the held-out judge (layer 2, evaluation users)" in out
    assert "before: " in out
    assert "after:  " in out
    assert "release/policy" in out


def test_evaluation_tells_seen_from_unseen_topics(done: tuple[Path, str]) -> None:
    run = fedpref.Run(done[0])
    assert {name: block["prompts"] for name, block in run.policy_evaluation.items()} == {
        "seen topics": 6,
        "unseen topics": 3,
    }
    block = run.policy_evaluation["seen topics"]
    (judge,) = block["judges"].values()
    assert 0 <= judge["win_rate"] <= 1
    assert set(judge["topics"]) == {"cats", "dogs"}
    assert block["rewards"].keys() == {"total", "reward_model"}
    assert len(run.samples) == 9


def test_the_release_loads_by_peft_and_after_a_merge_by_transformers(
    done: tuple[Path, str], tiny_model: Path, tmp_path: Path
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), str(done[0] / "release" / "policy")
    ).eval()
    ids = torch.tensor([[4, 5, 6]])
    expected = model(input_ids=ids).logits
    model.merge_and_unload().save_pretrained(tmp_path)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_inputs_are_recorded_and_everything_released_is_in_the_manifest(done: tuple[Path, str]) -> None:
    record = json.loads((done[0] / "release/policy/fedpref_policy.json").read_text())
    assert record["epsilon"].startswith("none spent")
    assert set(record["reward_model"]) == {"reward_head.safetensors", "reward_config.json"}
    manifest = json.loads((done[0] / "release/manifest.json").read_text())
    assert {"policy/adapter_model.safetensors", "policy/README.md", "policy/fedpref_policy.json"} <= set(
        manifest["files"]
    )
    assert speak("verify", str(done[0])).code == 0
    assert "post-processing" in (done[0] / "release/policy/README.md").read_text()


def test_the_policy_stage_books_nothing(done: tuple[Path, str], tmp_path: Path, tiny_model: Path) -> None:
    alone = write_recipe(tmp_path, tiny_model, privacy__rng="seeded")
    assert speak("run", str(alone)).code == 0
    events = [
        [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
        for run in (done[0], tmp_path / "run")
    ]
    assert [e["kind"] for e in events[0]] == [e["kind"] for e in events[1]]


def test_only_policy_figures_are_tracked(done: tuple[Path, str]) -> None:
    lines = [json.loads(line) for line in (done[0] / "policy_metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(is_policy_figure(name) for line in lines for name in line)
    with pytest.raises(TrackerError, match="may not be tracked"):
        Trackers([], is_policy_figure).log({"step": 1, "private_votes": 3})


def test_a_killed_policy_loop_goes_on(tmp_path: Path, tiny_model: Path, done: tuple[Path, str]) -> None:
    path = recipe(tmp_path, tiny_model)
    calls = 0

    def failing(completions: Sequence[Any], **_: Any) -> list[float | None]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return [float(len(c[0]["content"])) for c in completions]

    def steady(completions: Sequence[Any], **_: Any) -> list[float | None]:
        return [float(len(c[0]["content"])) for c in completions]

    loaded = fedpref.load_recipe(path, policy__reward_funcs=["mine"])
    with pytest.raises(KeyboardInterrupt):
        loaded.run(reward_funcs={"mine": failing})
    assert RunFolder(tmp_path / "run").status()["status"] == "started"
    resumed = loaded.run(resume=True, reward_funcs={"mine": steady})
    whole = fedpref.load_recipe(path, policy__reward_funcs=["mine"], output_dir=str(tmp_path / "whole"))
    unbroken = whole.run(reward_funcs={"mine": steady})
    names = [run.path / "release/policy/adapter_model.safetensors" for run in (resumed, unbroken)]
    assert names[0].read_bytes() == names[1].read_bytes()


def test_what_is_missing_is_said_before_anything_is_trained(tmp_path: Path, tiny_model: Path) -> None:
    loaded = fedpref.load_recipe(recipe(tmp_path, tiny_model), policy__reward_funcs=["no_such"])
    with pytest.raises(RewardFunctionError, match="No reward function 'no_such'"):
        loaded.run()
    assert not (tmp_path / "run").exists()
    private = Path(write_prompts(tmp_path, name="mine"))
    private.write_text(private.read_text().replace("public: true", "public: false"))
    with pytest.raises(DatasetError, match="not declared as public"):
        fedpref.load_recipe(recipe(tmp_path, tiny_model), policy__prompts=str(private)).run()
    assert not (tmp_path / "run").exists()


def test_verifiable_rewards_on_test_prompts(tmp_path: Path, tiny_model: Path) -> None:
    problems = [{"prompt": f"What is {a} + 1?", "answer": str(a + 1), "topic": "sums"} for a in range(4)]
    test = write_prompts(tmp_path, problems, "sums")
    path = recipe(
        tmp_path,
        tiny_model,
        prompts=str(test),
        test_prompts=str(test),
        prompt_suffix="\nBox it.",
        reward_funcs=["accuracy", "format", "length", "repetition"],
        reward_weights=[1.0, 0.5, 0.1, 0.1],
    )
    run = fedpref.load_recipe(path).run()
    block = run.policy_evaluation["sums"]
    assert block["rewards"].keys() == {"total", "accuracy", "format", "length", "repetition"}
    assert block["judges"] == {}
    assert all(s["prompt"].endswith("\nBox it.") for s in run.samples)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("policy", [{"method": "dpo", "beta": 0.1}, {"backend": "trl"}])
def test_trl_does_the_same_stage_and_leaves_no_text_behind(
    tmp_path: Path, tiny_model: Path, policy: dict[str, Any]
) -> None:
    run = fedpref.load_recipe(recipe(tmp_path, tiny_model, **policy)).run()
    assert run.policy_evaluation["seen topics"]["prompts"] == 6
    assert not [
        p for p in run.path.rglob("*") if p.suffix in {".arrow", ".parquet", ".pt", ".bin"} and p.name != "sealed.bin"
    ]
