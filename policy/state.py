"""The state of a policy loop between two steps: adapter, optimiser moments, step. One safetensors file, no pickle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from policy.adapter import adapter_arrays, load_adapter_arrays, trainable_parameters
from reward.errors import PolicyTrainingError

FORMAT = "fedpref-policy-state-1"


@dataclass(frozen=True)
class PolicyState:
    """Where a loop stands after ``step`` steps under the settings named by ``key``."""

    step: int
    key: str
    tensors: dict[str, Tensor]

    @classmethod
    def take(cls, step: int, key: str, model: Any, optimizer: torch.optim.Optimizer) -> PolicyState:
        """A copy of what a resumed loop needs."""
        tensors = {f"parameter/{name}": value for name, value in adapter_arrays(model).items()}
        for name, parameter in trainable_parameters(model):
            for slot, value in optimizer.state[parameter].items():
                tensors[f"{slot}/{name}"] = torch.as_tensor(value).detach().float().cpu().clone()
        return cls(step, key, tensors)

    def restore(self, model: Any, optimizer: torch.optim.Optimizer) -> None:
        """Put adapter and moments back.

        Raises:
            AdapterError: they are not of this model.
        """
        load_adapter_arrays(model, self._group("parameter"))
        for name, parameter in trainable_parameters(model):
            moments = {
                slot: values[name] for slot in ("step", "exp_avg", "exp_avg_sq") if (values := self._group(slot))
            }
            optimizer.state[parameter] = {
                slot: value if slot == "step" else value.to(parameter.device) for slot, value in moments.items()
            }

    def _group(self, slot: str) -> dict[str, Tensor]:
        return {name.removeprefix(f"{slot}/"): t for name, t in self.tensors.items() if name.startswith(f"{slot}/")}

    def to_bytes(self) -> bytes:
        """The file's content."""
        metadata = {"format": FORMAT, "step": str(self.step), "key": self.key}
        content: bytes = safetensors.torch.save(self.tensors, metadata=metadata)
        return content

    @classmethod
    def load(cls, path: Path, key: str) -> PolicyState | None:
        """What a file holds; None where there is none.

        Raises:
            PolicyTrainingError: damaged, of another version, or of a loop with other settings, prompts or rewards.
        """
        if not path.exists():
            return None
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            if metadata.get("format") != FORMAT or metadata["key"] != key:
                raise ValueError("it belongs to a loop of another version or other settings")
            return cls(int(metadata["step"]), key, tensors)
        except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
            raise PolicyTrainingError(
                f"{path.name}: the policy loop cannot go on from here.",
                f"{error}"[:200] + ".",
                f"Delete {path.name} to start the policy loop anew; the reward model stays.",
            ) from None
