"""Per-record figures of a reward model; tables and intervals are the federation room's."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def pair_correct(
    chosen_scores: npt.NDArray[np.floating], rejected_scores: npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    """1 where the chosen answer scores higher, 0 where lower, 0.5 for a tie or a score that is not finite, shape [n]."""
    with np.errstate(invalid="ignore"):  # inf - inf
        margin = chosen_scores - rejected_scores
    return np.where(np.isfinite(margin), np.where(margin == 0, 0.5, (margin > 0).astype(np.float64)), 0.5)
