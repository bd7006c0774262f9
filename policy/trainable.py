"""The trainable part of a model as one flat vector: variants of adapters, their names in order, and what they were at first.

A federation sends flat vectors; one model per node is loaded with them, for any number of clients. The names are written
down once, when the adapter is attached: PEFT thaws frozen matrices behind one's back (guarantees.md rule 14).

| variant | trained, of every target layer W [o, i] | a mean of updates is exact |
|---|---|---|
| lora | A [r, i] and B [o, r] (Hu et al. 2021) | for gradients; not after local steps |
| lora_frozen_a | B [o, r]; A random, the same everywhere (FFA-LoRA, Sun et al. 2024) | yes |
| lora_core | R [r, r] in B R A, A and B from W's SVD (LoRA-XS, Balazy et al. 2024; Fed-SB) | yes |
| prompt_tuning | virtual tokens before every text (Lester et al. 2021) | yes |
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from policy.adapter import ADAPTER, adapter_files, attach_lora, lora_config
from policy.core import fold_cores, install_cores
from policy.settings import LoraSettings
from reward.backbone import Backbone
from reward.errors import AdapterError
from reward.model import attach_adapter, attach_score_adapter

Kind = Literal["lora", "lora_frozen_a", "lora_core", "prompt_tuning"]
_TRAINED: dict[str, tuple[str, ...]] = {
    "lora": (f"lora_A.{ADAPTER}.weight", f"lora_B.{ADAPTER}.weight"),
    "lora_frozen_a": (f"lora_B.{ADAPTER}.weight",),
    "lora_core": (f"lora_B.{ADAPTER}.core.weight",),
    "prompt_tuning": (f"prompt_encoder.{ADAPTER}.embedding.weight",),
}
_SCORE = f"score.modules_to_save.{ADAPTER}.weight"


@dataclass(frozen=True)
class TrainablePart:
    """A PEFT model, the names of what is trained in it, in order, and their first values.

    Attributes:
        base: the base model's name.
        start: flat fp32 [d] on the CPU, a function of base model, settings and seed alone, hence public.
    """

    model: Any
    base: str
    kind: Kind
    names: tuple[str, ...]
    start: Tensor = field(repr=False)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Name -> tensor, in order."""
        present = dict(self.model.named_parameters())
        return {name: present[name] for name in self.names}

    @property
    def tensors(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Names and shapes, in the order in which they are flattened."""
        return tuple((name, tuple(p.shape)) for name, p in self.parameters.items())

    def thaw(self) -> None:
        """Let the listed tensors, and no other, require a gradient, whatever PEFT has done meanwhile."""
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)

    @torch.no_grad()
    def load(self, flat: Tensor) -> None:
        """Set the trainable part from a vector [d].

        Raises:
            AdapterError: another length.
        """
        if flat.numel() != self.start.numel():
            raise AdapterError(
                f"A vector of {flat.numel()} numbers is no state of this adapter.",
                f"It has {self.start.numel()}.",
                "Use one recipe and one base model everywhere.",
            )
        begin = 0
        for parameter in self.parameters.values():
            end = begin + parameter.numel()
            parameter.copy_(flat[begin:end].view_as(parameter))
            begin = end

    def flat(self) -> Tensor:
        """A copy of the trainable part, [d], on its device."""
        return torch.cat([p.detach().reshape(-1) for p in self.parameters.values()])

    @contextmanager
    def as_base(self) -> Iterator[Any]:
        """The base model, to compute a reference with; afterwards the trainable part is what it was.

        By loading the first values, at which a LoRA adapter adds exactly zero; never by ``disable_adapter``.
        """
        if self.kind == "prompt_tuning":
            yield self.model.get_base_model()
            return
        kept = self.flat()
        self.load(self.start)
        try:
            yield self.model
        finally:
            self.load(kept)

    def files(self) -> dict[str, bytes]:
        """PEFT's two files; an r x r core is folded into an ordinary LoRA's B first. Loads by ``PeftModel.from_pretrained``."""
        with fold_cores(self.model):
            return adapter_files(self.model, self.base)


def attach(
    backbone: Backbone,
    kind: Kind,
    lora: LoraSettings,
    *,
    num_virtual_tokens: int = 8,
    score: bool = False,
    seed: int = 0,
) -> TrainablePart:
    """The base model with a fresh trainable part, which adds nothing yet (a soft prompt begins as words of the vocabulary).

    Args:
        backbone: of ``reward.backbone.load_backbone``, or with ``score`` of ``reward.model.load_score_backbone``.
        lora: rank, scale and target modules; of the variants of LoRA.
        score: a reward model: its linear score is trained as well.

    Raises:
        AdapterError: a target module that the model does not have, or a soft prompt under a score.
    """
    if kind == "prompt_tuning":
        model = _attach_prompt(backbone, num_virtual_tokens, seed, score=score)
    elif score:
        model = attach_score_adapter(backbone, lora_config(lora), seed)
    else:
        model = attach_lora(backbone, lora, seed)
    if kind == "lora_core":
        install_cores(model)
    endings = (*_TRAINED[kind], *((_SCORE,) if score else ()))
    names = tuple(name for name, _ in model.named_parameters() if name.endswith(endings))
    part = TrainablePart(model, backbone.name, kind, names, torch.zeros(0))
    part = TrainablePart(model, backbone.name, kind, names, part.flat().float().cpu())
    part.thaw()
    model.eval()
    return part


def _attach_prompt(backbone: Backbone, width: int, seed: int, *, score: bool) -> Any:
    from peft import PromptTuningConfig

    if score:
        raise AdapterError(
            "A soft prompt under a score is not offered.",
            "PEFT feeds it to classifiers in another way than the trained score sees it.",
            "Use adapter: lora_frozen_a or lora_core for a reward model.",
        )
    model = attach_adapter(backbone, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=width), seed)
    words = backbone.model.get_input_embeddings().weight
    chosen = torch.randint(len(words), (width,), generator=torch.Generator().manual_seed(seed))
    embedding: Any = model.prompt_encoder[ADAPTER].embedding
    embedding.weight.data = words.detach()[chosen.to(words.device)].float()
    return model
