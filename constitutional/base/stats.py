"""The numbers that are reported, and their intervals."""

import math
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from functools import cache
from itertools import chain, repeat
from statistics import NormalDist, correlation
from typing import Final, NamedTuple

import numpy as np

from constitutional.base.text import words

_Z: Final = NormalDist().inv_cdf(0.975)
"""The normal quantile of a 95% interval."""
_MANY: Final = 1e6
"""Degrees of freedom beyond which Student's distribution is the normal one; far beyond, its formulas lose digits."""
RESAMPLES: Final = 2000
"""Resamples of a bootstrap."""
FEWEST: Final = 10
"""Observations below which a correlation or a calibration error is not given, and no effect is called clear."""


class Interval(NamedTuple):
    """A 95% confidence interval, both ends included."""

    low: float
    high: float


def wilson(successes: float, n: int) -> Interval:
    """Wilson's score interval for a proportion, without continuity correction; (0, 1) if nothing was counted.

    Wilson (1927), "Probable inference, the law of succession, and statistical inference"; the formula is method 3 of
    Newcombe (1998), "Two-sided confidence intervals for the single proportion". With p = successes / n and z the normal
    quantile, the ends are (p + z²/2n ∓ z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n). Unlike p ± z·√(p(1−p)/n), it stays within
    0 and 1 and has a width when all or none succeed. A half success (a tie) makes the interval wider than it need be.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials")
    return _wilson(successes / n, n) if n else Interval(0.0, 1.0)


def _wilson(p: float, n: float) -> Interval:
    middle = p + _Z**2 / (2 * n)
    half = _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    scale = 1 + _Z**2 / n
    # At the extremes an end is exactly 0 or 1; rounding would leave it a little inside, or outside.
    return Interval(0.0 if p == 0 else (middle - half) / scale, 1.0 if p == 1 else (middle + half) / scale)


def clustered_share(outcomes: Sequence[float], clusters: Sequence[Hashable]) -> Interval:
    """The interval of a share whose outcomes (0 to 1) depend on each other within clusters; (0, 1) from one cluster.

    Wilson's interval with the effective sample size p(1 − p)/v in place of n, as Korn and Graubard (1998), "Confidence
    intervals for proportions with small expected number of positive counts estimated from survey data", do with
    Clopper's. v is the variance of the share between clusters, k/(k − 1)·Σ(s − p·m)²/n², with s the sum and m the
    number of a cluster's outcomes. The size is at most n, at least n²/Σm² (as if a cluster were one observation), and
    is multiplied by (z/t)², t being Student's quantile with k − 1 degrees of freedom. With clusters of one outcome it
    is Wilson's interval.
    """
    if len(clusters) != len(outcomes) or not all(0 <= outcome <= 1 for outcome in outcomes):
        raise ValueError(f"{len(outcomes)} outcomes from 0 to 1 need a cluster each; there are {len(clusters)}")
    by_cluster: dict[Hashable, list[float]] = {}
    for outcome, cluster in zip(outcomes, clusters, strict=True):
        by_cluster.setdefault(cluster, []).append(outcome)
    alike = Counter((math.fsum(group), len(group)) for group in by_cluster.values())
    return _clustered(math.fsum(outcomes), alike.items())


def share_of_clusters(alike: Mapping[tuple[int, int], int]) -> Interval:
    """The same of outcomes that are true or not, from how many clusters have so many true ones and so many in all."""
    return _clustered(float(sum(true * count for (true, _), count in alike.items())), alike.items())


def _clustered(total: float, alike: Collection[tuple[tuple[float, int], int]]) -> Interval:
    """From the sum of all outcomes; and of clusters the sum and the number of their outcomes, and how many are such."""
    k, n = sum(count for _, count in alike), sum(m * count for (_, m), count in alike)
    if k == n:
        return wilson(total, n)
    if k < 2:
        return Interval(0.0, 1.0)
    p = total / n
    squares = chain.from_iterable(repeat((s - p * m) ** 2, count) for (s, m), count in alike)
    variance = k / (k - 1) * math.fsum(squares) / n**2
    fewest = n**2 / sum(m**2 * count for (_, m), count in alike)
    # Where all clusters have the same share, rounding leaves a little.
    effective = min(n, max(fewest, p * (1 - p) / variance)) if variance > 1e-20 else fewest
    return _wilson(p, effective * (_Z / student_quantile(0.95, k - 1)) ** 2)


def student_p(t: float, freedom: float) -> float:
    """The two-sided p-value of `t` by Student's distribution with 1 or more degrees of freedom.

    With t = √ν·tan θ it is 2/B(½, ν/2) times the integral of cos^(ν−1) from θ to π/2 (Abramowitz and Stegun (1964),
    26.7.1), here by Gauss and Legendre's rule. Very many degrees of freedom give the normal distribution.
    """
    if freedom > _MANY:
        return 2 * NormalDist().cdf(-abs(t))
    start = math.atan(abs(t) / math.sqrt(freedom))
    half = min(math.pi / 2 - start, 10 / math.sqrt(freedom)) / 2  # further on there is less than e^−50 of it
    nodes, weights = _gauss_legendre()
    integral = half * float(np.cos(start + half * (1 + nodes)) ** (freedom - 1) @ weights)
    beta = math.lgamma(0.5) + math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2)
    return min(1.0, 2 * math.exp(-beta) * integral)


def student_quantile(level: float, freedom: float) -> float:
    """The t within which, on both sides of 0, the share `level` of Student's distribution lies."""
    if freedom > _MANY:
        return NormalDist().inv_cdf((1 + level) / 2)
    low, high = 0.0, 2.0
    while student_p(high, freedom) > 1 - level:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_p(middle, freedom) > 1 - level else (low, middle)
    return high


@cache
def _gauss_legendre() -> tuple["np.ndarray[tuple[int], np.dtype[np.float64]]", ...]:
    return np.polynomial.legendre.leggauss(100)


def bootstrap_mean(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, *, seed: int, confidence: float = 0.95
) -> Interval:
    """The percentile bootstrap interval of a mean, drawing whole clusters; (−inf, inf) from fewer than two clusters.

    Values of one cluster (answers to the same prompt, say) are not independent: drawing them one by one would promise
    too narrow an interval. So a resample draws as many clusters as there are, with replacement, and takes the mean of
    all their values (Davison and Hinkley (1997), "Bootstrap Methods and their Application", sections 3.8 and 5.3).
    Without `clusters` each value is its own. One cluster says nothing about how clusters differ, hence the infinite
    interval.
    """
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
    means = np.empty(RESAMPLES)
    for i in range(RESAMPLES):  # one at a time: all at once would need RESAMPLES x clusters numbers
        drawn = generator.integers(n_clusters, size=n_clusters)
        means[i] = cluster_sums[drawn].sum() / cluster_counts[drawn].sum()
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def paired_interval(gained: float, lost: float, n: float, level: float = 0.95) -> Interval:
    """The interval of a rate's change over the same n items, of which so many gained and lost what is counted.

    Agresti and Min (2005), "Simple improved confidence intervals for comparing matched proportions": half an item is
    added to each of the four cells (had it before or not, has it after or not). A bootstrap promises too much where few
    items changed: to it, four of a hundred that all gained are a clear change, which a coin makes one time in eight.
    """
    total, difference, moved = n + 2, gained - lost, gained + lost + 1
    middle = difference / total
    half = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(moved - difference**2 / total) / total
    return Interval(max(-1.0, middle - half), min(1.0, middle + half))


def clustered_mean(values: Sequence[float], clusters: Sequence[Hashable]) -> Interval:
    """The interval of a mean whose values depend on each other within clusters; (−inf, inf) from fewer than two.

    Miller (2024), "Adding error bars to evals" (arXiv 2411.00640), section 2.2: the variance of the mean is
    Σ_c (Σ_{i in c} (s_i − mean))² / n². The small-sample factor k/(k − 1) and Student's quantile with k − 1 degrees of
    freedom are added, k being the number of clusters.
    """
    if len(clusters) != len(values):
        raise ValueError(f"{len(values)} values, but {len(clusters)} clusters")
    n, sums, _ = _by_cluster(values, clusters)
    k = len(sums)
    if k < 2:
        return Interval(-math.inf, math.inf)
    mean = math.fsum(values) / n
    half = student_quantile(0.95, k - 1) * math.sqrt(k / (k - 1) * math.fsum(s * s for s in sums)) / n
    return Interval(mean - half, mean + half)


def clustered_change(differences: Sequence[float], clusters: Sequence[Hashable]) -> Interval:
    """The interval of a rate's change over the same items, which depend on each other within clusters.

    `differences` are −1, 0 or 1; of one cluster alone the interval is (−1, 1). It is `paired_interval` with counts
    divided by the design effect: the variance between clusters, as in `clustered_mean`, over that of independent items.
    The effect is at least 1 and at most Σm²/n (as if a cluster of m items were one), and multiplied by (t/z)², t being
    Student's quantile with k − 1 degrees of freedom. With clusters of one item it is `paired_interval`.
    """
    n, sums, sizes = _by_cluster(differences, clusters)
    if len(sums) < 2:
        return Interval(-1.0, 1.0)
    mean = math.fsum(differences) / n
    independent = math.fsum((value - mean) ** 2 for value in differences)
    largest = sum(size * size for size in sizes) / n
    effect = min(largest, max(1.0, math.fsum(s * s for s in sums) / independent)) if independent else largest
    if len(sums) < n:
        effect *= (student_quantile(0.95, len(sums) - 1) / _Z) ** 2
    gained, lost = (sum(value == sign for value in differences) / effect for sign in (1, -1))
    return paired_interval(gained, lost, n / effect)


def _by_cluster(values: Sequence[float], clusters: Sequence[Hashable]) -> tuple[int, list[float], list[int]]:
    """How many values there are, and of each cluster the sum of its distances from the mean, and its size."""
    mean = math.fsum(values) / len(values)
    groups: dict[Hashable, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        groups.setdefault(cluster, []).append(value - mean)
    return len(values), [math.fsum(group) for group in groups.values()], [len(group) for group in groups.values()]


def sigmoid(x: float) -> float:
    """1 / (1 + e^−x), without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float | None:
    """Σ w·x / Σ w; None where nothing has a weight."""
    total = math.fsum(weights)
    if len(values) != len(weights) or not all(weight >= 0 for weight in weights):
        raise ValueError(f"{len(values)} values with weights {list(weights)}; each needs one, of 0 or more")
    return math.fsum(w * x for w, x in zip(weights, values, strict=True)) / total if total else None


class WinRate(NamedTuple):
    """How often one side is preferred."""

    value: float
    """(wins + ties / 2) / (wins + ties + losses), in [0, 1]; 0.5 is even."""
    interval: Interval


def win_rate(probabilities: Sequence[float]) -> WinRate:
    """The share of comparisons that a side wins, from the probability that it is better in each; exactly 0.5 is a tie.

    The interval is Wilson's. Comparisons are taken as independent: give one for each prompt.
    """
    if not probabilities:
        raise ValueError("There is no comparison; a win rate needs one")
    if not all(0 <= p <= 1 for p in probabilities):
        raise ValueError("A probability is missing or outside of 0 to 1; leave out what cannot be read, and count it")
    won = sum((p > 0.5) + (p == 0.5) / 2 for p in probabilities)
    return WinRate(won / len(probabilities), wilson(won, len(probabilities)))


def calibration_error(probabilities: Sequence[float], outcomes: Sequence[float], bins: int = 10) -> float | None:
    """The expected calibration error Σ_b (n_b / n)·|mean probability in b − mean outcome in b|: from 0 (none) to 1.

    None from fewer than `FEWEST` outcomes.

    Naeini, Cooper and Hauskrecht (2015), "Obtaining well calibrated probabilities using Bayesian binning"; the bins are
    of equal width, a probability on an edge belongs to the upper one, and 1 to the last. Outcomes are 0 or 1, or soft
    targets between. With few items in a bin the error is biased upwards.
    """
    if len(probabilities) != len(outcomes):
        raise ValueError(f"{len(probabilities)} probabilities and {len(outcomes)} outcomes; as many are needed")
    if not all(0 <= value <= 1 for value in (*probabilities, *outcomes)):
        raise ValueError("A probability or an outcome is missing or outside of 0 to 1")
    if len(outcomes) < FEWEST:
        return None
    gaps = [0.0] * bins  # Σ (probability − outcome) of each bin, which is n_b times the difference of its means
    for p, outcome in zip(probabilities, outcomes, strict=True):
        # p · bins can miss an edge by rounding: 0.29 · 100 is 28.999999999999996.
        gaps[min(int(p * bins + 1e-9), bins - 1)] += p - outcome
    return sum(map(abs, gaps)) / len(probabilities)


def pearson(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Pearson's correlation, in [−1, 1]; None from fewer than `FEWEST` pairs, or where either side does not vary."""
    if len(xs) != len(ys):
        raise ValueError(f"{len(xs)} values against {len(ys)}")
    if not all(map(math.isfinite, (*xs, *ys))):
        raise ValueError("A value is missing or infinite; leave out what was not measured, and count it")
    if len(xs) < FEWEST or min(xs) == max(xs) or min(ys) == max(ys):
        return None
    return max(-1.0, min(1.0, correlation(xs, ys)))


class Distinct(NamedTuple):
    """How varied some texts are."""

    value: float
    """Different n-grams over all, in [0, 1]; low where texts say the same again and again."""
    interval: Interval
    n: int
    """The number of n-grams that were looked at."""


def distinct_ngrams(texts: Iterable[str], n: int, at_most: int | None = None) -> Distinct:
    """The share of different ones among the texts' n-grams of words, lower-case; 0 of 0 where there is none.

    Li et al. (2016), "A diversity-promoting objective function for neural conversation models", section 5. The share
    falls with the amount of text, so texts of different lengths are compared over the same number: the first `at_most`.
    The interval is the jackknife's, leaving out one text at a time (Efron and Tibshirani (1993), "An Introduction to
    the Bootstrap", chapter 11): drawing texts with replacement would repeat n-grams, and so make the share smaller.
    """
    counts_by_text: list[Counter[tuple[str, ...]]] = []
    total = 0
    for text in texts:
        tokens = words(text.lower())
        ngrams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
        if at_most is not None:
            ngrams = ngrams[: at_most - total]
        total += len(ngrams)
        counts_by_text.append(Counter(ngrams))
    if total == 0:
        return Distinct(0.0, Interval(0.0, 1.0), 0)

    texts_with = Counter(ngram for counts in counts_by_text for ngram in counts)
    value = len(texts_with) / total
    # A text's absence takes away its n-grams, and those that stand in no other text are no longer among the different.
    without = [
        (len(texts_with) - sum(texts_with[ngram] == 1 for ngram in counts)) / (total - counts.total())
        for counts in counts_by_text
        if counts and counts.total() < total
    ]
    k = len(without)
    if k < 2:
        return Distinct(value, Interval(0.0, 1.0), total)
    mean = math.fsum(without) / k
    half = _Z * math.sqrt((k - 1) / k * math.fsum((share - mean) ** 2 for share in without))
    return Distinct(value, Interval(max(0.0, value - half), min(1.0, value + half)), total)
