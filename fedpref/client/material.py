"""What objectives need of a node's records: tokens once, reference log-probabilities once, batches by tokens.

Nothing here looks at units: a batch is told the unit of each of its records, and objectives never see it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fedpref.client.records import Index, NodeRecords
from policy.batches import CompletionBatch, UnpairedBatch
from policy.logprobs import answer_logps
from policy.registry import BatchKind
from policy.trainable import TrainablePart
from reward.backbone import Backbone
from reward.batches import PairBatch, SelectorBatch
from reward.pairs import Conversation
from reward.selection import choice_ids, selector_record
from reward.tokens import Layout, TokenRecord, collate, tokenize
from reward.trunk import shares_prompts


@dataclass(frozen=True)
class Runtime:
    """The one model of a node, with its trainable part, for any number of clients."""

    backbone: Backbone
    part: TrainablePart
    max_length: int
    tokens_per_batch: int = 2048
    ref_model: str = "base"

    @property
    def layout(self) -> Layout:
        """Pairs share their prompt's work where the model's attention can be masked for it; soft prompts come before both."""
        return "shared" if shares_prompts(self.backbone.model.config) else "separate"

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return self.backbone.device

    def by_tokens(self, sizes: Sequence[int]) -> Iterator[Index]:
        """Places of records, longest first, in batches whose padded rows have at most ``tokens_per_batch`` tokens.

        A record that is longer by itself is a batch of its own.
        """
        order, taken = np.argsort(-np.asarray(sizes, dtype=np.int64), kind="stable"), 0
        while taken < len(order):
            fits = max(1, self.tokens_per_batch // max(sizes[order[taken]], 1))
            yield order[taken : taken + fits]
            taken += fits


class Material(Protocol):
    """The records of one objective as token batches."""

    def prepare(self, records: Index) -> None:
        """Make what costs a forward pass and carries no gradient, at the parameters that are loaded."""

    def sizes(self, records: Index) -> list[int]:
        """Tokens of every record's model row."""

    def batch(self, records: Index, row_unit: Tensor, weight: Tensor) -> Any:
        """A batch of some records; ``row_unit`` and ``weight`` [records]."""


@dataclass
class ReferenceLogps:
    """log p(answer | prompt) under the reference model, once per text; in memory only.

    ``global``: of the model as broadcast, so what was known is forgotten when a round begins.
    """

    runtime: Runtime
    _known: dict[Conversation, float] = field(default_factory=dict, repr=False)

    def prepare(self, texts: Sequence[tuple[Conversation, TokenRecord]]) -> None:
        """Compute those of texts that are not known, at the reference."""
        if self.runtime.ref_model == "global":
            self._known.clear()
            self._compute(texts, self.runtime.part.model)
            return
        missing = [(text, tokens) for text, tokens in texts if text not in self._known]
        if missing:
            with self.runtime.part.as_base() as reference:
                self._compute(missing, reference)

    @torch.no_grad()
    def _compute(self, texts: Sequence[tuple[Conversation, TokenRecord]], model: Any) -> None:
        for places in self.runtime.by_tokens([tokens.num_tokens for _, tokens in texts]):
            rows = collate([texts[i][1] for i in places], num_answers=1, layout="separate").to(self.runtime.device)
            values = answer_logps(model, rows)[:, 0].tolist()
            self._known.update({texts[i][0]: value for i, value in zip(places, values, strict=True)})

    def __getitem__(self, text: Conversation) -> float:
        return self._known[text]


class TextMaterial:
    """Pairs, or single answers, of the node's records; every text is tokenised once."""

    def __init__(self, runtime: Runtime, records: NodeRecords, *, reference: bool = False) -> None:
        """``reference``: the objective takes log-ratios."""
        self.runtime, self.records = runtime, records
        self._tokens: dict[tuple[int, ...], TokenRecord] = {}
        self._reference = ReferenceLogps(runtime) if reference else None

    def tokens(self, *texts: int) -> TokenRecord:
        """The tokens of texts that answer one prompt."""
        if texts not in self._tokens:
            said = [self.records.texts[i] for i in texts]
            self._tokens[texts] = tokenize(
                self.runtime.backbone.tokenizer,
                said[0].prompt,
                [s.completion for s in said],
                max_length=self.runtime.max_length,
            )
        return self._tokens[texts]

    def _prepare_reference(self, texts: Index) -> None:
        if self._reference is not None:
            known = [(self.records.texts[i], self.tokens(int(i))) for i in np.unique(texts)]
            self._reference.prepare(known)

    def _ref_logps(self, texts: Index) -> Tensor | None:
        if self._reference is None:
            return None
        values = [self._reference[self.records.texts[i]] for i in texts.reshape(-1)]
        return torch.tensor(values, dtype=torch.float32, device=self.runtime.device).view(texts.shape)


class PairMaterial(TextMaterial):
    """DPO and Bradley-Terry: a record is a pair."""

    def prepare(self, records: Index) -> None:
        """Reference log-probabilities of both answers."""
        self._prepare_reference(np.concatenate([self.records.first[records], self.records.second[records]]))

    def sizes(self, records: Index) -> list[int]:
        """Tokens of the prompt and both answers."""
        return [self._pair(i).num_tokens for i in records]

    def batch(self, records: Index, row_unit: Tensor, weight: Tensor) -> PairBatch:
        """The pairs, the better answer first."""
        rows = collate([self._pair(i) for i in records], num_answers=2, layout=self.runtime.layout)
        texts = np.stack([self.records.first[records], self.records.second[records]], axis=1)
        batch = PairBatch(rows=rows, row_unit=row_unit, weight=weight).to(self.runtime.device)
        return PairBatch(
            rows=batch.rows, row_unit=batch.row_unit, weight=batch.weight, ref_logps=self._ref_logps(texts)
        )

    def _pair(self, record: int) -> TokenRecord:
        return self.tokens(int(self.records.first[record]), int(self.records.second[record]))


class CompletionMaterial(TextMaterial):
    """SFT: the better answer of every record."""

    def prepare(self, records: Index) -> None:
        """Nothing: there is no reference."""

    def sizes(self, records: Index) -> list[int]:
        """Tokens of prompt and answer."""
        return [self.tokens(int(self.records.first[i])).num_tokens for i in records]

    def batch(self, records: Index, row_unit: Tensor, weight: Tensor) -> CompletionBatch:
        """The prompts with their better answer."""
        tokens = [self.tokens(int(self.records.first[i])) for i in records]
        rows = collate(tokens, num_answers=1, layout="separate")
        return CompletionBatch(rows=rows, row_unit=row_unit, weight=weight).to(self.runtime.device)


class UnpairedMaterial(TextMaterial):
    """KTO: each answer of a record by itself, the better one desirable and the worse one not; an empty one is none."""

    def prepare(self, records: Index) -> None:
        """Reference log-probabilities of every answer that is there."""
        self._prepare_reference(self._texts(records)[0])

    def sizes(self, records: Index) -> list[int]:
        """Tokens of the longer of the record's rows, times their number."""
        found = []
        for i in records:
            texts = self._texts(np.array([i]))[0]
            found.append(len(texts) * max((self.tokens(int(t)).num_tokens for t in texts), default=0))
        return found

    def batch(self, records: Index, row_unit: Tensor, weight: Tensor) -> UnpairedBatch:
        """All answers of the records as records of their own, of the same unit and weight."""
        texts, owner, label = self._texts(records)
        of = torch.from_numpy(owner)
        rows = collate([self.tokens(int(t)) for t in texts], num_answers=1, layout="separate")
        batch = UnpairedBatch(
            rows=rows, row_unit=row_unit[of], weight=weight[of], label=torch.from_numpy(label), ref_logps=None
        ).to(self.runtime.device)
        return UnpairedBatch(
            rows=batch.rows,
            row_unit=batch.row_unit,
            weight=batch.weight,
            label=batch.label,
            ref_logps=self._ref_logps(texts),
        )

    def _texts(self, records: Index) -> tuple[Index, Index, Any]:
        """Texts, the place of each one's record, and its label; all [answers]."""
        sides = np.concatenate([self.records.first[records], self.records.second[records]])
        owner = np.tile(np.arange(len(records)), 2)
        label = np.repeat([True, False], len(records))
        there = np.array([bool(self.records.texts[i].completion.strip()) for i in sides], dtype=np.bool_)
        return sides[there], owner[there], label[there]


class SelectorMaterial(TextMaterial):
    """A binary selector (FedBis): a record is the question which of its two answers is better."""

    def prepare(self, records: Index) -> None:
        """Nothing: there is no reference."""

    def sizes(self, records: Index) -> list[int]:
        """Tokens of the question."""
        return [self._question(int(i))[0].num_tokens for i in records]

    def batch(self, records: Index, row_unit: Tensor, weight: Tensor) -> SelectorBatch:
        """The questions, and which answer was preferred."""
        asked = [self._question(int(i)) for i in records]
        return SelectorBatch(
            rows=collate([tokens for tokens, _ in asked], num_answers=1, layout="separate"),
            row_unit=row_unit,
            weight=weight,
            label=torch.tensor([label for _, label in asked], dtype=torch.int64),
            choice_ids=choice_ids(self.runtime.backbone.tokenizer),
        ).to(self.runtime.device)

    def _question(self, record: int) -> tuple[TokenRecord, int]:
        better, worse = (self.records.texts[int(side[record])] for side in (self.records.first, self.records.second))
        return selector_record(
            self.runtime.backbone.tokenizer,
            better.prompt,
            better.completion,
            worse.completion,
            max_length=self.runtime.max_length,
        )


MATERIALS: dict[BatchKind, Callable[..., Material]] = {
    "pairs": PairMaterial,
    "unpaired": UnpairedMaterial,
    "choices": SelectorMaterial,
    "completions": CompletionMaterial,
}
