"""Two small charts of a run's rounds, as SVG: how far the model moved, and how long a round took.

Norms are of the opened sum, which the coordinator has anyway, beside the norm that its noise alone has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

WIDTH, HEIGHT = 560, 120
LEFT, RIGHT, TOP, BOTTOM = 52, 8, 8, 22
POINTS = 400
"""More rounds than these are thinned out: a bar is then narrower than a pixel."""


def norm_chart(rounds: Sequence[dict[str, Any]]) -> str:
    """The update's norm and the noise's, by round; empty before two training rounds."""
    shown = _thinned([line for line in rounds if line.get("stage") == "train" and "update_norm" in line])
    if len(shown) < 2:
        return ""
    kinds = ("noise_norm", "update_norm")
    top = _top([float(line[name]) for line in shown for name in kinds])
    paths = "".join(
        f'<path class="{name}" d="{_line([float(line.get(name, 0.0)) for line in shown], top)}"/>' for name in kinds
    )
    first, last = shown[0]["round"], shown[-1]["round"]
    told = f"Norm of the update from round {first} to {last}: last {float(shown[-1]['update_norm']):.3g}"
    return _svg(told, paths + _axes(top, first, last))


def seconds_chart(rounds: Sequence[dict[str, Any]]) -> str:
    """Seconds of each round as bars; empty before the first."""
    shown = _thinned([line for line in rounds if "seconds" in line])
    if not shown:
        return ""
    top = _top([float(line["seconds"]) for line in shown])
    step = (WIDTH - LEFT - RIGHT) / len(shown)
    bars = "".join(
        f'<rect class="seconds" x="{LEFT + k * step + 0.1 * step:.1f}" y="{_y(float(line["seconds"]), top):.1f}" '
        f'width="{0.8 * step:.2f}" height="{HEIGHT - BOTTOM - _y(float(line["seconds"]), top):.1f}"/>'
        for k, line in enumerate(shown)
    )
    first, last = shown[0]["round"], shown[-1]["round"]
    told = f"Seconds of rounds {first} to {last}: last {float(shown[-1]['seconds']):.3g}"
    return _svg(told, bars + _axes(top, first, last))


def _svg(told: str, body: str) -> str:
    return f'<svg class="chart" role="img" viewBox="0 0 {WIDTH} {HEIGHT}"><title>{told}</title>{body}</svg>'


def _axes(top: float, first: int, last: int) -> str:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    return (
        f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}"/>'
        f'<text x="{LEFT - 6}" y="{TOP + 8}" text-anchor="end">{top:.3g}</text>'
        f'<text x="{LEFT - 6}" y="{bottom}" text-anchor="end">0</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 6}">round {first}</text>'
        f'<text x="{right}" y="{HEIGHT - 6}" text-anchor="end">{last}</text>'
    )


def _line(values: Sequence[float], top: float) -> str:
    step = (WIDTH - LEFT - RIGHT) / (len(values) - 1)
    return "M" + "L".join(f"{LEFT + k * step:.1f} {_y(value, top):.1f}" for k, value in enumerate(values))


def _y(value: float, top: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(max(0.0, value), top) / top)


def _top(values: Sequence[float]) -> float:
    return max((value for value in values if math.isfinite(value)), default=0.0) or 1.0


def _thinned(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    step = math.ceil(len(rounds) / POINTS) if rounds else 1
    return rounds[::-1][::step][::-1]
