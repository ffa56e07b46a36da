"""The parts of the report: charts, markup, figures."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from simulations.report.charts import HEIGHT, WIDTH, Limit, Line, bar, line_chart, ticks
from simulations.report.figures import (
    bytes_text,
    compact_text,
    delta_text,
    duration_text,
    epsilon_text,
    number_text,
    ratio_text,
)
from simulations.report.markup import Html, element, fragment

SVG = "{http://www.w3.org/2000/svg}"


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60),
    st.none() | st.floats(-1e6, 1e6),
)
def test_curves_stay_within_the_picture(values: list[float], limit: float | None) -> None:
    line = Line("a", tuple((float(k), value) for k, value in enumerate(values, start=1)))
    drawn = line_chart("c", "C", [line], None if limit is None else Limit("b", limit))
    assert drawn is not None
    chart = ElementTree.fromstring(drawn)
    points = next(chart.iter(f"{SVG}polyline")).attrib["points"].split()
    assert len(points) == len(values)
    for point in points:
        x, y = (float(part) for part in point.split(","))
        assert 0 <= x <= WIDTH and 0 <= y <= HEIGHT


def test_larger_values_are_drawn_higher() -> None:
    for values in ((1.0, 2.0), (1.0, 1000.0)):
        chart = ElementTree.fromstring(line_chart("c", "C", [Line("a", ((1, values[0]), (2, values[1])))]) or "")
        first, last = next(chart.iter(f"{SVG}polyline")).attrib["points"].split()
        assert float(last.split(",")[1]) < float(first.split(",")[1])
        assert float(last.split(",")[0]) > float(first.split(",")[0])


def test_limit_that_is_infinite_is_left_out() -> None:
    chart = line_chart("c", "C", [Line("a", ((1, 1.0),))], Limit("b", math.inf))
    assert chart is not None and 'class="limit"' not in chart


def test_chart_without_finite_values_is_left_out() -> None:
    assert line_chart("c", "C", [Line("a", ((1, math.inf), (2, math.nan))), Line("b", ())]) is None


def test_wide_ranges_get_a_logarithmic_axis_and_say_so() -> None:
    chart = line_chart("c", "C", [Line("a", ((1, 1.0), (2, 1000.0)))])
    assert chart is not None and "Logarithmic scale." in chart


def test_long_curves_are_thinned_but_keep_their_last_point() -> None:
    points = tuple((float(k), float(k % 7)) for k in range(1, 5002))
    chart = line_chart("c", "C", [Line("a", points)])
    assert chart is not None
    drawn = next(ElementTree.fromstring(chart).iter(f"{SVG}polyline")).attrib["points"].split()
    assert len(drawn) <= 402
    assert drawn[-1].startswith("624.0,")


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_lie_within_the_range_and_are_few(low: float, span: float) -> None:
    found = ticks(low, low + span)
    slack = 1e-6 * max(abs(low), span)
    assert len(found) <= 7
    assert all(low - slack <= tick <= low + span + slack for tick in found)


def test_bar_is_clamped_and_hidden_from_screen_readers() -> None:
    for share, width in ((2.0, "100"), (-1.0, "0"), (math.nan, "0")):
        drawn = ElementTree.fromstring(bar(share, best=False))
        assert drawn.attrib["aria-hidden"] == "true"
        assert drawn[0].attrib["width"] == width


@given(st.text())
def test_element_content_and_attributes_survive_parsing(text: str) -> None:
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]", "", text)
    parsed = ElementTree.fromstring(element("p", text, title=text))
    assert (parsed.text or "") == text
    assert parsed.attrib["title"] == text


def test_markup_joined_as_plain_text_is_escaped_again() -> None:
    bold = element("b", "x")
    assert element("p", bold) == "<p><b>x</b></p>"
    assert element("p", bold + "y") == "<p>&lt;b&gt;x&lt;/b&gt;y</p>"
    assert fragment([bold, None, "<"]) == "<b>x</b>&lt;"
    assert isinstance(fragment([]), Html)


@given(st.floats(0, 1e6, exclude_max=True))
def test_epsilon_is_never_written_smaller_than_it_is(epsilon: float) -> None:
    written = float(epsilon_text(epsilon))
    assert epsilon <= written <= epsilon + 0.001 + 1e-9


def test_figures_are_written_for_people() -> None:
    assert [epsilon_text(value) for value in (3.0, 2.99701, math.inf, math.nan, 1e9)] == [
        "3",
        "2.998",
        "∞",
        "∞",
        "∞",
    ]
    assert [delta_text(value) for value in (1e-6, 1.5e-10, 0.01)] == ["1e-6", "1.5e-10", "0.01"]
    assert [number_text(value) for value in (0.12345, None, math.nan, math.inf, 1234.0)] == [
        "0.1235",
        "–",
        "–",
        "∞",
        "1,234",
    ]
    assert [duration_text(value) for value in (0.42, 42.2, 185, 7800, math.inf)] == [
        "0.42 s",
        "42 s",
        "3 min 5 s",
        "2 h 10 min",
        "–",
    ]
    assert [bytes_text(value) for value in (512, 1536, 3 * 2**20, 5 * 2**30, math.nan)] == [
        "512 B",
        "1.5 KiB",
        "3.0 MiB",
        "5.0 GiB",
        "–",
    ]
    assert [compact_text(value) for value in (0.123456, 12345.0, 1e7)] == ["0.1235", "12,345", "1e+07"]
    assert [ratio_text(value) for value in (None, 1.944)] == ["–", "1.94 ×"]
