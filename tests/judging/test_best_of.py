import math

import pytest

from constitutional.judging.best_of import best, divergence, shifts, swap, totals


def test_the_divergence_is_log_k_less_its_share() -> None:
    assert divergence(1) == 0
    assert divergence(4) == pytest.approx(1.3863 - 0.75, abs=1e-4)
    assert divergence(8) == pytest.approx(2.0794 - 0.875, abs=1e-4)


def test_a_total_is_the_mean_by_weight_where_all_that_counts_is_rated() -> None:
    ratings: dict[str, list[float | None]] = {
        "kind": [9, 1, None, None],
        "brief": [3, 5, 6, None],
        "other": [10, 10, 10, 10],
    }
    assert totals(ratings, {"kind": 2, "brief": 1}) == [7, pytest.approx(7 / 3), None, None]
    assert totals(ratings, {"kind": 0, "brief": 1}) == [3, 5, 6, None]


def test_a_reply_does_not_win_because_a_rating_of_it_is_missing() -> None:
    # By what is rated the second reply would have 8, the first (9 + 3)/2.
    ratings: dict[str, list[float | None]] = {"kind": [9, None], "brief": [3, 8]}
    assert best(totals(ratings, {"kind": 1, "brief": 1})) == (0,)


def test_all_that_share_the_best_rating_are_taken() -> None:
    assert best([3.0, 9.0, None, 9.0 - 1e-9]) == (1, 3)
    assert best([None, None]) == ()


def test_a_swap_says_which_principle_tipped_it() -> None:
    before = {"kind": [9, 3], "brief": [9, 9]}
    after = {"kind": [2, 8], "brief": [9, 9]}
    swapped = swap(7, before, {"kind": 1, "brief": 1}, after, {"kind": 1, "brief": 1})
    # The new constitution sees (8 − 2)/2 in the second reply, the old one (3 − 9)/2.
    assert swapped == (7, 0, 1, 6.0, (("kind", 6.0),))


def test_a_removed_and_a_heavier_principle_are_named_with_their_parts() -> None:
    ratings = {"kind": [2, 6], "brief": [9, 3]}
    removed = swap(0, ratings, {"kind": 1, "brief": 1}, {"kind": [2, 6]}, {"kind": 1})
    assert removed is not None
    assert (removed.before, removed.after) == (0, 1)
    # kind: 4/1 − 4/2; brief: 0 − (−6)/2.
    assert dict(removed.pushes) == {"brief": 3.0, "kind": 2.0}
    heavier = swap(0, ratings, {"kind": 1, "brief": 1}, ratings, {"kind": 3, "brief": 1})
    assert heavier is not None
    assert dict(heavier.pushes) == {"kind": 3 - 2, "brief": -1.5 + 3}
    assert heavier.margin == pytest.approx(2.5)


def test_a_reply_that_is_among_the_best_only_now_is_a_swap_too() -> None:
    ratings = {"kind": [9, 9], "brief": [8, 2]}
    swapped = swap(0, ratings, {"kind": 1, "brief": 1}, {"kind": [9, 9]}, {"kind": 1})
    assert swapped == (0, 0, 1, 3.0, (("brief", 3.0),))


def test_there_is_no_swap_where_both_take_the_same_or_nothing_is_rated() -> None:
    ratings = {"kind": [9, 9]}
    assert swap(0, ratings, {"kind": 1}, {"kind": [5, 5]}, {"kind": 1}) is None
    assert swap(0, {"kind": [None, None]}, {"kind": 1}, ratings, {"kind": 1}) is None


def test_a_shift_is_paired_over_the_prompts_that_both_sides_have() -> None:
    rows: list[list[float | None]] = [[0.0, 1.0], [None, 1.0], [1.0, 1.0]]
    values = rows[:1] * 12 + rows[1:]
    (moved,) = shifts([("flattery", "share", values)], [((0,), (1,))] * 14)
    assert (moved.effect.estimate.prompts, moved.after) == (13, 1.0)
    assert moved.before == pytest.approx(1 / 13)
    assert moved.value == pytest.approx(12 / 13)
    # Agresti and Min: 12 of 13 gained; (12 ± 1.96·√(13 − 144/15)) / 15.
    assert moved.effect.low == pytest.approx((12 - 1.95996 * math.sqrt(13 - 144 / 15)) / 15, abs=1e-4)
    assert moved.clear


def test_replies_that_share_the_best_rating_count_in_parts() -> None:
    (half,) = shifts([("flattery", "share", [[0.0, 1.0], [0.0, 0.0]])], [((0,), (0, 1)), ((0,), (0, 1))])
    assert (half.before, half.after, half.value) == (0.0, 0.25, 0.25)
    assert not half.clear  # of two prompts nothing is concluded


def test_the_same_replies_give_no_change_and_longer_ones_are_longer() -> None:
    lengths = [[10.0, 20.0 + index] for index in range(20)]
    (still,) = shifts([("length", "words", lengths)], [((0,), (0,))] * 20)
    assert (still.value, still.effect.low, still.effect.high, still.clear) == (0, 0, 0, False)
    (longer,) = shifts([("length", "words", lengths)], [((0,), (1,))] * 20)
    # 10 to 29 more: s²/n = 35/20, and Student's quantile with 19 degrees of freedom is 2.093.
    half = 2.093 * math.sqrt(35 / 20)
    assert (longer.value, longer.effect.low) == pytest.approx((19.5, 19.5 - half), abs=1e-3)
    assert shifts([("length", "words", [[None]] * 5)], [((0,), (0,))] * 5) == []


def test_many_measures_that_do_not_change_make_a_doubtful_one_unclear() -> None:
    # 7 of 30 gained and 1 lost: p = 0.04 for one measure, which is not clear among ten.
    doubtful = [[0.0, 1.0]] * 7 + [[1.0, 0.0]] + [[0.0, 0.0]] * 22
    taken = [((0,), (1,))] * 30
    (alone,) = shifts([("flattery", "share", doubtful)], taken)
    among = shifts(
        [("flattery", "share", doubtful), *((f"{at}", "share", [[0.0, 0.0]] * 30) for at in range(9))], taken
    )
    assert alone.clear
    assert [row.measure for row in among if row.clear] == []
    assert among[0].measure == "flattery"
