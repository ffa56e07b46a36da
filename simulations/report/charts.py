"""Line charts as inline SVG: no script, colours from the page's style sheet, readable by a screen reader."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from simulations.report.figures import compact_text
from simulations.report.markup import Html, element, fragment

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 34, 42
MOST_POINTS = 400
MOST_MARKERS = 40
LARGEST = 1e300
LOG_SCALE_FROM = 30.0
"""A logarithmic axis is used where the largest value is this many times the smallest."""


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: a label and its (x, value) points in order of x, which is the round where nothing else is said."""

    label: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Limit:
    """A horizontal line to compare with."""

    label: str
    value: float


@dataclass(frozen=True, slots=True)
class Across:
    """What a chart is drawn over.

    Attributes
    ----------
    name : str
        Written below the axis.
    log : bool
        Logarithmic; points at zero or below are left out.
    smallest_step : float
        Ticks of a linear axis are at least this far apart.
    """

    name: str
    log: bool = False
    smallest_step: float = 0.0


ROUNDS = Across("round", smallest_step=1.0)


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps values to pixels between `start` and `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Pixel of a value."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        return self.start + (self._scaled(value) - low) / (high - low) * (self.end - self.start)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value


def line_chart(
    name: str,
    title: str,
    lines: Sequence[Line],
    limit: Limit | None = None,
    across: Across = ROUNDS,
    linear: bool = False,
) -> Html | None:
    """One chart over rounds, or over something else; None where there is nothing to draw.

    Parameters
    ----------
    name : str
        Unique on the page; the ids of title and description begin with it.
    title : str
        Title of the chart.
    lines : sequence of Line
        Curves; values that are not finite (or above `LARGEST`) are left out, long curves thinned.
    limit : Limit, optional
        A horizontal line, left out where its value is not finite.
    across : Across
        The horizontal axis.
    linear : bool
        The values' axis is linear, however far they are apart.
    """
    lines = [line for line in (_drawable(line, across) for line in lines) if line.points]
    if not lines:
        return None
    if limit is not None and not abs(limit.value) <= LARGEST:
        limit = None
    x_axis, y_axis = _axes(lines, limit, across, linear)
    description = _describe(lines, y_axis.log, across)
    return element(
        "svg",
        element("title", title, id=f"{name}-title"),
        element("desc", description, id=f"{name}-desc"),
        _grid(x_axis, y_axis, across),
        _limit(limit, y_axis) if limit else None,
        *(_curve(line, k, x_axis, y_axis) for k, line in enumerate(lines)),
        _legend(lines, limit),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
        class_="chart",
    )


def bar(share: float, best: bool) -> Html:
    """A small horizontal bar, `share` of 1 long; decoration beside a number, hidden from screen readers."""
    width = 100 * min(1.0, max(0.0, share))
    return element(
        "svg",
        element("rect", x=0, y=0, width=width, height=8, rx=2, class_="bar best" if best else "bar"),
        viewBox="0 0 100 8",
        preserveAspectRatio="none",
        aria_hidden="true",
        class_="bars",
    )


def ticks(low: float, high: float, most: int = 5, smallest_step: float = 0.0) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within ``[low, high]``, about `most` of them."""
    raw = max((high - low) / most, smallest_step, 1e-300)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def _ticks(axis: Axis, most: int = 5, smallest_step: float = 0.0) -> list[float]:
    return _log_ticks(axis.low, axis.high) if axis.log else ticks(axis.low, axis.high, most, smallest_step)


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    stride = max(1, math.ceil(len(powers) / 6))
    return [10.0**power for power in powers[::stride] if low <= 10.0**power <= high]


def _drawable(line: Line, across: Across) -> Line:
    points = [(x, y) for x, y in line.points if abs(y) <= LARGEST and (x > 0 or not across.log)]
    stride = max(1, math.ceil(len(points) / MOST_POINTS))
    thinned = points[::stride]
    if points and thinned[-1] != points[-1]:
        thinned.append(points[-1])
    return replace(line, points=tuple(thinned))


def _axes(lines: Sequence[Line], limit: Limit | None, across: Across, linear: bool) -> tuple[Axis, Axis]:
    rounds = [x for line in lines for x, _ in line.points]
    values = [y for line in lines for _, y in line.points] + ([limit.value] if limit else [])
    first, last = min(rounds), max(rounds)
    if first == last:
        first, last = (first / 2, last * 2) if across.log else (first - 0.5, last + 0.5)
    x_axis = Axis(first, last, LEFT, WIDTH - RIGHT, log=across.log)
    low, high = min(values), max(values)
    if not linear and low > 0 and high / low >= LOG_SCALE_FROM:
        return x_axis, Axis(low / 1.3, high * 1.3, HEIGHT - BOTTOM, TOP, log=True)
    low, high = min(0.0, low), max(0.0, high)
    # Linear axes begin at zero, so that a curve never looks steeper than it is.
    return x_axis, Axis(low, high + 0.08 * (high - low) or 1.0, HEIGHT - BOTTOM, TOP)


def _grid(x_axis: Axis, y_axis: Axis, across: Across) -> Html:
    parts = []
    for value in _ticks(y_axis):
        y = y_axis.at(value)
        parts.append(element("line", x1=LEFT, y1=y, x2=WIDTH - RIGHT, y2=y, class_="grid"))
        parts.append(element("text", compact_text(value), x=LEFT - 8, y=y + 4, text_anchor="end"))
    parts += [
        element("text", compact_text(value), x=x_axis.at(value), y=HEIGHT - 22, text_anchor="middle")
        for value in _ticks(x_axis, most=8, smallest_step=across.smallest_step)
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(element("text", across.name, x=middle, y=HEIGHT - 5, text_anchor="middle", class_="name"))
    return element("g", *parts)


def _curve(line: Line, number: int, x_axis: Axis, y_axis: Axis) -> Html:
    places = [(x_axis.at(x), y_axis.at(y)) for x, y in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    curve = element("polyline", points=path, class_=f"line s{number % 3}")
    if len(places) > MOST_MARKERS:
        return curve
    dots = (element("circle", cx=x, cy=y, r=2.6, class_=f"dot s{number % 3}") for x, y in places)
    return fragment([curve, *dots])


def _limit(limit: Limit, y_axis: Axis) -> Html:
    y = y_axis.at(limit.value)
    return element("line", x1=LEFT, y1=y, x2=WIDTH - RIGHT, y2=y, class_="limit")


def _legend(lines: Sequence[Line], limit: Limit | None) -> Html | None:
    named = [(line.label, f"line s{k % 3}") for k, line in enumerate(lines)]
    named += [(limit.label, "limit")] if limit else []
    if len(named) < 2:
        return None
    parts = []
    x = float(LEFT)
    for label, style in named:
        parts.append(element("line", x1=x, y1=14, x2=x + 24, y2=14, class_=style))
        parts.append(element("text", label, x=x + 30, y=18))
        x += 54 + 7.2 * len(label)
    return element("g", *parts)


def _describe(lines: Sequence[Line], log: bool, across: Across) -> str:
    told = [
        f"{line.label}: {compact_text(line.points[0][1])} in {_place(line.points[0][0], across)},"
        f" {compact_text(line.points[-1][1])} in {_place(line.points[-1][0], across)}."
        for line in lines
    ]
    return " ".join([*told, "Logarithmic scale."] if log else told)


def _place(x: float, across: Across) -> str:
    return f"round {x:.0f}" if across is ROUNDS else f"{across.name} {compact_text(x)}"
