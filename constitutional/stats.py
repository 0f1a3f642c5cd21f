"""Intervals for the numbers that are reported."""

import math
from collections.abc import Hashable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A confidence interval, both ends included."""

    low: float
    high: float


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval for a proportion, without continuity correction; (0, 1) if nothing was counted.

    Wilson (1927), "Probable inference, the law of succession, and statistical inference"; the formula is method 3 of
    Newcombe (1998), "Two-sided confidence intervals for the single proportion". With p = successes / n and z the normal
    quantile, the ends are (p + z²/2n ∓ z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n). Unlike p ± z·√(p(1−p)/n), it stays within
    0 and 1 and has a width when all or none succeed.
    """
    _check_confidence(confidence)
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials")
    if n == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = successes / n
    middle = p + z**2 / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    # At the extremes an end is exactly 0 or 1; rounding would leave it a little inside, or outside.
    low = 0.0 if successes == 0 else (middle - half) / scale
    high = 1.0 if successes == n else (middle + half) / scale
    return Interval(low, high)


def bootstrap_mean(
    values: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    seed: int,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> Interval:
    """The percentile bootstrap interval of a mean, drawing whole clusters; (−inf, inf) from fewer than two clusters.

    Values of one cluster (answers to the same prompt, say) are not independent: drawing them one by one would promise
    too narrow an interval. So a resample draws as many clusters as there are, with replacement, and takes the mean of
    all their values (Davison and Hinkley (1997), "Bootstrap Methods and their Application", sections 3.8 and 5.3).
    Without `clusters` each value is its own. One cluster says nothing about how clusters differ, hence the infinite
    interval.
    """
    _check_confidence(confidence)
    if clusters is not None and len(clusters) != len(values):
        raise ValueError(f"{len(values)} values, but {len(clusters)} clusters")
    if not all(map(math.isfinite, values)):
        raise ValueError("A value is missing or infinite; leave out what was not measured, and count it")
    sums: dict[Hashable, float] = {}
    counts: dict[Hashable, int] = {}
    for cluster, value in zip(range(len(values)) if clusters is None else clusters, values, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + value
        counts[cluster] = counts.get(cluster, 0) + 1
    n_clusters = len(sums)
    if n_clusters < 2:
        return Interval(-math.inf, math.inf)

    cluster_sums = np.array(list(sums.values()))
    cluster_counts = np.array(list(counts.values()))
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    for i in range(resamples):  # one at a time: all at once would need resamples x clusters numbers
        drawn = generator.integers(n_clusters, size=n_clusters)
        means[i] = cluster_sums[drawn].sum() / cluster_counts[drawn].sum()
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1, such as 0.95")
