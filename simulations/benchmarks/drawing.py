"""Plots as SVG, drawn by matplotlib without a display; the same figures give the same bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shared.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def drawing() -> Iterator[type[Figure]]:
    """Gives matplotlib's class of figures, under one style.

    Raises
    ------
    ConfigError
        If matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("Expected matplotlib for plots: install veilrec[bench].") from None
    # Ids of elements that do not depend on chance, and text that stays text.
    with mpl.rc_context({"svg.hashsalt": "veilrec", "svg.fonttype": "none", "font.size": 9}):
        yield Figure


def svg(figure: Figure) -> bytes:
    """The file of a figure, without the date on which it was drawn."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    return drawn.getvalue()
