"""Aggregation of LoRA updates: which means are exact, and what can be done where the server sees every update.

A round's clients end at (A_i, B_i). Means of B_i alone, of r x r cores, of heads and soft prompts, and of gradients at one
point are what their names say, so a secure sum serves them. The mean of A_i times the mean of B_i is not the mean of the
products B_i A_i (0.76 off in Frobenius norm for two random adapters of rank 4). Stacking (FLoRA, Wang et al. 2024) is
exact, at a rank that grows with the clients; here its result is cut back to rank r by an SVD, so that the next round has
the same layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from fedpref.aggregation.optimizers import Vector
from fedpref.errors import UnsupportedPlanError
from fedpref.manifest import Manifest

_A, _B = ".lora_A.", ".lora_B."


def is_exact(adapter: str, *, local_steps: bool) -> bool:
    """Is the mean of what clients send the mean of the models that they stand for?"""
    return adapter != "lora" or not local_steps


class Layer(NamedTuple):
    """Where A [r, i] and B [o, r] of one layer lie in the flat vector."""

    a: slice
    b: slice
    shape_a: tuple[int, int]
    shape_b: tuple[int, int]

    def factors(self, flat: Vector) -> tuple[Vector, Vector]:
        """B and A."""
        return flat[self.b].reshape(self.shape_b), flat[self.a].reshape(self.shape_a)


@dataclass(frozen=True)
class LoraRule:
    """The server's rule for A and B after local steps, where it sees every client's update and nothing is noised.

    ``mean``: B and A are averaged by themselves. ``stack``: the mean of the products, cut back to rank r. Both divide by
    the public ``divisor``; who was not drawn sent zeros and adds nothing.

    | case | result |
    |---|---|
    | nobody was drawn | no step; error 0 |
    | one client, divisor 1 | that client's model, exactly, under either rule |
    | a manifest without pairs of A and B | UnsupportedPlanError |
    """

    manifest: Manifest
    kind: Literal["mean", "stack"]
    divisor: float

    def __post_init__(self) -> None:
        if not self.layers:
            raise UnsupportedPlanError(
                "This adapter has no pairs of A and B.", "There is nothing to stack.", "Set training.aggregation: mean."
            )

    @property
    def layers(self) -> list[Layer]:
        """The pairs of A and B, in the manifest's order."""
        places, begin = dict[str, tuple[slice, tuple[int, ...]]](), 0
        for name, shape in self.manifest.tensors:
            size = int(np.prod(shape))
            places[name] = (slice(begin, begin + size), shape)
            begin += size
        found = []
        for name, (place, shape) in places.items():
            other = name.replace(_A, _B)
            if _A in name and other in places:
                b, shape_b = places[other]
                found.append(Layer(place, b, (shape[0], shape[1]), (shape_b[0], shape_b[1])))
        return found

    def __call__(self, parameters: Vector, updates: Sequence[Vector]) -> tuple[Vector, float]:
        """Broadcast parameters [d] and updates (broadcast minus trained, [d] each) -> pseudo-gradient [d] and relative error.

        The error is |product of the result - mean of the products| over |mean of the products - product at the start|, in
        Frobenius norm over all layers.
        """
        drawn = [update for update in updates if update.any()]
        result = parameters - np.sum([np.zeros_like(parameters), *drawn], axis=0) / self.divisor
        wrong = moved = 0.0
        for layer in self.layers if drawn else ():
            left, right, start = self._stacked(layer, parameters, drawn)
            if self.kind == "stack":
                b, a = _cut(left, right, layer.shape_a[0])
                result[layer.b], result[layer.a] = b.reshape(-1), a.reshape(-1)
            b, a = layer.factors(result)
            wrong += _distance(left, right, b, a) ** 2
            moved += _distance(left, right, *start) ** 2
        return parameters - result, float(np.sqrt(wrong / moved)) if moved else 0.0

    def _stacked(
        self, layer: Layer, parameters: Vector, drawn: Sequence[Vector]
    ) -> tuple[Vector, Vector, tuple[Vector, Vector]]:
        """Factors L R of B A + (1 / divisor) sum_i (B_i A_i - B A), exact; and B, A."""
        b, a = layer.factors(parameters)
        ends = [layer.factors(parameters - update) for update in drawn]
        share = 1.0 / self.divisor
        left = np.concatenate([b * (1.0 - share * len(drawn)), *(share * end for end, _ in ends)], axis=1)
        return left, np.concatenate([a, *(end for _, end in ends)], axis=0), (b, a)


def _cut(left: Vector, right: Vector, rank: int) -> tuple[Vector, Vector]:
    """The best factors of that rank of left @ right (Eckart-Young), without forming the product."""
    q_left, r_left = np.linalg.qr(left)
    q_right, r_right = np.linalg.qr(right.T)
    u, s, vt = np.linalg.svd(r_left @ r_right.T)
    root = np.sqrt(s[:rank])
    b, a = (q_left @ u[:, : len(root)]) * root, (root[:, None] * vt[: len(root)]) @ q_right.T
    pad = rank - len(root)
    return np.pad(b, ((0, 0), (0, pad))), np.pad(a, ((0, pad), (0, 0)))


def _distance(left: Vector, right: Vector, b: Vector, a: Vector) -> float:
    """|left right - b a| in Frobenius norm, by the small factors."""
    both = np.asarray(np.linalg.qr(np.concatenate([left, -b], axis=1), mode="r"))
    other = np.asarray(np.linalg.qr(np.concatenate([right, a], axis=0).T, mode="r"))
    return float(np.linalg.norm(both @ other.T))
