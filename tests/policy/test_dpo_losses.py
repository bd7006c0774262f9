"""Every loss of the DPO family, record by record, against the lines of the installed TRL; KTO's and SFT's by hand."""

from __future__ import annotations

import ast
import functools
import importlib.util
import math
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from policy.dpo_losses import LOSSES, PairRatios, dpo_loss
from policy.losses import kto_loss, sft_loss
from policy.registry import DpoLossType

N = 40


@functools.cache
def lines_of_trl() -> types.CodeType:
    """The if-chain over loss types of ``DPOTrainer._compute_loss``, as it stands in the installed file."""
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / "trainer" / "dpo_trainer.py").read_text(encoding="utf-8"))
    method = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "_compute_loss")
    loop = next(n for n in ast.walk(method) if isinstance(n, ast.For) and "loss_type" in ast.unparse(n.target))
    return compile(ast.Module([loop.body[0]], []), "dpo_trainer.py", "exec")


def of_trl(loss_type: str, r: PairRatios, beta: float, label_smoothing: float) -> Tensor:
    places = torch.arange(int(torch.cat([r.chosen_length, r.rejected_length]).max()))
    names: dict[str, Any] = {
        "self": types.SimpleNamespace(beta=beta, label_smoothing=label_smoothing),
        "F": functional,
        "torch": torch,
        "device": "cpu",
        "loss_type": loss_type,
        "chosen_scores": r.chosen,
        "rejected_scores": r.rejected,
        "chosen_logratios": r.chosen,
        "rejected_logratios": r.rejected,
        "delta_score": r.chosen - r.rejected,
        "completion_mask": (places < torch.cat([r.chosen_length, r.rejected_length])[:, None]).long(),
    }
    exec(lines_of_trl(), names)  # noqa: S102 - of an installed library
    loss: Tensor = names["per_sequence_loss"]
    return loss


def ratios() -> PairRatios:
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = 4 * torch.randn(2, N, generator=generator, dtype=torch.float64)
    lengths = torch.randint(0, 9, (2, N), generator=generator)
    rejected[:3] = chosen[:3]  # equal answers
    return PairRatios(chosen, rejected, *lengths)


@pytest.mark.parametrize(("beta", "label_smoothing"), [(0.1, 0.05), (0.1, 0.3), (1.5, 0.2)])
@pytest.mark.parametrize("loss_type", LOSSES)
def test_record_by_record_it_is_trls(loss_type: DpoLossType, beta: float, label_smoothing: float) -> None:
    ours = dpo_loss(loss_type, ratios(), beta, label_smoothing)
    assert ours.shape == (N,)
    torch.testing.assert_close(ours, of_trl(loss_type, ratios(), beta, label_smoothing), rtol=1e-6, atol=1e-7)


def test_no_two_losses_are_the_same() -> None:
    found = torch.stack([dpo_loss(name, ratios(), 0.5, 0.1) for name in LOSSES])
    assert (torch.cdist(found, found) + torch.eye(len(found)) > 1e-3).all()


def test_kto_is_one_minus_the_logistic_of_the_distance_to_the_reference_point() -> None:
    r, label = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([True, False, True])

    def s(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    found = kto_loss(r, label, 0.7, beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    expected = [2 * (1 - s(0.5 * 1.3)), 3 * (1 - s(0.5 * 1.7)), 2 * (1 - s(0.5 * -0.2))]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert torch.equal(kto_loss(r, label, -3.0), kto_loss(r, label, 0.0))
    for z in (math.nan, math.inf):
        with pytest.raises(ValueError, match="reference_point"):
            kto_loss(r, label, z)


def test_sft_divides_by_the_records_own_tokens_or_not_at_all() -> None:
    logps, lengths = torch.tensor([-6.0, -2.0, 0.0]), torch.tensor([3, 1, 0])
    assert sft_loss(logps, lengths).tolist() == [2.0, 2.0, 0.0]
    assert sft_loss(logps, lengths, "sum").tolist() == [6.0, 2.0, 0.0]
