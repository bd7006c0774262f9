"""The bounds behind codec and noise, each with its derivation; none of them depends on data.

[KLS21] Kairouz, Liu and Steinke, ICML 2021, arXiv 2102.06387. [CKS20] Canonne, Kamath and Steinke, NeurIPS 2020, arXiv
2004.00010. [BIK17] Bonawitz et al., CCS 2017. Peikert, CRYPTO 2010 (the convolution idea of ``smoothing_ratio``).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from privacy.noise import eta


def rounded_norm2(steps: float, dimension: int, failure: float) -> int:
    """Largest squared norm of a stochastically rounded vector of norm ``steps``, except with probability ``failure``.

    [KLS21], Proposition 22. Write y_i = x_i + e_i with E e_i = 0. Then ||y||^2 = ||x||^2 + sum of (2 x_i e_i + e_i^2).
    The mean of the sum is sum p_i (1 - p_i) <= D/4. Every term takes two values that differ by |2 floor(x_i) + 1| <=
    2 |x_i| + 1, and sum (2 |x_i| + 1)^2 <= (2 c + sqrt D)^2, so by Hoeffding the sum exceeds its mean by
    (c + sqrt(D)/2) sqrt(2 ln(1/failure)) with probability at most ``failure``. With certainty ||y|| <= c + sqrt D.
    Norms of integer vectors have integer squares, hence the floor.
    """
    certain = (steps + math.sqrt(dimension)) ** 2
    if failure <= 0:
        return math.floor(certain)
    tail = math.sqrt(2 * math.log(1 / failure)) * (steps + math.sqrt(dimension) / 2)
    return math.floor(min(steps**2 + dimension / 4 + tail, certain))


def smoothing_ratio(r: float) -> float:
    """kappa(r): N_Z(mu, s^2), s >= r, is within e^{+-kappa} of a randomised image of the continuous N(mu, s^2 - r^2).

    Draw g from N(mu, s^2 - r^2), then z with weight exp(-(z-g)^2/2r^2). The second step knows nothing of the data; its
    normaliser is constant within 1 +- eta(r) (``noise.eta``), and the Gaussians convolve to exp(-(z-mu)^2/2s^2). So per
    coordinate the law of z and N_Z(mu, s^2), mu an integer, have a ratio within ((1+eta)/(1-eta))^{+-1}.
    """
    ripple = eta(r)
    return math.log1p(ripple) - math.log1p(-ripple) if ripple < 1 else math.inf


def folding_ratio(shares: int, sigma: float) -> float:
    """tau: the sum of ``shares`` draws of N_Z(0, sigma^2) is within e^{+-tau} of N_Z(0, shares sigma^2), per coordinate.

    Folding N_Z(0, s^2) and N_Z(0, t^2) gives exp(-x^2/2(s^2+t^2)) times sum_y exp(-(y - x s^2/(s^2+t^2))^2/2r^2) with
    r^2 = s^2 t^2/(s^2+t^2), and that sum is constant within 1 +- eta(r). The folds add up. [KLS21], Theorem 1 is the same
    with another constant. Shares beyond ``shares`` are independent of the rest: post-processing.
    """
    return sum(smoothing_ratio(sigma * math.sqrt(j / (j + 1))) for j in range(1, shares))


def clamp_within(bits: int, clients: int, sigma: float, coordinates: int, failure: float) -> int:
    """The largest L such that ``clients`` coordinates in [-L, L], each with noise N_Z(0, sigma^2), do not wrap.

    N_Z(0, sigma^2) is sub-Gaussian with parameter sigma ([CKS20], section 3), so the noise of the sum exceeds
    sigma sqrt(2 n ln(2 D / failure)) somewhere with probability at most ``failure``, whatever the inputs. Negative: the
    ring is too small.
    """
    noise = sigma * math.sqrt(clients) * math.sqrt(2 * math.log(2 * coordinates / failure))
    return math.floor(((1 << (bits - 1)) - 1 - noise) / clients)


def wrap_probability(bits: int, clients: int, clamp: int, sigma: float, coordinates: int) -> float:
    """Probability at most that some coordinate of the sum wraps (not a privacy event: it happens after the noise)."""
    room = (1 << (bits - 1)) - 1 - clients * clamp
    if sigma == 0:
        return 0.0 if room >= 0 else 1.0
    return min(1.0, 2 * coordinates * math.exp(-(max(room, 0) ** 2) / (2 * clients * sigma**2)))


def honest_shares(largest: int, least: int, threshold: int, colluders: int, *, strict: bool) -> int:
    """The least number of honest vectors in any sum that can be unmasked, whatever the server says to whom.

    Args:
        largest: most members of a cohort (n_inv).
        least: fewest members of a cohort, and of survivors, that a client answers for (n_min).
        threshold: shares that rebuild a secret (t).
        colluders: members that work with the server (c).
        strict: clients unmask only after ``threshold`` of them signed one list of survivors.

    Strict: two lists cannot both have t signatures, because 2t > n + c ([BIK17], section 6); the one has n_min - c honest
    members. Without that trip the server may show every client another cohort and another list of survivors. Let c members
    be corrupt (fewer is no worse: a corrupt one can act honestly), h = n_inv - c the others. A = honest clients whose own
    pad can be rebuilt, B = whose mask key can.

    1. Nobody is in A and B: that takes t - c honest answers each, of h, and 2t > n + c.
    2. Clients shown the same roster, cohort X and model form a class; pads between classes do not cancel (their keys
       differ). A class gives away its sum only if every honest member of X outside B is in the class and in A, and then
       only the sum over all of them: X_h - b, where X_h counts the honest members of X and b those of them in B.
    3. Let x of the X_h be in the class; the other y = X_h - x must be in B. Rebuilding a mask key takes t - c different
       honest lists that omit its owner; the class's lists omit at most e = X_h + c - n_min members each, the other h - x
       at most D = n_inv - n_min, and no list omits its own client. Counting the omissions of the b owners:
       (b - y) min(e, b-1) + (x - b + y) min(e, b) + y min(D, b-1) + (h - x - y) min(D, b) >= (t - c) b.

    The bound is the least X_h - b over all X_h, x and b < X_h that this allows. It is checked against all split views of
    small cohorts in the tests.
    """
    if strict:
        return least - colluders
    return _split_view(largest, least, threshold, colluders)


@lru_cache(maxsize=256)
def _split_view(largest: int, least: int, threshold: int, corrupt: int) -> int:
    h, omitted, needed = largest - corrupt, largest - least, threshold - corrupt
    worst = h
    for members in range(least - corrupt, h + 1):
        narrow = members + corrupt - least
        for b in range(max(1, members - worst + 1), min(members - 1, h * omitted // needed) + 1):
            y = np.arange(b + 1)  # of the b owners, those outside the class
            omissions = (b - y) * min(narrow, b - 1) + (members - b) * min(narrow, b)
            omissions += y * min(omitted, b - 1) + (h - members) * min(omitted, b)
            if (omissions >= needed * b).any():
                worst = members - b
        worst = min(worst, members)
    return worst
