"""How numbers are written for people."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, Decimal

NOTHING = "–"
"""Stands where there is no value."""


def epsilon_text(epsilon: float) -> str:
    """Epsilon with up to three decimals, rounded up: a report never understates the loss of privacy.

    A million and more bounds nothing and is written as infinite.
    """
    if not epsilon < 1e6:
        return "∞"
    rounded = Decimal(repr(epsilon)).quantize(Decimal("0.001"), rounding=ROUND_CEILING)
    return f"{rounded:f}".rstrip("0").rstrip(".")


def delta_text(delta: float) -> str:
    """Delta, as ``1e-6``."""
    return f"{delta:.4g}".replace("e-0", "e-")


def number_text(value: float | None, decimals: int = 4) -> str:
    """A number with fixed decimals, or a dash; whole numbers of 100 and more are grouped by thousands."""
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞"
    if value == int(value) and (abs(value) >= 100 or decimals == 0):
        return f"{int(value):,}"
    return f"{value:.{decimals}f}"


def compact_text(value: float) -> str:
    """A number in at most four significant digits, as on the axis of a chart."""
    return f"{value:,.0f}" if abs(value) >= 1000 and value < 1e6 else f"{value:.4g}"


def ratio_text(ratio: float | None) -> str:
    """A ratio such as ``1.94 ×``."""
    return NOTHING if ratio is None else f"{ratio:.2f} ×"


def duration_text(seconds: float) -> str:
    """Seconds as ``0.4 s``, ``42 s``, ``3 min 5 s`` or ``2 h 10 min``."""
    if not math.isfinite(seconds):
        return NOTHING
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def bytes_text(count: float) -> str:
    """A number of bytes as ``512 B``, ``1.5 KiB``, ``3.2 MiB``, ``1.0 GiB``."""
    if not math.isfinite(count):
        return NOTHING
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} GiB"
