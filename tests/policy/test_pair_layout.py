"""The shared layout on the real model: the log-probabilities of separate rows, in fewer tokens."""

from __future__ import annotations

import pytest
import torch

from policy.logprobs import answer_logps
from reward.backbone import load_backbone
from reward.tokens import TokenRecord, collate


@pytest.mark.model
def test_shared_prompts_give_the_log_probabilities_of_separate_rows_in_fp32() -> None:
    backbone = load_backbone("embedded/smollm2-135m-instruct", dtype="float32")
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 40_000, (count,), generator=generator).tolist())

    made = [TokenRecord(tokens(40 + i), (tokens(12), tokens(5 + i))) for i in range(2)]
    shared, separate = (collate(made, num_answers=2, layout=layout) for layout in ("shared", "separate"))
    assert shared.input_ids.numel() < 0.75 * separate.input_ids.numel()
    with torch.no_grad():
        torch.testing.assert_close(
            answer_logps(backbone.model, shared), answer_logps(backbone.model, separate), rtol=1e-5, atol=1e-4
        )
