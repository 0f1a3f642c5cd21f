"""Where marks, lines and bars stand, worked out by hand: percent of the width, pixels from the top."""

import re
from math import inf, nan

import pytest

from constitutional.stages.report.charts import (
    SHARES,
    Axis,
    Line,
    Mark,
    axis_for,
    axis_row,
    calibration,
    curve,
    dots,
    histogram,
    number,
    row_height,
)


def test_a_whisker_reaches_from_low_to_high_and_the_mark_stands_at_the_value() -> None:
    drawn = dots(SHARES, [Mark(0, 0.3, 0.2, 0.4, "Base: 30%")])
    # 0.2 to 0.4 of a width of 200 pixels is 40 to 80 pixels; alone, the mark is in the middle of its row.
    assert '<line class="whisker" x1="20%" y1="0" x2="40%" y2="0"/>' in drawn
    assert '<svg x="30%" y="0" overflow="visible"><circle' in drawn
    assert 200 * SHARES.at(0.2) / 100 == 40
    assert 200 * SHARES.at(0.4) / 100 == pytest.approx(80)


def test_an_axis_from_10_to_30_has_20_in_its_middle() -> None:
    axis = Axis(10, 30, (10, 20, 30))
    assert [axis.at(value) for value in (10, 15, 20, 30)] == [0, 25, 50, 100]


def test_marks_of_a_row_stand_13_pixels_apart_about_its_middle_each_with_its_own_shape() -> None:
    drawn = dots(SHARES, [Mark(series, 0.5, 0.5, 0.5, "") for series in range(3)])
    assert re.findall(r'<svg x="50%" y="(-?\d+)" overflow="visible"><(\w+)', drawn) == [
        ("-13", "circle"),
        ("0", "rect"),
        ("13", "path"),
    ]
    assert row_height(3) == 56  # two steps of 13 and an edge of 15 above and below


def test_the_reference_line_runs_through_the_whole_row() -> None:
    assert '<line class="reference" x1="50%" y1="0" x2="50%" y2="100%"/>' in dots(SHARES, [], reference=0.5)


def test_an_interval_without_ends_reaches_from_edge_to_edge() -> None:
    assert 'x1="0%" y1="0" x2="100%"' in dots(SHARES, [Mark(0, 0.5, -inf, inf, "one cluster")])


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0, 38.2], (0, 10, 20, 30, 40)),  # 38.2 / 4 = 9.55, so steps of 10
        ([0.42, 0.69], (0.4, 0.5, 0.6, 0.7)),  # 0.27 / 4 = 0.0675, so steps of 0.1
        ([-3, 5], (-4, -2, 0, 2, 4, 6)),  # 8 / 4 = 2 exactly
        ([0, 1200], (0, 500, 1000, 1500)),  # 300, so steps of 500
        ([7, 7], (2, 4, 6, 8, 10, 12)),  # one value: half of it on either side, 3.5 to 10.5, 7 / 4 = 1.75
        ([0, 0], (0, 0.5, 1)),  # 0 to 1, 0.25, so steps of 0.5
        ([0.894], (0, 0.5, 1)),  # one share: an axis that ends at 1
        ([nan, inf], (0, 0.5, 1)),
    ],
)
def test_axes_hold_all_values_and_end_on_round_numbers(values: list[float], ticks: tuple[float, ...]) -> None:
    axis = axis_for(values)
    assert axis.ticks == ticks
    assert (axis.low, axis.high) == (ticks[0], ticks[-1])


@pytest.mark.parametrize(
    ("value", "percent", "text"),
    [
        (0.1234, True, "12.3%"),
        (0.5, True, "50%"),
        (1.0, True, "100%"),
        (0.9999, True, "100%"),
        (0.0001, True, "0%"),
        (-0.3, False, "−0.3"),
        (1234.5, False, "1,234"),
        (0.04567, False, "0.0457"),
        (0.0, False, "0"),
        (-inf, False, "−∞"),
        (nan, True, "unknown"),
    ],
)
def test_numbers_are_short_and_shares_are_percentages(value: float, percent: bool, text: str) -> None:
    assert number(value, percent=percent) == text


def test_ticks_stand_at_their_values() -> None:
    assert re.findall(r'<text x="([\d.]+)%"[^>]*>([^<]+)<', axis_row(SHARES)) == [
        ("0", "0%"),
        ("25", "25%"),
        ("50", "50%"),
        ("75", "75%"),
        ("100", "100%"),
    ]


def test_a_curve_falls_on_the_page_where_the_loss_falls() -> None:
    x, y = Axis(0, 10, (0, 10)), Axis(0, 4, (0, 4))
    drawn = curve(x, y, [Line(0, ((5, 3.0), (10, 1.0)), "loss")], "step")
    # In a drawing of 100 by 100 whose y goes down: (5 of 10, 100 - 75) and (10 of 10, 100 - 25).
    assert 'points="50.00,25.00 100.00,75.00"' in drawn


def test_a_point_on_a_curve_has_its_interval_upwards_and_a_place_across_is_marked() -> None:
    x, y = Axis(0, 10, (0, 10)), Axis(0, 4, (0, 4))
    drawn = curve(x, y, [], "step", [(5, Mark(2, 3, 2, 4, "three <"))], reference=7.5)
    assert '<g class="s2"><title>three &lt;</title><line class="whisker" x1="50%" y1="100" x2="50%" y2="0"/>' in drawn
    assert '<svg x="50%" y="50" overflow="visible">' in drawn  # 3 of 4 is a quarter of 200 pixels from the top
    assert '<line class="reference" x1="75%" y1="0" x2="75%" y2="200"/>' in drawn


def test_a_bar_is_as_high_as_its_count_and_as_wide_as_its_bin() -> None:
    drawn = histogram((0.0, 0.5, 1.0), (1, 4), SHARES, "probability")
    # Counts up to 4 on 200 pixels: 1 is 50 pixels, from 150 down; 4 is all of it.
    assert '<rect class="bar" x="0%" y="150" width="50%" height="50"><title>0% to 50%: 1</title></rect>' in drawn
    assert '<rect class="bar" x="50%" y="0" width="50%" height="200"><title>50% to 100%: 4</title></rect>' in drawn


def test_perfect_calibration_lies_on_the_diagonal() -> None:
    drawn = calibration([(0.75, 0.75, 0.5, 1.0)])
    assert '<line class="reference" x1="0%" y1="200" x2="100%" y2="0"/>' in drawn
    assert '<svg x="75%" y="50" overflow="visible">' in drawn  # a quarter of 200 pixels from the top
    assert '<line class="whisker" x1="75%" y1="100" x2="75%" y2="0"/>' in drawn


def test_what_a_mark_is_called_is_escaped() -> None:
    drawn = dots(SHARES, [Mark(0, 0.5, 0.4, 0.6, '</title><script>"')])
    assert "<script" not in drawn
    assert 'aria-label="&lt;/title&gt;&lt;script&gt;&#34;"' in drawn


def test_ticks_have_the_digits_that_tell_them_apart() -> None:
    assert axis_for([0.891, 0.8925]).labels() == ["0.891", "0.8915", "0.892", "0.8925"]
    assert axis_for([0.3, 0.45]).labels() == ["0.3", "0.35", "0.4", "0.45"]
    assert SHARES.labels() == ["0%", "25%", "50%", "75%", "100%"]
