"""The report's figures: SVG written by hand, so that the page needs no library, no script and no network.

Horizontal places are percentages of the figure's width, vertical places are pixels. So a figure is as wide as the page,
while text and marks keep their size, on a phone as on paper. The style sheet sets colours and strokes by class, so that
they follow a light or dark page.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

ROW_STEP = 13
"""Pixels between the marks of one row, one below the other."""
ROW_EDGE = 15
"""Pixels above the first and below the last mark of a row."""
PLOT_HEIGHT = 200
"""Pixels of a figure with two axes."""
SHAPES = (
    Markup('<circle class="dot" r="4.5"/>'),
    Markup('<rect class="dot" x="-4" y="-4" width="8" height="8"/>'),
    Markup('<path class="dot" d="M0-5.5 5.5 0 0 5.5-5.5 0z"/>'),
)
"""Circle, square, diamond: the shape of a mark says which series it is of, as the colour does."""


class Axis(NamedTuple):
    """A linear axis, with its ticks in rising order."""

    low: float
    high: float
    ticks: tuple[float, ...]
    percent: bool = False
    """Whether the values are shares, which are written as percentages."""

    def labels(self) -> list[str]:
        """The ticks as text, with enough digits to tell them apart."""
        for digits in range(3, 17):
            texts = [number(tick, percent=self.percent, digits=digits) for tick in self.ticks]
            if len(set(texts)) == len(texts):
                break
        return texts

    def at(self, value: float) -> float:
        """How far along the axis a value is, in percent: 0 at `low`, 100 at `high`, never outside."""
        return 100 * (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)


class Mark(NamedTuple):
    """A value with its interval."""

    series: int
    """Index of the figure's series; decides shape and colour."""
    value: float
    low: float
    high: float
    title: str
    """The value in words, shown when pointed at."""


class Line(NamedTuple):
    """A curve: points from left to right."""

    series: int
    points: tuple[tuple[float, float], ...]
    title: str
    value: str = ""
    """What stands beside the dot of a line that has one point."""


SHARES = Axis(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0), percent=True)


def axis_for(values: Sequence[float], ticks: int = 4) -> Axis:
    """An axis that holds all finite values and ends on round numbers: 1, 2 or 5 times a power of ten apart."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if low == high:
        low, high = (0.0, 1.0) if 0 <= low <= 1 else (low - abs(low) / 2, high + abs(high) / 2)
    rough = (high - low) / ticks
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    places = tuple(round(step * index, 12) for index in range(first, last + 1))
    return Axis(places[0], places[-1], places)


def number(value: float, *, percent: bool = False, digits: int = 3) -> str:
    """A number as the page writes it: `digits` significant digits, shares as percentages, a real minus sign."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞" if value < 0 else "unknown"
    shown = value * 100 if percent else value
    if shown == 0 or (percent and abs(shown) < 0.05):
        text = "0"
    elif percent:
        text = f"{shown:.0f}" if abs(shown) >= 99.95 else f"{shown:.1f}".removesuffix(".0")
    elif abs(shown) >= 1000:
        text = f"{shown:,.0f}"
    else:
        text = f"{shown:.{digits}g}"
    return text.replace("-", "−") + ("%" if percent else "")


def dots(axis: Axis, marks: Sequence[Mark], reference: float | None = None) -> Markup:
    """One row of a dot-and-whisker figure: a mark at each value, a line over its interval, one below the other."""
    lines = [_vertical("grid", axis.at(tick)) for tick in axis.ticks]
    if reference is not None:
        lines.append(_vertical("reference", axis.at(reference)))
    drawn = []
    for index, mark in enumerate(marks):
        y = ROW_STEP * (index - (len(marks) - 1) / 2)
        whisker = _line("whisker", axis.at(mark.low), y, axis.at(mark.high), y)
        drawn.append(
            Markup('<g class="s{}"><title>{}</title>{}{}</g>').format(
                mark.series, mark.title, whisker, _shape(mark.series, axis.at(mark.value), y)
            )
        )
    # The marks are placed about the row's middle, since its label may make it higher than they need.
    return Markup(
        '<svg class="dots" role="img" aria-label="{}">{}<svg y="50%" overflow="visible">{}</svg></svg>'
    ).format("; ".join(mark.title for mark in marks), Markup("").join(lines), Markup("").join(drawn))


def row_height(marks: int) -> int:
    """Pixels that a row of so many marks needs."""
    return ROW_STEP * (max(marks, 1) - 1) + 2 * ROW_EDGE


def axis_row(axis: Axis) -> Markup:
    """The numbers below a dot-and-whisker figure."""
    return Markup('<svg class="axis" height="18" aria-hidden="true">{}</svg>').format(_ticks(axis, 13))


def curve(
    x: Axis,
    y: Axis,
    lines: Sequence[Line],
    x_title: str,
    points: Sequence[tuple[float, Mark]] = (),
    reference: float | None = None,
) -> Markup:
    """Lines over a common axis, such as a loss over training steps; a line of one point is a dot with its value.

    `points` are places across and marks there, whose intervals go upwards and downwards. A vertical line marks the
    place `reference`. Values that are not finite are left out.
    """
    parts = [_frame(x, y)]
    if reference is not None:
        parts.append(_line("reference", x.at(reference), 0, x.at(reference), PLOT_HEIGHT))
    for line in lines:
        finite = [point for point in line.points if all(map(math.isfinite, point))]
        if len(finite) == 1:
            parts.append(_dot_with_value(line, x.at(finite[0][0]), PLOT_HEIGHT * (1 - y.at(finite[0][1]) / 100)))
            continue
        path = " ".join(f"{x.at(a):.2f},{100 - y.at(b):.2f}" for a, b in finite)
        # A drawing of 100 by 100 stretched over the plot; the style sheet keeps the stroke's width as it is.
        parts.append(
            Markup(
                '<svg width="100%" height="{}" viewBox="0 0 100 100" preserveAspectRatio="none">'
                '<polyline class="line s{}" points="{}"><title>{}</title></polyline></svg>'
            ).format(PLOT_HEIGHT, line.series, path, line.title)
        )
    parts += [_point(x, y, *point) for point in points]
    return _plot("; ".join(line.title for line in lines), parts, x_title)


def _dot_with_value(line: Line, across: float, up: float) -> Markup:
    # On the right half of the plot the value stands left of the dot, so that it stays inside.
    anchor, shift = ("end", -9) if across > 50 else ("start", 9)
    return Markup(
        '<g class="s{}"><title>{}</title>{}<text x="{:g}%" y="{:g}" dx="{}" text-anchor="{}">{}</text></g>'
    ).format(line.series, line.title, _shape(line.series, across, up), across, up + 4, shift, anchor, line.value)


class Place(NamedTuple):
    """A point between two axes, with an interval on each."""

    name: str
    x: tuple[float, float, float]
    """(value, low, high)"""
    y: tuple[float, float, float]
    number: int
    """Written beside the place; one without a number, 0, is drawn pale and without its intervals."""


def scatter(x: Axis, y: Axis, places: Sequence[Place], titles: tuple[str, str]) -> Markup:
    """Places between two axes, whose titles say what is across and what is up."""
    parts = [_frame(x, y)]
    for place in sorted(places, key=lambda place: place.number):
        across, left, right = (x.at(end) for end in place.x)
        up, low, high = (PLOT_HEIGHT * (1 - y.at(end) / 100) for end in place.y)
        value = f"{number(place.x[0], percent=x.percent)}, {number(place.y[0], percent=y.percent)}"
        drawn = _shape(0 if place.number else 1, across, up)
        if place.number:
            whiskers = _line("whisker", left, up, right, up) + _line("whisker", across, low, across, high)
            here = sorted(other.number for other in places if other.number and (other.x, other.y) == (place.x, place.y))
            anchor, shift = ("end", -8) if across > 80 else ("start", 8)
            text = Markup('<text x="{:g}%" y="{:g}" dx="{}" text-anchor="{}">{}</text>')
            drawn = whiskers + drawn
            if place.number == here[0]:  # places that lie on each other have their numbers side by side
                drawn += text.format(across, up - 7, shift, anchor, ", ".join(map(str, here)))
        group = Markup('<g class="{}"><title>{}: {}</title>{}</g>')
        parts.append(group.format("s2" if place.number else "s0 pale", place.name, value, drawn))
    return _plot(f"{titles[1]} by {titles[0]}", parts, titles[0])


def calibration(bins: Sequence[tuple[float, float, float, float]]) -> Markup:
    """What was predicted (across) and the mean target (up, with an interval): (predicted, value, low, high), 0 to 1.

    Points on the dashed diagonal are perfectly calibrated.
    """
    parts = [_frame(SHARES, SHARES), _line("reference", 0, PLOT_HEIGHT, 100, 0)]
    for predicted, value, low, high in bins:
        title = f"predicted {number(predicted, percent=True)}, mean target {number(value, percent=True)}"
        parts.append(_point(SHARES, SHARES, predicted, Mark(2, value, low, high, title)))
    return _plot("Mean target by predicted probability", parts, "predicted probability")


def histogram(edges: Sequence[float], counts: Sequence[int], x: Axis, x_title: str) -> Markup:
    """Bars whose height is a count; `edges` has one more entry than `counts`."""
    y = axis_for([0, *counts])
    parts = [_frame(x, y)]
    for left, right, count in zip(edges, edges[1:], counts, strict=False):
        start, height = x.at(left), PLOT_HEIGHT * y.at(count) / 100
        title = f"{number(left, percent=x.percent)} to {number(right, percent=x.percent)}: {count:,}"
        parts.append(
            Markup('<rect class="bar" x="{:g}%" y="{:g}" width="{:g}%" height="{:g}"><title>{}</title></rect>').format(
                start, PLOT_HEIGHT - height, x.at(right) - start, height, title
            )
        )
    return _plot(f"{sum(counts):,} counted", parts, x_title)


def shape(series: int) -> Markup:
    """A series' mark by itself, for a legend."""
    return Markup('<svg class="mark s{}" width="12" height="12" aria-hidden="true">{}</svg>').format(
        series, _shape(series, 50, 6)
    )


def _point(x: Axis, y: Axis, place: float, mark: Mark) -> Markup:
    across, *ups = x.at(place), *(PLOT_HEIGHT * (1 - y.at(up) / 100) for up in (mark.value, mark.low, mark.high))
    return Markup('<g class="s{}"><title>{}</title>{}{}</g>').format(
        mark.series, mark.title, _line("whisker", across, ups[1], across, ups[2]), _shape(mark.series, across, ups[0])
    )


def _shape(series: int, x: float, y: float) -> Markup:
    # A nested drawing, because a path cannot be placed by a percentage.
    return Markup('<svg x="{:g}%" y="{:g}" overflow="visible">{}</svg>').format(x, y, SHAPES[series % len(SHAPES)])


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{:g}%" y1="{:g}" x2="{:g}%" y2="{:g}"/>').format(kind, x1, y1, x2, y2)


def _vertical(kind: str, x: float) -> Markup:
    """A line through the whole row, however high its label makes it."""
    return Markup('<line class="{}" x1="{:g}%" y1="0" x2="{:g}%" y2="100%"/>').format(kind, x, x)


def _ticks(axis: Axis, y: float) -> Markup:
    return Markup("").join(
        Markup('<text x="{:g}%" y="{:g}" text-anchor="middle">{}</text>').format(axis.at(tick), y, label)
        for tick, label in zip(axis.ticks, axis.labels(), strict=True)
    )


def _frame(x: Axis, y: Axis) -> Markup:
    """The vertical axis' lines, its numbers in the margin left of them, and the horizontal axis' numbers."""
    text = Markup('<text x="-8" y="{:g}" text-anchor="end">{}</text>')
    heights = [PLOT_HEIGHT * (1 - y.at(tick) / 100) for tick in y.ticks]
    rows = [
        _line("grid", 0, up, 100, up) + text.format(up + 4, label)
        for up, label in zip(heights, y.labels(), strict=True)
    ]
    return Markup("").join(rows) + _ticks(x, PLOT_HEIGHT + 16)


def _plot(label: str, parts: Sequence[Markup], x_title: str) -> Markup:
    height = PLOT_HEIGHT + 38
    title = Markup('<text class="title" x="50%" y="{}" text-anchor="middle">{}</text>').format(height - 4, x_title)
    return Markup('<svg class="plot" height="{}" role="img" aria-label="{}">{}{}</svg>').format(
        height, label, Markup("").join(parts), title
    )
