"""Confidence intervals for shares: what a count of exact samples says about the next ones."""

from __future__ import annotations

import math
from statistics import NormalDist


def binomial_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval for a share seen as `successes` of `n` independent trials.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927), 209-212. It
    keeps its coverage near 0 and 1, where exact match lives and where the textbook interval shrinks to a point
    (L. D. Brown, T. T. Cai, A. DasGupta, "Interval estimation for a binomial proportion", Statistical Science 16
    (2001), 101-133).

    Args:
        successes: from 0 to `n`.
        n: at least 1.
        confidence: between 0 and 1, both excluded.

    Returns:
        Lower and upper end, each from 0 to 1; the share itself lies between them.

    Raises:
        ValueError: an argument is out of range.
    """
    if not 0 <= successes <= n or n < 1 or not 0.0 < confidence < 1.0:
        raise ValueError(f"no interval for {successes} of {n} at confidence {confidence}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / n
    scale = 1.0 / (1.0 + z * z / n)
    center = scale * (share + z * z / (2 * n))
    half = scale * z * math.sqrt(share * (1.0 - share) / n + z * z / (4 * n * n))
    # At both ends the formula gives the end itself; what rounding leaves of it would read as "nearly certain".
    low = 0.0 if successes == 0 else center - half
    high = 1.0 if successes == n else center + half
    return low, high
