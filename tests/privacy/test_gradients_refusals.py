"""What the gradient engine refuses, by code: records that interact, wrong row maps, frozen, unused and bare tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from privacy.gradients import (
    FrozenParameterError,
    GradientBackendError,
    IndivisibleBatchError,
    ObjectiveError,
    RecordsInteractError,
    RowMapError,
    UncoveredParameterError,
    UnitGradientEngine,
    UnusedParameterError,
    select_trainable,
)
from tests.privacy.gradient_cases import TokenPairs, adapted, by_loop, dpo, token_pairs

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*is deprecated:FutureWarning")


@dataclass(frozen=True)
class Vectors:
    """Rows [n, 6], one per record."""

    x: Tensor
    row_unit: Tensor

    def select(self, records: Tensor) -> Vectors:
        return Vectors(self.x[records], self.row_unit[records])


@dataclass(frozen=True)
class Whole:
    """The same without ``select``: only gradients can show that units interact."""

    x: Tensor
    row_unit: Tensor


def vectors(row_unit: list[int]) -> Vectors:
    generator = torch.Generator().manual_seed(2)
    return Vectors(torch.randn(len(row_unit), 6, generator=generator, dtype=torch.float64), torch.tensor(row_unit))


class Net(nn.Module):
    def __init__(self, *, normed: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(6, 4, dtype=torch.float64)
        self.norm = nn.BatchNorm1d(4, dtype=torch.float64) if normed else nn.Identity()
        self.last = nn.Linear(4, 1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.norm(self.first(x)))).squeeze(-1)
        return out


def squares(model: Any, batch: Vectors) -> Tensor:
    out: Tensor = model(batch.x) ** 2
    return out


def whitened(model: Any, batch: Vectors) -> Tensor:
    scores = model(batch.x)
    return (scores - scores.mean()) ** 2


def sorted_pairs(model: Any, batch: Vectors) -> Tensor:
    """As the loss `aot`: quantiles of the batch are compared, not records."""
    scores = model(batch.x)
    return -functional.logsigmoid(scores.sort().values - batch.x[:, 0].sort().values)


def shared_normaliser(model: Any, batch: Vectors) -> Tensor:
    scores: Tensor = model(batch.x)
    return scores / scores.abs().sum()


def engine(model: nn.Module, objective: Any, **options: Any) -> UnitGradientEngine:
    names = [n for n, _ in model.named_parameters() if "norm" not in n]
    return UnitGradientEngine(model, objective, select_trainable(model, names), **options)


@pytest.mark.parametrize("backend", ["book_keeping", "loop", "opacus"])
@pytest.mark.parametrize("objective", [whitened, sorted_pairs, shared_normaliser])
@pytest.mark.parametrize("kind", [Vectors, Whole])
def test_losses_that_couple_records_are_refused(kind: type[Any], objective: Any, backend: str) -> None:
    batch = vectors([0, 1, 2, 5])
    with pytest.raises(RecordsInteractError) as refusal:
        engine(Net(), objective, backend=backend)(kind(batch.x, batch.row_unit), 6)
    assert refusal.value.code == "FP442"


def test_batch_normalisation_is_refused_in_training_mode_only() -> None:
    model = Net(normed=True)
    with pytest.raises(RecordsInteractError):
        engine(model.train(), squares)(vectors([0, 1]), 2)
    assert engine(model.eval(), squares)(vectors([0, 1]), 2).flat().any()


def test_a_detached_statistic_of_the_batch_is_refused() -> None:
    """No gradient flows through it, yet one person's record changes another's contribution."""

    def scaled(model: Any, batch: Vectors) -> Tensor:
        scores: Tensor = model(batch.x)
        return scores * batch.x.abs().sum()

    with pytest.raises(RecordsInteractError):
        engine(Net(), scaled)(vectors([0, 1]), 2)


def test_coupling_within_one_unit_is_allowed() -> None:
    """GRPO's advantages couple the completions of a prompt, which is why the prompt is the unit."""
    assert engine(Net(), whitened)(vectors([0, 0, 0]), 1).flat().any()


def test_any_two_units_are_told_apart() -> None:
    """Units 4 and 6 differ in one bit only; only they are coupled, and in one direction."""

    def one_sided(model: Any, batch: Vectors) -> Tensor:
        scores = model(batch.x)
        mixed: Tensor = torch.where(batch.row_unit == 4, scores + scores[batch.row_unit == 6], scores)
        return mixed**2

    batch = vectors([0, 1, 4, 6])
    with pytest.raises(RecordsInteractError):
        engine(Net(), one_sided)(Whole(batch.x, batch.row_unit), 7)
    assert engine(Net(), squares)(vectors([0, 1, 4, 6]), 7).flat().any()


def test_interleaved_rows_under_a_map_for_stacked_rows_are_refused() -> None:
    """Planted bug: rows as [c0, r0, c1, r1, ...] read as [c0, c1, ...; r0, r1, ...] give pairs of two people."""

    def interleaved(model: Any, batch: TokenPairs) -> Tensor:
        n = len(batch.row_unit)
        order = torch.arange(2 * n).view(2, n).T.flatten()
        tokens = (batch.input_ids[order], batch.attention_mask[order], batch.completion_mask[order])
        swapped = replace(batch, input_ids=tokens[0], attention_mask=tokens[1], completion_mask=tokens[2])
        logps = dpo_logps(model, swapped).view(n, 2)
        return -functional.logsigmoid(logps[:, 0] - logps[:, 1])

    case = adapted("lora q,v")
    with pytest.raises(RecordsInteractError):
        UnitGradientEngine(case.model, interleaved, case.trainable)(token_pairs([0, 1, 2, 3]), 4)


def dpo_logps(model: Any, batch: TokenPairs) -> Tensor:
    base = model.get_base_model()
    hidden = base.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)[0]
    return (hidden.sum(-1) * batch.completion_mask).sum(-1)


def test_rows_that_the_batch_does_not_announce_are_refused() -> None:
    @dataclass(frozen=True)
    class Silent:
        """As TokenPairs, without ``model_row_unit``: 2n model rows for n records."""

        pairs: TokenPairs
        row_unit: Tensor

    case, batch = adapted("lora q,v"), token_pairs([0, 1])
    forgetful = UnitGradientEngine(case.model, lambda m, b: dpo(m, b.pairs), case.trainable)
    with pytest.raises(RowMapError):
        forgetful(Silent(batch, batch.row_unit), 2)


def test_a_layer_on_flattened_tokens_is_refused() -> None:
    class Flat(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.repeat(3, 1)).view(3, -1).sum(0)

    with pytest.raises(RowMapError) as refusal:
        engine(Flat(), squares)(vectors([0]), 1)
    assert "first" in refusal.value.what


def test_records_without_model_rows_are_refused() -> None:
    batch = token_pairs([0, 1])
    empty = replace(batch, input_ids=batch.input_ids[:0])

    class NoRows(TokenPairs):
        @property
        def model_row_unit(self) -> Tensor:
            return self.row_unit[:0]

    case = adapted("lora q,v")
    with pytest.raises(RowMapError):
        UnitGradientEngine(case.model, dpo, case.trainable)(NoRows(**vars(empty)), 2)


@pytest.mark.parametrize("row_unit", [torch.tensor([[0, 1]]), torch.tensor([0.0, 1.0]), torch.tensor([0, 9])])
def test_a_row_map_that_is_no_vector_of_units_is_refused(row_unit: Tensor) -> None:
    with pytest.raises(RowMapError):
        engine(Net(), squares)(Vectors(vectors([0, 1]).x, row_unit), 2)


def test_frozen_tensors_are_refused_when_listed_and_when_frozen_later() -> None:
    model = Net()
    model.first.weight.requires_grad_(False)
    with pytest.raises(FrozenParameterError):
        select_trainable(model, ["first.weight"])
    with pytest.raises(FrozenParameterError):
        UnitGradientEngine(model, squares, {"first.weight": model.first.weight})
    model.first.weight.requires_grad_(True)
    late = engine(model, squares)
    model.first.weight.requires_grad_(False)
    with pytest.raises(FrozenParameterError):
        late(vectors([0]), 1)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UncoveredParameterError):
        select_trainable(Net(), ["first.weight", "second.weight"])
    with pytest.raises(UncoveredParameterError):
        UnitGradientEngine(Net(), squares, dict(Net().named_parameters()))


@pytest.mark.parametrize("how", ["merged", "disabled", "other adapter"])
@pytest.mark.parametrize("backend", ["book_keeping", "loop"])
def test_an_adapter_that_takes_no_part_is_refused_and_not_zeros(how: str, backend: str) -> None:
    case = adapted("lora q,v")
    idle = UnitGradientEngine(case.model, dpo_logps_loss, case.trainable, backend=backend)  # type: ignore[arg-type]
    if how == "merged":
        case.model.merge_adapter()
    elif how == "disabled":
        case.model.base_model.disable_adapter_layers()
    else:
        case.model.add_adapter("other", case.model.peft_config["default"])
        case.model.set_adapter("other")
    for p in case.trainable.values():
        p.requires_grad_(True)  # or the refusal would be about frozen tensors
    with pytest.raises(UnusedParameterError):
        idle(token_pairs([0, 1]), 2)


def dpo_logps_loss(model: Any, batch: TokenPairs) -> Tensor:
    chosen, rejected = dpo_logps(model, batch).chunk(2)
    return -functional.logsigmoid(chosen - rejected)


def test_passes_without_gradient_may_see_any_rows_and_count_as_no_use() -> None:
    def centred(model: Any, batch: Vectors) -> Tensor:
        with torch.no_grad():
            public = model(torch.ones(5, 6, dtype=torch.float64)).mean()
        out: Tensor = (model(batch.x) - public) ** 2
        return out

    def outside(model: Any, batch: Vectors) -> Tensor:
        with torch.no_grad():
            constant = model.first(batch.x)
        out: Tensor = model.last(constant).squeeze(-1)
        return out

    batch = vectors([0, 1])
    assert engine(Net(), centred)(batch, 2).flat().any()
    with pytest.raises(UnusedParameterError):
        engine(Net(), outside)(batch, 2)


class Bare(Net):
    """Multiplies by the matrix beside the layer, as DoRA's norm does."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (x @ self.first.weight.T).sum(-1)


def test_a_matrix_used_beside_its_layer_is_refused_and_the_loop_takes_it() -> None:
    model, batch = Bare(), vectors([0, 1, 0])
    with pytest.raises(UnusedParameterError) as refusal:
        engine(model, squares)(batch, 2)
    assert "first.weight" in refusal.value.what
    found = engine(model, squares, backend="loop")(batch, 2).flat()
    alone = [p.grad for p in model.parameters()]
    assert alone == [None] * 4
    for unit in range(2):
        gradients = torch.autograd.grad(squares(model, batch.select(batch.row_unit == unit)).sum(), model.parameters())
        torch.testing.assert_close(found[unit], torch.cat([g.flatten() for g in gradients]), rtol=0, atol=0)


def test_a_reduced_loss_is_refused() -> None:
    with pytest.raises(ObjectiveError):
        engine(Net(), lambda m, b: squares(m, b).mean())(vectors([0, 1]), 2)


def test_the_loop_needs_a_batch_that_can_be_cut() -> None:
    batch = vectors([0, 1])
    with pytest.raises(IndivisibleBatchError):
        engine(Net(), squares, backend="loop")(Whole(batch.x, batch.row_unit), 2)


def test_opacus_is_refused_where_its_hooks_do_not_work() -> None:
    soft = adapted("soft prompt")
    with pytest.raises(GradientBackendError):
        UnitGradientEngine(soft.model, soft.objective, soft.trainable, backend="opacus")
    case, batch = adapted("lora q,v"), token_pairs([0, 1])
    expected = by_loop(case, batch, 2)
    case.model.train()
    case.model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(GradientBackendError):
        UnitGradientEngine(case.model, case.objective, case.trainable, backend="opacus")(batch, 2)
    found = UnitGradientEngine(case.model, case.objective, case.trainable)(batch, 2).flat()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["book_keeping", "loop"])
def test_reentrant_checkpointing_is_an_error_and_not_wrong_gradients(backend: str) -> None:
    case, batch = adapted("lora q,v"), token_pairs([0, 1])
    case.model.train()
    case.model.get_base_model().activation_checkpointing_enable({"use_reentrant": True})
    case.model.enable_input_require_grads()
    with pytest.raises(UnusedParameterError) as refusal:
        UnitGradientEngine(case.model, dpo_logps_loss, case.trainable, backend=backend)(batch, 2)  # type: ignore[arg-type]
    assert "re-entrant" in refusal.value.why
