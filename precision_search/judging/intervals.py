"""Confidence intervals for shares: what a count of exact samples says about the next ones."""

from __future__ import annotations


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
    from scipy.stats import binomtest  # here, because it takes long to load

    found = binomtest(successes, n).proportion_ci(confidence_level=confidence, method="wilson")
    # What rounding leaves of the ends would read as "nearly certain".
    return 0.0 if successes == 0 else float(found.low), 1.0 if successes == n else float(found.high)
