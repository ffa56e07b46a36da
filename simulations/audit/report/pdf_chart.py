"""The page's own SVG charts as vector drawings of the PDF: one drawing, two files."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree

from simulations.audit.report.pdf_text import COLOURS, REGULAR, plain
from simulations.report.charts import HEIGHT, WIDTH
from simulations.report.markup import Html

if TYPE_CHECKING:
    from reportlab.graphics.shapes import Drawing, Shape

STROKES: dict[str, tuple[str, float, list[int] | None]] = {
    "grid": ("rule", 1.0, None),
    "limit": ("soft", 1.5, [3, 4]),
    "line s0": ("one", 2.0, None),
    "line s1": ("two", 2.0, [7, 4]),
    "line s2": ("three", 2.0, [2, 3]),
}
"""Colour, width and dashes of the style sheet's classes."""


def chart_drawing(svg: Html, width: float) -> Drawing:
    """A chart by `simulations.report.charts`, `width` points wide.

    Raises
    ------
    KeyError
        If the chart has a part that is not known here.
    """
    from reportlab.graphics.shapes import Drawing

    scale = width / WIDTH
    drawing = Drawing(width, HEIGHT * scale)
    drawing.scale(scale, scale)
    for part in ElementTree.fromstring(svg).iter():
        shape = _shape(part.tag.rpartition("}")[2], part)
        if shape is not None:
            drawing.add(shape)
    return drawing


def _shape(tag: str, part: ElementTree.Element) -> Shape | None:
    from reportlab.graphics.shapes import Circle, Line, PolyLine, String
    from reportlab.lib.colors import HexColor

    style = part.get("class", "")
    match tag:
        case "line":
            ends = [float(part.attrib["x1"]), _up(part, "y1"), float(part.attrib["x2"]), _up(part, "y2")]
            return Line(*ends, **_stroke(style))
        case "polyline":
            pairs = [pair.split(",") for pair in part.attrib["points"].split()]
            points = [value for x, y in pairs for value in (float(x), HEIGHT - float(y))]
            return PolyLine(points, **_stroke(style))
        case "circle":
            colour = HexColor(COLOURS[STROKES[style.replace("dot", "line")][0]])
            at = (float(part.attrib["cx"]), _up(part, "cy"), float(part.attrib["r"]))
            return Circle(*at, fillColor=colour, strokeColor=None)
        case "text":
            anchor = part.get("text-anchor", "start")
            look = {"fontName": REGULAR, "fontSize": 11, "fillColor": HexColor(COLOURS["soft"]), "textAnchor": anchor}
            return String(float(part.attrib["x"]), _up(part, "y"), plain(part.text or ""), **look)
        case "svg" | "g" | "title" | "desc":
            return None
    raise KeyError(f"Expected a part of a line chart, got {tag}.")


def _up(part: ElementTree.Element, name: str) -> float:
    """SVG counts downwards, PDF upwards."""
    return HEIGHT - float(part.attrib[name])


def _stroke(style: str) -> dict[str, object]:
    from reportlab.lib.colors import HexColor

    colour, width, dashes = STROKES[style]
    return {"strokeColor": HexColor(COLOURS[colour]), "strokeWidth": width, "strokeDashArray": dashes}
