"""HTML and SVG elements that escape by construction."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

VOID_ELEMENTS = frozenset({"meta", "br", "hr"})


class Html(str):
    """Markup that is escaped already.

    Whatever is not `Html` is escaped by `element`. Joining `Html` with ``+`` or an f-string gives a
    plain `str`, which is escaped again: a mistake shows as visible tags, never as injected ones.
    """

    __slots__ = ()


def fragment(children: Iterable[str | None]) -> Html:
    """Markup of all children in order; plain strings are escaped, None is left out."""
    return Html("".join(child if isinstance(child, Html) else escape(child) for child in children if child is not None))


def element(name: str, /, *children: str | None, **attributes: str | float | None) -> Html:
    """One element.

    Parameters
    ----------
    name : str
        Name of the element.
    *children : str or None
        Content: `Html` as it is, other strings escaped, None left out.
    **attributes : str, float or None
        ``class_`` becomes ``class``, ``stroke_width`` becomes ``stroke-width``; None is left out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_attribute(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID_ELEMENTS:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{fragment(children)}</{name}>")


def _attribute(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"
