"""What clients contribute to an adapter: against slow oracles, bounded per unit, one model for everybody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedpref.client.adapter import LocalWork
from fedpref.client.records import prepare_records
from fedpref.data.preferences import Preferences
from privacy.clipping import clip_and_sum, grid_step
from privacy.units import PrivacyUnit
from tests.fedpref.adapters import adapter_recipe, sums, work_of
from tests.tiny import preferences

ROWS = [
    ("ann", "yes! good", "no"), ("ann", "more! words", "less"), ("bob", "hello there", "a"),
    ("cat", "b! c", "d d d"), ("cat", "e", "f! g"), ("cat", "h i j", "k"), ("dan", "l! m", "n o"),
]  # fmt: skip
CLIENTS = {"one": preferences(ROWS[:3]), "two": preferences(ROWS[3:]), "none": Preferences.concat([])}
LOCAL = {"optim": "sgd", "learning_rate": 0.1, "per_device_train_batch_size": 4}


def elsewhere(start: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return start + 0.2 * np.random.default_rng(0).normal(size=len(start))


def oracle_gradient(runtime: Any, rows: list[tuple[str, str, str]], beta: float = 0.1) -> np.ndarray[Any, Any]:
    """Autograd through plain forward passes, pair by pair, in the model's own words."""
    tokenizer, part = runtime.backbone.tokenizer, runtime.part

    def logp(answer: str) -> torch.Tensor:
        prompt = [{"role": "user", "content": "Say something."}]
        head = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": answer}], tokenize=False)
        begin = len(tokenizer(head, add_special_tokens=False)["input_ids"])
        ids = torch.tensor([tokenizer(whole, add_special_tokens=False)["input_ids"][:64]])
        logits = part.model(input_ids=ids).logits.log_softmax(-1)
        return logits[0, :-1].gather(1, ids[0, 1:, None])[begin - 1 :, 0].sum()

    with torch.no_grad(), part.as_base():
        references = [logp(chosen) - logp(rejected) for _, chosen, rejected in rows]
    part.thaw()
    loss = torch.zeros(())
    for (_, chosen, rejected), reference in zip(rows, references, strict=True):
        loss = loss - torch.nn.functional.logsigmoid(beta * (logp(chosen) - logp(rejected) - reference))
    gradient = torch.autograd.grad(loss / len(rows) ** 0.5, list(part.parameters.values()))
    return torch.cat([g.reshape(-1) for g in gradient]).double().numpy()


@pytest.mark.parametrize("adapter", ["lora", "lora_frozen_a", "lora_core"])
def test_a_contribution_is_the_clipped_gradient_of_every_persons_summed_loss(
    tmp_path: Path, tiny_model: Path, adapter: str
) -> None:
    recipe = adapter_recipe(tmp_path, tiny_model, training__adapter=adapter)
    runtime, work = work_of(recipe, CLIENTS)
    parameters = elsewhere(runtime.part.start.double().numpy())
    runtime.part.load(torch.from_numpy(parameters).float())
    own = {
        person: oracle_gradient(runtime, [row for row in ROWS if row[0] == person])
        for person in ("ann", "bob", "cat", "dan")
    }
    bound = float(np.median([np.linalg.norm(gradient) for gradient in own.values()]))  # two are clipped, two are not
    sent = sums(work, parameters, bound)
    expected = np.zeros_like(sent)
    for person, gradient in own.items():
        norm = np.linalg.norm(gradient)
        expected[0 if person in {"ann", "bob"} else 1] += gradient * min(1.0, bound / norm)
    np.testing.assert_allclose(sent, expected, atol=1e-4 * bound + 8 * grid_step(bound, sent.shape[1]))
    assert not sent[2].any()


def test_a_person_moves_a_message_by_at_most_the_clipping_norm(tmp_path: Path, tiny_model: Path) -> None:
    runtime, work = work_of(adapter_recipe(tmp_path, tiny_model), CLIENTS)
    parameters = elsewhere(runtime.part.start.double().numpy())
    whole, bound = sums(work, parameters, 0.003), 0.003
    for unit in range(4):
        mask = np.ones(4, dtype=np.bool_)
        mask[unit] = False
        moved = whole - sums(work, parameters, bound, mask)
        client = int(work.units.client[unit])
        assert 0 < np.linalg.norm(moved[client]) <= bound * (1 + 1e-3)  # batches of other shapes round otherwise
        assert np.abs(np.delete(moved, client, axis=0)).max() == 0.0


def test_memory_for_gradients_is_cut_into_groups_without_changing_a_bit_of_meaning(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, work = work_of(adapter_recipe(tmp_path, tiny_model), CLIENTS)
    parameters = elsewhere(runtime.part.start.double().numpy())
    whole = sums(work, parameters)
    monkeypatch.setattr("fedpref.client.adapter.NUMBERS_AT_ONCE", 1)
    np.testing.assert_allclose(sums(work, parameters), whole, atol=1e-6 + 8 * grid_step(1.0, whole.shape[1]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("adapter", ["lora", "lora_core"])
def test_checkpointing_activations_changes_memory_and_nothing_else(
    tmp_path: Path, tiny_model: Path, adapter: str
) -> None:
    found = []
    for on in (False, True):
        changes = {"training__adapter": adapter, "training__gradient_checkpointing": on}
        runtime, work = work_of(adapter_recipe(tmp_path, tiny_model, **changes), CLIENTS)
        found.append(sums(work, elsewhere(runtime.part.start.double().numpy()), 0.1))
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)
    assert np.abs(found[0]).max() > 1e-4


@pytest.mark.parametrize("unit", ["user", "client"])
def test_rows_clipped_elsewhere_are_the_same_contributions(tmp_path: Path, tiny_model: Path, unit: str) -> None:
    changes = {"privacy__unit": unit, **({"training__local": LOCAL} if unit == "client" else {})}
    runtime, work = work_of(adapter_recipe(tmp_path, tiny_model, **changes), CLIENTS)
    parameters, selected = elsewhere(runtime.part.start.double().numpy()), np.ones(len(work.units), dtype=np.bool_)
    selected[0] = False
    rows = list(work.rows(parameters, selected))
    assert [len(r) for r in rows] == ([1, 2, 0] if unit == "user" else [0, 1, 0])
    clipped = [clip_and_sum(r, np.zeros(len(r), np.int64), 1, 0.01)[0].value for r in rows]
    np.testing.assert_allclose(clipped, sums(work, parameters, 0.01, selected), atol=1e-6)


def test_nobody_selected_is_zeros_for_every_client(tmp_path: Path, tiny_model: Path) -> None:
    runtime, work = work_of(adapter_recipe(tmp_path, tiny_model), CLIENTS)
    nobody = np.zeros(4, dtype=np.bool_)
    sent = sums(work, runtime.part.start.double().numpy(), selected=nobody)
    assert sent.shape[0] == 3
    assert not sent.any()


def test_against_the_global_model_every_margin_is_zero_so_gradients_are_those_of_half(
    tmp_path: Path, tiny_model: Path
) -> None:
    """ref_model: global at the broadcast parameters: sigma(0) = 1/2, whatever the adapter has learnt; base is another."""
    found = {}
    for ref in ("base", "global"):
        runtime, work = work_of(adapter_recipe(tmp_path, tiny_model, training__ref_model=ref), CLIENTS)
        parameters = elsewhere(runtime.part.start.double().numpy())
        found[ref] = sums(work, parameters, 2.0)
        runtime.part.load(torch.from_numpy(parameters).float())
        if ref == "global":
            part = runtime.part
            kept = part.start
            object.__setattr__(part, "start", torch.from_numpy(parameters).float())  # the oracle's reference
            expected = oracle_gradient(runtime, ROWS[2:3]) + oracle_gradient(runtime, ROWS[:2])
            object.__setattr__(part, "start", kept)
    np.testing.assert_allclose(found["global"][0], expected, atol=5e-5)
    assert np.abs(found["base"] - found["global"]).max() > 2e-4


@pytest.mark.parametrize("mu", [0.0, 5.0])
def test_local_training_is_plain_steps_from_the_broadcast_and_one_clip(
    tmp_path: Path, tiny_model: Path, mu: float
) -> None:
    local = {**LOCAL, "num_train_epochs": 2, "per_device_train_batch_size": 8, "proximal_mu": mu}
    recipe = adapter_recipe(tmp_path, tiny_model, privacy__unit="client", training__local=local)
    runtime, work = work_of(recipe, CLIENTS)
    assert isinstance(work, LocalWork)
    assert len(work.units) == 3
    parameters = elsewhere(runtime.part.start.double().numpy())
    sent, clipped = sums(work, parameters, 1.0), sums(work, parameters, 1e-4)
    theta = parameters.copy()
    for _ in range(2):
        runtime.part.load(torch.from_numpy(theta).float())
        gradient = oracle_gradient(runtime, ROWS[:3]) / 3**0.5  # the mean over three pairs
        theta = theta - 0.1 * (gradient + mu * (theta - parameters))
    np.testing.assert_allclose(sent[0], parameters - theta, atol=2e-5)
    assert np.linalg.norm(clipped[0]) == pytest.approx(1e-4, rel=2e-3)  # cut to the grid
    assert not sent[2].any()


def test_a_client_keeps_nothing_between_rounds(tmp_path: Path, tiny_model: Path) -> None:
    local = {"optim": "adamw", "learning_rate": 0.01}
    recipe = adapter_recipe(tmp_path, tiny_model, privacy__unit="client", training__local=local)
    runtime, work = work_of(recipe, CLIENTS)
    first = sums(work, runtime.part.start.double().numpy())
    assert np.array_equal(sums(work, runtime.part.start.double().numpy()), first)


def test_records_are_bounded_per_person_and_a_client_is_one_unit(tiny_model: Path) -> None:
    del tiny_model
    users = prepare_records(CLIENTS, PrivacyUnit.USER, 2)
    assert np.diff(users.start).tolist() == [2, 1, 2, 1]
    assert users.client.tolist() == [0, 0, 1, 1]
    clients = prepare_records(CLIENTS, PrivacyUnit.CLIENT, 2)
    assert np.diff(clients.start).tolist() == [3, 3, 0]
    examples = prepare_records(CLIENTS, PrivacyUnit.EXAMPLE, 2)
    assert np.diff(examples.start).tolist() == [1] * 7
