import math

import numpy as np
import pytest

from constitutional.base.stats import (
    FEWEST,
    Interval,
    bootstrap_mean,
    calibration_error,
    clustered_change,
    clustered_mean,
    clustered_share,
    distinct_ngrams,
    paired_interval,
    pearson,
    share_of_clusters,
    student_p,
    student_quantile,
    weighted_mean,
    wilson,
    win_rate,
)


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


def test_nothing_counted_could_be_any_proportion() -> None:
    assert wilson(0, 0) == Interval(0.0, 1.0)


@pytest.mark.parametrize(("successes", "n"), [(3, 2), (-1, 2), (0, -1)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"{successes} successes in {n} trials"):
        wilson(successes, n)


def test_a_clustered_share_of_single_outcomes_is_wilsons() -> None:
    assert clustered_share([1, 1, 0, 1], "abcd") == wilson(3, 4)
    assert clustered_share([], []) == Interval(0.0, 1.0)


def test_a_clustered_share_counts_clusters_where_their_outcomes_agree() -> None:
    # 20 clusters of five that agree, half of them right. The variance between them is 20/19 · 20 · 2.5² / 100² = 1/76,
    # so the effective size is 0.25 · 76 = 19, no less than the least, 100² / (20 · 5²) = 20; times (z/t)², with
    # t = 2.0930 for 19 degrees of freedom: 20 · (1.95996 / 2.0930)² = 17.539. z²/n = 0.21903; the half width is
    # 1.95996 · √(0.25 / 17.539 + 0.21903 / (4 · 17.539)) / 1.21903 = 0.2119.
    found = clustered_share([1.0] * 50 + [0.0] * 50, [number // 5 for number in range(100)])
    assert found == pytest.approx((0.5 - 0.2119, 0.5 + 0.2119), abs=2e-4)
    assert found.low < wilson(50, 100).low


def test_one_cluster_says_nothing_of_others() -> None:
    assert clustered_share([1.0, 1.0], ["a", "a"]) == Interval(0.0, 1.0)


def test_a_clustered_share_follows_from_how_many_clusters_are_alike() -> None:
    outcomes = [1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    clusters = [*"aaabbbccd"]  # two of three, one of three, two of two, one of one
    assert share_of_clusters({(2, 3): 1, (1, 3): 1, (2, 2): 1, (1, 1): 1}) == clustered_share(outcomes, clusters)
    assert share_of_clusters({(5, 5): 10, (0, 5): 10}) == clustered_share(
        [1.0] * 50 + [0.0] * 50, [number // 5 for number in range(100)]
    )
    assert share_of_clusters({(1, 1): 3, (0, 1): 1}) == wilson(3, 4)


def test_a_clustered_share_that_is_all_or_nothing_keeps_a_width() -> None:
    assert clustered_share([1.0] * 20, [number // 2 for number in range(20)]).high == 1.0
    assert 0.6 < clustered_share([1.0] * 20, [number // 2 for number in range(20)]).low < wilson(10, 10).low + 1e-9


@pytest.mark.parametrize(("outcomes", "clusters"), [([1.0], []), ([2.0], ["a"]), ([math.nan], ["a"])])
def test_a_clustered_share_needs_outcomes_from_0_to_1_and_their_clusters(
    outcomes: list[float], clusters: list[str]
) -> None:
    with pytest.raises(ValueError, match="outcomes from 0 to 1"):
        clustered_share(outcomes, clusters)


@pytest.mark.parametrize(("rate", "prompts"), [(0.7, 12), (0.7, 40), (0.9, 40)])
def test_a_clustered_interval_covers_the_share_as_often_as_it_says(rate: float, prompts: int) -> None:
    # Five outcomes a prompt, whose own rates are of a beta distribution with a correlation of 0.3 within a prompt.
    generator = np.random.default_rng(0)
    clusters = [number // 5 for number in range(5 * prompts)]
    covered = {"clustered": 0, "Wilson": 0}
    for _ in range(1000):
        rates = generator.beta(rate * 0.7 / 0.3, (1 - rate) * 0.7 / 0.3, size=prompts)
        outcomes = (generator.random((prompts, 5)) < rates[:, None]).ravel().astype(float).tolist()
        intervals = {"clustered": clustered_share(outcomes, clusters), "Wilson": wilson(sum(outcomes), len(outcomes))}
        for name, (low, high) in intervals.items():
            covered[name] += low <= rate <= high
    assert covered["clustered"] >= 930
    assert covered["Wilson"] < 900


@pytest.mark.parametrize("right", [14, 15, 16])
def test_clusters_of_the_same_share_are_as_good_as_so_many_outcomes(right: int) -> None:
    # Nothing varies between the five, but for rounding: each counts as one outcome.
    outcomes, clusters = ([1.0] * right + [0.0] * (22 - right)) * 5, [number // 22 for number in range(110)]
    low, high = clustered_share(outcomes, clusters)
    assert low < 0.3
    assert high > 0.9


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


@pytest.mark.parametrize(
    ("gained", "clear"),
    [
        (0, False),  # and the interval is no point: what happened in none of 100 may happen in some
        (4, False),  # a fair coin falls four times the same way in 2 of 16 tries
        (6, True),  # in 2 of 64, which is 3%
    ],
)
def test_a_few_replies_that_changed_are_no_clear_change(gained: int, clear: bool) -> None:
    low, high = paired_interval(gained, 0, 100)
    assert (low > 0) is clear
    assert high > gained / 100
    assert paired_interval(0, gained, 100) == pytest.approx((-high, -low))


def test_an_interval_of_a_change_stays_within_what_a_rate_can_change_by() -> None:
    assert paired_interval(3, 0, 3).high == 1  # 3 / 5 ± 1.95996 * sqrt(4 - 9 / 5) / 5 = 0.6 ± 0.581
    assert paired_interval(0, 3, 3).low == -1


def test_a_weighted_mean_counts_each_value_by_its_weight() -> None:
    assert weighted_mean([0.9, 0.3], [1, 2]) == pytest.approx(0.5)  # (0.9 + 2 · 0.3) / 3
    assert weighted_mean([0.9, 0.3], [1, 0]) == pytest.approx(0.9)


@pytest.mark.parametrize(("values", "weights"), [([], []), ([0.9], [0.0])])
def test_without_weight_there_is_no_mean(values: list[float], weights: list[float]) -> None:
    assert weighted_mean(values, weights) is None


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [1.0, math.nan]])
def test_each_value_needs_a_weight_of_zero_or_more(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="each needs one, of 0 or more"):
        weighted_mean([0.1, 0.2], weights)


def test_a_tie_is_half_a_win() -> None:
    rate = win_rate([0.9, 0.51, 0.5, 0.1])
    assert rate.value == 0.625  # (2 + 1/2) / 4
    # Wilson with p = 0.625, n = 4, z² = 3.8415: the middle is (0.625 + 0.4802) / 1.9604 = 0.5638,
    # the half width 1.96 · √(0.2344/4 + 3.8415/64) / 1.9604 = 1.96 · 0.3444 / 1.9604 = 0.3443.
    assert rate.interval == pytest.approx((0.2194, 0.9081), abs=0.0005)


def test_how_sure_a_judge_is_does_not_make_a_win_larger() -> None:
    assert win_rate([0.51, 0.49]).value == win_rate([1.0, 0.0]).value == 0.5


@pytest.mark.parametrize("probabilities", [[], [0.5, math.nan], [1.5]])
def test_a_win_rate_needs_readable_comparisons(probabilities: list[float]) -> None:
    with pytest.raises(ValueError, match=r"needs one|leave out what cannot be read"):
        win_rate(probabilities)


def test_the_calibration_error_weighs_each_bin_by_its_items() -> None:
    # Bin 0.9-1.0 holds three of which two come true: |0.9 - 2/3|; bin 0.2-0.3 one that does: |0.2 - 1|.
    # 3/4 · 0.23333 + 1/4 · 0.8 = 0.375
    assert calibration_error([0.9, 0.9, 0.9, 0.2] * 3, [1, 1, 0, 1] * 3) == pytest.approx(0.375)


def test_perfectly_calibrated_probabilities_have_no_error() -> None:
    assert calibration_error([0.75] * 8 + [0.0, 1.0], [1, 1, 1, 0] * 2 + [0, 1]) == pytest.approx(0.0)


def test_errors_in_opposite_directions_cancel_only_within_a_bin() -> None:
    assert calibration_error([0.42, 0.48] * 5, [0.44, 0.46] * 5) == pytest.approx(0.0)
    assert calibration_error([0.42, 0.58] * 5, [0.44, 0.56] * 5) == pytest.approx(0.02)


def test_a_probability_on_an_edge_belongs_to_the_upper_bin() -> None:
    # With 0.3 and 0.35 in one bin: |(0.3 + 0.35) - (0 + 1)| / 2 = 0.175; in two it would be (0.3 + 0.65) / 2 = 0.475.
    assert calibration_error([0.3, 0.35] * 5, [0, 1] * 5) == pytest.approx(0.175)


@pytest.mark.parametrize(("probabilities", "outcomes"), [([0.5], []), ([0.5], [2.0]), ([math.nan], [1.0])])
def test_calibration_needs_an_outcome_for_each_probability(probabilities: list[float], outcomes: list[float]) -> None:
    with pytest.raises(ValueError, match="outcome"):
        calibration_error(probabilities, outcomes)


def test_pearson_on_four_points_worked_by_hand() -> None:
    # Deviations (-1.5, -0.5, 0.5, 1.5) and (-1, 0, -1, 2): Σxy = 1.5 - 0.5 + 3 = 4, Σx² = 5, Σy² = 6; 4/√30.
    # Each of them three times changes no mean.
    assert pearson([1, 2, 3, 4] * 3, [2, 3, 2, 5] * 3) == pytest.approx(4 / math.sqrt(30))
    assert pearson(range(10), range(0, -20, -2)) == pytest.approx(-1.0)


@pytest.mark.parametrize(("xs", "ys"), [([], []), ([1.0] * 12, range(12)), (range(12), [3.0] * 12)])
def test_without_variation_there_is_no_correlation(xs: list[float], ys: list[float]) -> None:
    assert pearson(xs, ys) is None


def test_fewer_than_ten_observations_say_nothing() -> None:
    assert FEWEST == 10
    assert pearson(range(9), range(9)) is None
    assert pearson(range(10), range(10)) == pytest.approx(1.0)
    assert calibration_error([0.9] * 9, [0.0] * 9) is None
    assert calibration_error([0.9] * 10, [0.0] * 10) == pytest.approx(0.9)


def test_pearson_refuses_missing_values_and_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="missing or infinite"):
        pearson([1, math.nan], [1, 2])
    with pytest.raises(ValueError, match="2 values against 1"):
        pearson([1, 2], [1])


def test_distinct_ngrams_are_counted_over_all_texts_but_not_across_them() -> None:
    texts = ["to be or not to be", "Be it so"]
    # 9 words: to be or not it so. 7 pairs: to-be be-or or-not not-to to-be, be-it it-so; no pair joins the texts.
    assert distinct_ngrams(texts, 1)[::2] == (6 / 9, 9)
    assert distinct_ngrams(texts, 2)[::2] == (6 / 7, 7)


def test_distinct_ngrams_can_be_held_to_the_same_amount_of_text() -> None:
    # The first five words: to be or not to.
    assert distinct_ngrams(["to be or", "not to be"], 1, at_most=5)[::2] == (4 / 5, 5)


def test_the_interval_of_distinct_ngrams_leaves_out_one_text_at_a_time() -> None:
    # 4 of 6 words differ. Without "a a": b c of 2 ... the three left-out shares are 3/4, 3/4 and 2/4, their mean 2/3;
    # error √(2/3 · (2 · (1/12)² + (1/6)²)) = √(2/3 · 6/144) = 1/6; 1.96/6 = 0.3267.
    found = distinct_ngrams(["a a", "b b", "c d"], 1)
    assert found.value == 4 / 6
    assert found.interval == pytest.approx((4 / 6 - 0.3267, 4 / 6 + 0.3267), abs=1e-3)


@pytest.mark.parametrize("texts", [[], [""], ["one"]])
def test_texts_without_pairs_of_words_have_no_distinct_pairs(texts: list[str]) -> None:
    assert distinct_ngrams(texts, 2) == (0.0, Interval(0.0, 1.0), 0)


@pytest.mark.parametrize(
    ("freedom", "level", "t"),
    [  # a printed table of Student's distribution
        (1, 0.95, 12.706),
        (2, 0.95, 4.303),
        (4, 0.99, 4.604),
        (9, 0.95, 2.262),
        (30, 0.999, 3.646),
        (1000, 0.95, 1.962),
        (1e13, 0.95, 1.960),
        (math.inf, 0.95, 1.960),
    ],
)
def test_student_s_quantiles_are_those_of_the_table(freedom: float, level: float, t: float) -> None:
    assert student_quantile(level, freedom) == pytest.approx(t, abs=5e-4)
    assert student_p(-t, freedom) == pytest.approx(1 - level, rel=2e-3)


def test_student_s_distribution_has_closed_forms_for_one_and_two_degrees_of_freedom() -> None:
    for t in (0.0, 0.5, 3.0, 1000.0):
        assert student_p(t, 1) == pytest.approx(1 - 2 * math.atan(t) / math.pi, rel=1e-6)
        assert student_p(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-6)
    assert student_p(2.0, 1) > student_p(2.0, 1.5) > student_p(2.0, 2)


def test_a_clustered_mean_has_the_variance_between_clusters() -> None:
    # Sums of distances from the mean 0.5 are 1 and −1: variance 2·(1 + 1)/4² = 1/4, times t₁ = 12.706.
    half = student_quantile(0.95, 1) * 0.5
    assert clustered_mean([1, 1, 0, 0], "aabb") == pytest.approx((0.5 - half, 0.5 + half))
    # Four independent values: variance 4/3·(4·0.25)/4² = 1/12, times t₃ = 3.1824.
    half = student_quantile(0.95, 3) * math.sqrt(1 / 12)
    assert clustered_mean([1, 0, 1, 0], "abcd") == pytest.approx((0.5 - half, 0.5 + half))
    assert clustered_mean([1, 0], "aa") == (-math.inf, math.inf)
    with pytest.raises(ValueError, match="1 clusters"):
        clustered_mean([1, 0], "a")


def test_a_clustered_change_counts_alike_items_of_a_cluster_once() -> None:
    single = [1] * 3 + [-1] + [0] * 6
    assert clustered_change(single, range(10)) == paired_interval(3, 1, 10)
    # Twice as many items that are alike by two: the design effect is 2, and there are t₉ degrees of freedom.
    effect = 2 * (student_quantile(0.95, 9) / 1.959964) ** 2
    doubled = clustered_change([value for value in single for _ in range(2)], [c for c in range(10) for _ in range(2)])
    assert doubled == pytest.approx(paired_interval(6 / effect, 2 / effect, 20 / effect), abs=1e-6)
    assert clustered_change([1, 0], "aa") == (-1, 1)
    assert clustered_change([0] * 20, range(20))[1] > 0  # that nothing moved does not prove that nothing can
