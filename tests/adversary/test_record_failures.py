"""One person's record that something chokes on stops nobody: an error would come exactly when that person's coin fell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

import fedpref
from fedpref.api import run
from fedpref.channel.base import RoundRequest
from fedpref.data.loading import load_federated
from fedpref.data.renderable import only_renderable
from fedpref.errors import RunFolderError
from policy.answers import AnswerChecker
from privacy.report import verify
from reward.errors import ConversationError
from reward.pairs import render
from tests.fedpref.adapters import adapter_recipe, sums, work_of
from tests.fedpref.test_adapter_objectives import GRPO, prompts
from tests.fedpref.test_node import DIMENSION, MANIFEST, Bench
from tests.tiny import make_model, make_recipe, votes, write_dataset, write_recipe

REFUSED = [{"role": "system", "content": "a person's words"}, {"role": "user", "content": "q"}]


@pytest.fixture(scope="module")
def strict_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a chat template that takes no system message, as several well-known models' do."""
    folder = make_model(tmp_path_factory.mktemp("strict"))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception(messages[0]['content']) }}{% endif %}"
    tokenizer.chat_template = refuses + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    return folder


def one_refused(folder: Path) -> str:
    """Everybody's votes, one training person's with a prompt that the template refuses."""
    rows = votes()
    mine = {"user_id": "the-one", "topic": "cats", "chosen": "a", "rejected": "b", "prompt": REFUSED}
    said = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
    answers = [
        {**row, **{side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}}
        for row in [*said, mine]
    ]
    return str(write_dataset(folder, answers))


def test_a_template_that_refuses_says_nothing_of_the_text(strict_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(strict_model)
    with pytest.raises(ConversationError) as refused:
        render(tokenizer, tuple((m["role"], m["content"]) for m in REFUSED))
    assert "a person's words" not in refused.value.diagnostics()


def test_records_that_cannot_be_rendered_are_left_out_before_any_round(tmp_path: Path, strict_model: Path) -> None:
    recipe, said = make_recipe(tmp_path, strict_model, datasets=[one_refused(tmp_path)]), list[str]()
    data = load_federated(recipe, said.append)
    kept = only_renderable(data, AutoTokenizer.from_pretrained(strict_model), said.append)
    before, after = ({u for part in d.clients.values() for u in part.user} for d in (data, kept))
    assert before - after == {"the-one"}
    assert kept.roster == data.roster  # a member who contributes zero
    assert sum(map(len, kept.clients.values())) == sum(map(len, data.clients.values())) - 1
    assert [line for line in said if "FP220" in line and "person's words" not in line]


def test_a_head_is_trained_beside_a_record_that_cannot_be_rendered(tmp_path: Path, strict_model: Path) -> None:
    path = write_recipe(tmp_path, strict_model, datasets=[one_refused(tmp_path)], federation__num_rounds=2)
    assert verify(fedpref.load_recipe(path).run().path).ok


def test_an_adapter_is_trained_beside_a_record_that_cannot_be_rendered(tmp_path: Path, strict_model: Path) -> None:
    changes = {"datasets": [one_refused(tmp_path)], "federation__num_rounds": 1, "privacy__sample_rate": 0.9}
    assert verify(run(adapter_recipe(tmp_path, strict_model, **changes)).path).ok


def test_parameters_that_overflow_do_not_stop_who_samples(tmp_path: Path, tiny_model: Path) -> None:
    """Else whoever chooses them could ask which text was drawn (they are finite, so a node cannot refuse them)."""
    recipe = adapter_recipe(tmp_path, tiny_model, datasets=[prompts(tmp_path)], training__objective="grpo", **GRPO)
    runtime, work = work_of(recipe, load_federated(recipe, lambda _: None).clients)
    only = np.zeros(len(work.units), dtype=np.bool_)
    only[:2] = True
    for size in (1e30, 1e38):
        assert np.isfinite(sums(work, np.full(runtime.part.start.numel(), size), 1.0, only)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_node_answers_no_request_with_broken_parameters(tmp_path: Path, value: float) -> None:
    node = Bench(tmp_path).node
    parameters = np.zeros(DIMENSION)
    parameters[1] = value
    with pytest.raises(RunFolderError, match="another trainable part"):
        node.contribute(RoundRequest(1, MANIFEST.digest, parameters))


@pytest.mark.slow
def test_an_answer_without_end_is_wrong_and_the_next_one_is_heard() -> None:
    same_answer = AnswerChecker(deadline=1.0)
    try:
        for endless in ("$9^{9^{9^{9}}}$", "$100000000!$", "9**9**9**9"):
            assert same_answer(f"\\boxed{{{endless}}}", "12") == 0.0
            assert same_answer("12", endless) == 0.0
        assert same_answer(r"\boxed{12}", "12") == 1.0
    finally:
        same_answer.close()
