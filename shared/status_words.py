"""Figures of a status in the words that a person reads: the same on a terminal and on a page."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from shared import errors

NEVER = "never"
UNKNOWN = "not known"
OTHER = "other"
FAMILIES = frozenset(
    name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.VeilrecError)
)
_UNITS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"))


def family_of(name: str) -> str:
    """The name of an error's family, or ``other``: what came from elsewhere may hold anything."""
    return name if name in FAMILIES else OTHER


def duration(seconds: float | None) -> str:
    """``1.4 s``, ``12 min``, ``3.5 h``, ``2 d``."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    size = max(0.0, seconds)
    for length, unit in _UNITS:
        if size >= length:
            return f"{_short(size / length)} {unit}"
    return f"{_short(size)} s"


def size(count: int | None) -> str:
    """Bytes: ``812 B``, ``1.4 MB`` (powers of ten)."""
    if count is None:
        return UNKNOWN
    for length, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= length:
            return f"{_short(count / length)} {unit}"
    return f"{count} B"


def moment(at: float | None) -> str:
    """``2026-01-31 09:05:00 UTC``, of seconds since 1970."""
    if at is None:
        return NEVER
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def spent_of(spent: float | None, limit: float | None) -> str:
    """``1.25 of 8``: of a budget; what has no bound says so."""
    return f"{number(spent)} of {number(limit)}"


def number(value: float | None) -> str:
    """Four significant digits; None where there is no bound."""
    if value is None or math.isinf(value):
        return "no bound"
    return f"{value:.4g}"


def left(limit: float | None, spent: float | None) -> float | None:
    """What is left of a budget; None if there is no bound on it."""
    if limit is None or math.isinf(limit):
        return None
    return max(0.0, limit - (math.inf if spent is None else spent))


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0") if value < 100 else f"{value:.0f}"
