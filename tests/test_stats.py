import math

import pytest

from constitutional.stats import Interval, bootstrap_mean, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_agrees_with_the_published_table(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=0.00005)


def test_wilson_at_the_extremes_reduces_to_a_short_formula() -> None:
    # All of n succeed: ((1 + z²/2n) - z²/2n) / (1 + z²/n) = n / (n + z²), and z² = 3.8415 at 95%.
    assert wilson(10, 10) == pytest.approx((10 / 13.8415, 1.0), abs=1e-5)
    assert wilson(10, 10).high == 1.0
    assert wilson(0, 10) == pytest.approx((0.0, 3.8415 / 13.8415), abs=1e-5)
    assert wilson(0, 10).low == 0.0


def test_wilson_takes_the_confidence_into_account() -> None:
    # At 68.27% z is 1, so all of 3 gives 3 / (3 + 1).
    assert wilson(3, 3, confidence=0.6826894921) == pytest.approx((0.75, 1.0), abs=1e-9)


def test_nothing_counted_could_be_any_proportion() -> None:
    assert wilson(0, 0) == Interval(0.0, 1.0)


@pytest.mark.parametrize(("successes", "n"), [(3, 2), (-1, 2), (0, -1)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"{successes} successes in {n} trials"):
        wilson(successes, n)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_a_confidence_is_no_percentage(confidence: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        wilson(1, 2, confidence)
    with pytest.raises(ValueError, match="between 0 and 1"):
        bootstrap_mean([0, 1], seed=0, confidence=confidence)


def test_two_values_are_resampled_to_three_means() -> None:
    # The means are 0, 1/2 and 1 with probabilities 1/4, 1/2 and 1/4: the outer
    # 2.5% lie in 0 and 1, the outer 30% in 1/2.
    assert bootstrap_mean([0, 1], seed=0) == (0.0, 1.0)
    assert bootstrap_mean([0, 1], seed=0, confidence=0.4) == (0.5, 0.5)


def test_clusters_are_drawn_whole_and_weigh_by_their_size() -> None:
    # Drawn: aa, ab or ba, bb. Their means: 0/6, 1/4, 2/2 with probabilities 1/4, 1/2, 1/4.
    # The mean of the two clusters' means would be 1/2 in the middle, and single values would never be 1 this often.
    values, clusters = [0, 0, 0, 1], ["a", "a", "a", "b"]
    assert bootstrap_mean(values, clusters, seed=0, confidence=0.4) == (0.25, 0.25)
    assert bootstrap_mean(values, clusters, seed=0) == (0.0, 1.0)


def test_repeating_every_value_within_its_cluster_adds_no_certainty() -> None:
    values = [0.0, 1.0, 4.0, 9.0, 16.0]
    repeated = [value for value in values for _ in range(4)]
    clusters = [number for number in range(5) for _ in range(4)]
    assert bootstrap_mean(repeated, clusters, seed=3) == pytest.approx(bootstrap_mean(values, seed=3))


def test_many_values_give_the_interval_of_the_normal_approximation() -> None:
    # 200 zeros and 200 ones: standard error √(0.25/400) = 0.025, so 0.5 ± 1.96 · 0.025 = (0.451, 0.549).
    assert bootstrap_mean([0, 1] * 200, seed=1) == pytest.approx((0.451, 0.549), abs=0.005)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    values = [0.1, 0.7, 0.2, 0.9, 0.4, 0.35, 0.8]
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


@pytest.mark.parametrize(("values", "clusters"), [([], None), ([0.5], None), ([0.5, 0.6], ["a", "a"])])
def test_fewer_than_two_clusters_tell_nothing(values: list[float], clusters: list[str] | None) -> None:
    assert bootstrap_mean(values, clusters, seed=0) == Interval(-math.inf, math.inf)


def test_a_missing_value_is_refused() -> None:
    with pytest.raises(ValueError, match="leave out what was not measured"):
        bootstrap_mean([0.5, math.nan], seed=0)


def test_as_many_clusters_as_values_are_needed() -> None:
    with pytest.raises(ValueError, match="2 values, but 1 clusters"):
        bootstrap_mean([0, 1], ["a"], seed=0)
