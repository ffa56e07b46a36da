"""Tables with captions and scoped headers, and JSON values as their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from simulations.report.markup import Html, element


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    return element(
        "div",
        element(
            "table",
            element("caption", caption),
            element("thead", element("tr", *(_cell(name, "col") for name in head))),
            element("tbody", *(_row(cells) for cells in rows)),
        ),
        class_="wide",
    )


def _row(cells: Sequence[str]) -> Html:
    return element("tr", _cell(cells[0], "row"), *(_cell(cell, None) for cell in cells[1:]))


def _cell(cell: str, scope: str | None) -> Html:
    if isinstance(cell, Html):
        return cell
    return element("td" if scope is None else "th", cell, scope=scope)


def leaves(values: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        place = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            found += leaves(value, place)
        elif value is not None:
            found.append((place, _leaf(value)))
    return found


def _leaf(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(_leaf(entry) for entry in value)
    return str(value)
