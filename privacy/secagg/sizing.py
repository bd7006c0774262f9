"""How much noise each client adds, and the one event that is booked for it.

Every client adds N_Z(0, sigma^2) with sigma^2 = z^2 B^2 / a: B^2 the codec's integer sensitivity, a the least number of
honest shares in any sum that can be unmasked. The booked event is always that worst case; what more survivors add is
printed, never refunded (guarantees.md rule 9).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

from privacy.errors import ParameterError
from privacy.events import GaussianEvent
from privacy.noise import DiscreteGaussian
from privacy.secagg.bounds import folding_ratio, smoothing_ratio

LEAST_SIGMA = 3.0  # of one share; below it the sum of shares is not close enough to a discrete Gaussian
_GRID = 64  # sigma is a multiple of 1/64, rounded up
_SMOOTHING = (1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
_SMALL = 1e-12  # of kappa over all coordinates of one round


@dataclass(frozen=True)
class ShareNoise:
    """One client's noise share in steps of the grid, sized for ``honest_shares`` of them.

    Guarantees: a sum of integers of l2 sensitivity sqrt(sensitivity2) with at least ``honest_shares`` independent shares
    in it satisfies, over T rounds, delta(eps) <= e^Lambda delta_G(eps - 2 Lambda), where G is the T-fold (Poisson-sampled)
    *continuous* Gaussian mechanism with ``effective_multiplier`` and Lambda = T ``slack``. Proof: the sum of shares is
    within e^{+-tau} of N_Z (``bounds.folding_ratio``), which is within e^{+-kappa} of a randomised image of the
    continuous Gaussian of variance a sigma^2 - r^2 (``bounds.smoothing_ratio``), both per coordinate and round; density
    ratios survive mixtures (sampling) and products (rounds), and the continuous Gaussian is rotation invariant, so any
    shift of norm at most B is covered. dp_accounting's one-dimensional discrete Gaussian is no bound for vectors.

    | case | result |
    |---|---|
    | sigma 0 | no noise: the event is ``non_private``, which the mechanism books |
    | 0 < sigma < 3 | ParameterError |
    """

    sigma: Fraction
    honest_shares: int
    sensitivity2: int
    coordinates: int

    def __post_init__(self) -> None:
        if self.sigma and not self.sigma >= LEAST_SIGMA:
            raise ParameterError(
                f"A noise share of {float(self.sigma):g} steps is too fine for its grid.",
                f"Sums of shares are Gaussian enough from {LEAST_SIGMA:g} steps on.",
                "Use a finer grid (more bits), which choose_codec does by itself.",
            )
        if self.honest_shares < 1:
            raise ParameterError(
                f"{self.honest_shares} honest noise shares hide nobody.",
                "With this threshold and so many colluders a sum may hold no honest share.",
                "Raise min_cohort or lower colluders.",
            )

    @classmethod
    def sized(cls, multiplier: float, sensitivity2: int, honest_shares: int, coordinates: int) -> ShareNoise:
        """The share for a noise multiplier of the worst sum; sigma is rounded up to 1/64 of a step."""
        if not 0 <= multiplier < math.inf:
            raise ParameterError(
                f"noise_multiplier={multiplier} makes no noise.",
                "It must be zero or more, and finite.",
                "Check the recipe.",
            )
        if multiplier == 0:
            return cls(Fraction(0), honest_shares, sensitivity2, coordinates)
        sigma = sized_sigma(multiplier, sensitivity2, honest_shares)
        return cls(Fraction(math.ceil(_GRID * sigma), _GRID), honest_shares, sensitivity2, coordinates)

    @cached_property
    def _smoothing(self) -> float:
        return next((r for r in _SMOOTHING if self.coordinates * smoothing_ratio(r) <= _SMALL), _SMOOTHING[-1])

    @cached_property
    def effective_multiplier(self) -> float:
        """z of the event: sqrt(a sigma^2 - r^2) / B, rounded down in the last bits."""
        variance = self.honest_shares * self.sigma**2 - Fraction(self._smoothing) ** 2
        return math.sqrt(variance / self.sensitivity2) * (1 - 1e-12) if self.sigma else 0.0

    @cached_property
    def slack(self) -> float:
        """Lambda of one round: D (tau + kappa)."""
        tau = folding_ratio(self.honest_shares, float(self.sigma))
        return self.coordinates * (tau + smoothing_ratio(self._smoothing)) if self.sigma else 0.0

    @property
    def total_variation(self) -> float:
        """Of all draws of one round at one client against the exact law."""
        return self.coordinates * DiscreteGaussian.of(self.sigma).total_variation

    def event(self, sample_rate: float, *, clients: int = 1, rounding_failure: float = 0.0) -> GaussianEvent:
        """The booked event, with its slack.

        Args:
            sample_rate: rate of coins tossed inside clients, unseen by the adversary; 1.0 for none.
            clients: most shares in one sum; each is within the sampler's total variation of the exact law.
            rounding_failure: beta of the codec. A round whose dither is bad may show the unit in full; replacing the unit
                by nothing there costs a total variation of beta, and of q beta if the unit takes part with probability q.
        """
        variation = clients * self.total_variation + sample_rate * rounding_failure
        return GaussianEvent(self.effective_multiplier, float(sample_rate), "discrete", self.slack, variation)

    def variance_of(self, shares: int) -> float:
        """Variance of the noise in every coordinate of a sum with this many shares, in squared steps."""
        return float(shares * self.sigma**2)

    def to_json(self) -> dict[str, Any]:
        """Canonical fields, for the plan's digest."""
        return {
            "sigma": [self.sigma.numerator, self.sigma.denominator],
            "honest_shares": self.honest_shares,
            "sensitivity2": self.sensitivity2,
            "coordinates": self.coordinates,
        }


def sized_sigma(multiplier: float, sensitivity2: int, honest_shares: int) -> float:
    """Standard deviation of one of ``honest_shares`` shares that together reach the multiplier, after the smoothing."""
    if multiplier == 0:
        return 0.0
    return math.sqrt((multiplier**2 * sensitivity2 + _SMOOTHING[-1] ** 2) / max(honest_shares, 1))
