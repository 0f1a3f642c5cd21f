"""Effects by hand: paired differences, corrections for many, Shapley values of small games, Pareto fronts."""

import math
from itertools import combinations

import pytest

from constitutional.base.effects import (
    PRIOR_OF_DIFFERENCES,
    PRIOR_OF_SHARES,
    Estimate,
    Key,
    benjamini_hochberg,
    corrected,
    estimate,
    missing_subsets,
    paired,
    pareto,
    shapley,
    with_common_seeds,
)
from constitutional.base.stats import paired_interval


def of(*values: float, seed: int = 0) -> dict[Key, float]:
    return {Key(seed, f"p{number}"): value for number, value in enumerate(values)}


def test_a_paired_difference_is_over_what_both_have() -> None:
    before, after = of(1, 1, 0, 1), {**of(0, 0, 0), Key(1, "p0"): 1.0}
    assert paired(before, after) == of(-1, -1, 0)
    row = estimate(paired(before, after))
    # Mean −2/3; squares (1/9 + 1/9 + 4/9)·3/2 = 1, so the error is 1/3.
    assert (row.value, row.error, row.prompts) == pytest.approx((-2 / 3, 1 / 3, 3))


def test_the_interval_of_a_share_s_difference_is_agresti_and_min_s() -> None:
    row = estimate(of(*[1.0] * 7, *[-1.0] * 2, *[0.0] * 11), PRIOR_OF_DIFFERENCES)
    assert row.value == 5 / 20
    assert row.interval() == pytest.approx(tuple(paired_interval(7, 2, 20)))


def test_a_share_has_agresti_and_coull_s_interval() -> None:
    # 10 of 10: (10 + 1.92)/(10 + 3.84) = 0.8613, error √(0.8613·0.1387/13.84) = 0.0929
    row = estimate(of(*[1.0] * 10), PRIOR_OF_SHARES)
    assert (row.middle, row.error) == pytest.approx((0.8613, 0.0929), abs=1e-4)


def test_seeds_that_disagree_make_the_error_wider() -> None:
    ones, zeros = of(*[1.0] * 20), {Key(1, name): 0.0 for _, name, _ in of(*[0.0] * 20)}
    row = estimate({**ones, **zeros})
    # Every prompt has the mean 0.5, so prompts alone leave no error; the seeds' means 1 and 0 have s = 0.7071, /√2.
    assert (row.value, row.error, row.prompts, row.seeds) == pytest.approx((0.5, 0.5, 20, 2))
    # t = 1 with 1 degree of freedom, Cauchy's distribution: half of it is farther out; 95% are within 12.706.
    assert row.freedom == 1
    assert row.p == pytest.approx(0.5)
    assert row.interval() == pytest.approx((0.5 - 6.353, 0.5 + 6.353), abs=1e-3)


def test_the_errors_by_prompts_and_by_seeds_add_up() -> None:
    # Prompts' sums: 3, 1, 3, 1 about 2, so the variance by prompts is 4·(4/3)/8² = 1/12, with 3 degrees of freedom.
    # The seeds' means 1.25 and 0.75 give s²/k = 0.125/2 = 1/16, with 1.
    row = estimate({**of(2, 0.5, 2, 0.5), **{Key(1, f"p{at}"): value for at, value in enumerate((1, 0.5, 1, 0.5))}})
    assert (row.value, row.error) == pytest.approx((1.0, math.sqrt(1 / 12 + 1 / 16)))
    assert row.freedom == pytest.approx((1 / 12 + 1 / 16) ** 2 / ((1 / 12) ** 2 / 3 + (1 / 16) ** 2))


def test_how_far_seeds_disagree_is_taken_from_all_effects_of_a_measure() -> None:
    first = Estimate(1.0, 1.0, 0.02, 40, 2, by_seeds=0.01, freedom_of_seeds=1)
    second = Estimate(0.0, 0.0, 0.02, 40, 2, by_seeds=0.03, freedom_of_seeds=1)
    single = Estimate(0.5, 0.5, 0.02, 40, 1)
    rows = with_common_seeds([first, second, single])
    # The mean of 0.01 and 0.03; 4·2/(2 + 3) degrees of freedom.
    assert [row.by_seeds for row in rows] == pytest.approx([0.02, 0.02, 0.0])
    assert rows[0].freedom_of_seeds == pytest.approx(1.6)
    assert rows[0].error == pytest.approx(0.2)
    assert rows[0].freedom == pytest.approx(0.04**2 / (0.02**2 / 1.6))
    assert rows[2] == single
    assert with_common_seeds([single]) == [single]


def test_seeds_that_agree_but_for_rounding_know_no_more_than_prompts_do() -> None:
    # The sum of the first seed's differences is 0 but for rounding, so that the seeds' means are all but equal.
    once = of(1 / 3, 1 / 6, -1 / 2, *[0.0] * 37)
    row = estimate({**once, **{Key(1, name): 0.0 for _, name, _ in once}}, PRIOR_OF_DIFFERENCES)
    assert row.p == pytest.approx(1.0)
    low, high = row.interval()
    assert low < -0.01 < 0.01 < high


def test_the_same_prompts_under_more_seeds_make_no_interval_of_a_prior_narrower() -> None:
    ends = []
    for seeds in (1, 3, 5):
        row = estimate(
            {Key(seed, name): 0.0 for seed in range(seeds) for _, name, _ in of(*[0.0] * 10)}, PRIOR_OF_SHARES
        )
        ends.append(row.interval()[1])
    assert ends == pytest.approx([ends[0]] * 3)


def test_seeds_that_agree_leave_the_prompts_error() -> None:
    once = of(*[1.0] * 9, *[0.0] * 11)
    row = estimate({**once, **{Key(1, name): value for (_, name, _), value in once.items()}}, PRIOR_OF_DIFFERENCES)
    assert row.freedom == math.inf
    assert row.p < 0.001


def test_the_same_prompts_under_a_second_seed_are_no_new_prompts() -> None:
    once = of(0, 1, 0, 1, 1, 0, 1, 1)
    twice = {**once, **{Key(1, name): value for (_, name, _), value in once.items()}}
    assert estimate(twice).error == pytest.approx(estimate(once).error)


def test_prompts_that_depend_on_each_other_are_one_cluster() -> None:
    def clusters(*values: float, size: int) -> dict[Key, float]:
        return {Key(0, f"p{at}", f"c{at // size}"): value for at, value in enumerate(values)}

    # Each cluster's sum is 1 from its mean: (1 + 1)·2/1 over 4² is 1/4. Alone, four times 1/4 by 4/3 over 4² is 1/12.
    row = estimate(clusters(1, 1, 0, 0, size=2))
    assert (row.value, row.by_prompts, row.prompts, row.freedom) == pytest.approx((0.5, 1 / 4, 4, 1))
    assert estimate(clusters(1, 1, 0, 0, size=1)).by_prompts == estimate(of(1, 1, 0, 0)).by_prompts
    assert estimate(of(1, 1, 0, 0)).by_prompts == pytest.approx(1 / 12)
    assert math.isinf(estimate(clusters(1, 0, size=2)).by_prompts)
    # With a prior an item of it still weighs as much as a prompt: 5 of (4 + 2) and half a gain and a loss.
    row = estimate(clusters(1, 1, 1, 0, size=2), PRIOR_OF_DIFFERENCES)
    assert row.middle == pytest.approx(3 / 6)
    # Clusters: (2 − 1)² + (1 − 1)²; prior: 0.5·(1 − 1/2)² + 0.5·(1 + 1/2)² + (1/2)².
    assert row.by_prompts == pytest.approx((1 + 0.125 + 1.125 + 0.25) / 6**2)


def test_from_one_prompt_nothing_is_known() -> None:
    row = estimate(of(1.0), PRIOR_OF_DIFFERENCES)
    assert row.interval() == (-1, 1)  # all that is possible
    assert estimate(of(1.0)).interval() == (-math.inf, math.inf)
    assert row.p == 1.0


def test_benjamini_and_hochberg_by_hand() -> None:
    # q·rank/m is 0.01, 0.02, 0.03, 0.04, 0.05: the third, 0.03, is the last within; 0.025 passes with it.
    ps = [0.2, 0.03, 0.009, 0.025, 0.06]
    assert benjamini_hochberg(ps) == [False, True, True, True, False]
    assert benjamini_hochberg([0.03, 0.04]) == [True, True]  # neither would pass alone, at 0.025
    assert benjamini_hochberg([]) == []


def test_an_interval_holds_0_just_where_the_effect_is_not_clear() -> None:
    rows = [Estimate(value, value, 1.0, 30, 1) for value in (3.5, 2.6, 2.2, 1.9, 0.1)]
    effects = corrected(rows)
    # p: 0.0005, 0.0093, 0.0278, 0.0574, 0.92 against 0.01 to 0.05: three are clear, and the level is 1 − 3·0.05/5.
    assert [row.clear for row in effects] == [True, True, True, False, False]
    assert all(row.clear == (row.low > 0 or row.high < 0) for row in effects)
    assert effects[0].high - effects[0].low == pytest.approx(2 * 2.1701, abs=1e-3)
    # Where none is clear the interval is Bonferroni's.
    (low, high) = corrected(rows[3:])[0][1:3]
    assert high - low == pytest.approx(2 * 2.2414, abs=1e-3)


def test_of_few_prompts_nothing_is_clear_and_nothing_is_corrected_for() -> None:
    few, many = estimate(of(*[3.0] * 9)), Estimate(2.0, 2.0, 1.0, 30, 1)
    assert few.error == 0  # nine equal differences
    assert [row.clear for row in corrected([few, many])] == [False, True]  # p is 0.0455, of one


def test_an_interval_stays_within_what_is_possible() -> None:
    assert estimate(of(*[1.0] * 12), PRIOR_OF_DIFFERENCES).interval(0.9999)[1] == 1.0
    assert estimate(of(*[0.0] * 12), PRIOR_OF_SHARES).interval()[0] == 0.0
    assert estimate(of(*[20.0, 50.0] * 6)).interval()[1] > 40


GLOVES = {
    # Three players; a and b have a left glove each, c has the right one; a pair is worth 6.
    "": 0,
    "a": 0,
    "b": 0,
    "c": 0,
    "ab": 0,
    "ac": 6,
    "bc": 6,
    "abc": 6,
}


def test_shapley_values_of_the_glove_game() -> None:
    games = {frozenset(names): of(value) for names, value in GLOVES.items()}
    result = shapley(games, "abc")
    assert result is not None
    assert result.exact
    # By the six orders: c adds 6 in four of them, a in one (c a b), b in one.
    assert {name: by[Key(0, "p0")] for name, by in result.values.items()} == pytest.approx({"a": 1, "b": 1, "c": 4})


def test_shapley_values_from_some_subsets_need_one_of_every_size() -> None:
    # Of four players a and b are worth 12 together, whoever else is there.
    subsets = [frozenset(names) for size in range(5) for names in combinations("abcd", size)]
    games = {game: of(12.0 if game >= {"a", "b"} else 0.0) for game in subsets if game != {"a", "b"}}
    result = shapley(games, "abcd")
    assert result is not None
    assert not result.exact
    # Of a, by sizes: 0; 0 to c and to d; 12, 12 and 0 to bc, bd and cd; 12 to bcd.
    assert {name: by[Key(0, "p0")] for name, by in result.values.items()} == pytest.approx(
        {"a": 5, "b": 5, "c": 0, "d": 0}
    )
    assert missing_subsets(games, "abcd") == {2: 1}
    del games[frozenset("abc")]  # what d adds to three is known of no other
    assert shapley(games, "abcd") is None


def test_what_no_point_beats_is_the_front() -> None:
    points = {"a": (0.9, 0.1), "b": (0.5, 0.5), "c": (0.5, 0.4), "d": (0.1, 0.9), "e": (0.4, 0.4), "f": (0.5, 0.5)}
    assert pareto(points) == {"a", "b", "d", "f"}
