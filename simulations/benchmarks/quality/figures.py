"""Plots as SVG files, drawn by matplotlib without a display; the same rows give the same bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shared.files import write_bytes
from simulations.benchmarks.drawing import drawing, svg
from simulations.benchmarks.quality.labels import method_label
from simulations.benchmarks.quality.study import FEDERATED
from simulations.benchmarks.quality.summary import HEADLINE, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINES = {"taste": "--", "dirichlet": ":"}


def draw(name: str, rows: Sequence[Row], folder: Path) -> dict[str, Path]:
    """Draw what the rows of one data set have: methods without privacy, and the frontier over epsilon.

    Parameters
    ----------
    name : str
        Of the data set; in the titles, and in the names of the files.
    rows : sequence of Row
    folder : Path

    Returns
    -------
    dict of str to Path
        By title.

    Raises
    ------
    ConfigError
        If matplotlib is not installed.
    """
    stem = f"quality-{re.sub(r'[^A-Za-z0-9_-]', '-', name)}"
    plain = [row for row in rows if row.group.epsilon is None]
    drawn: dict[str, Path] = {}
    with drawing() as Figure:
        if plain:
            bars = Figure(figsize=(7, 0.8 + 0.28 * len(plain)), layout="constrained")
            _bars(_axes(bars), f"{name}, no privacy", plain)
            drawn[f"{name}: methods without privacy"] = _save(bars, folder / f"{stem}-methods.svg")
        if len(plain) < len(rows):
            frontier = Figure(figsize=(8, 4), layout="constrained")
            _frontier(_axes(frontier), f"{name}, user-level privacy", rows)
            frontier.legend(loc="outside right upper", fontsize=7)
            drawn[f"{name}: NDCG@10 over epsilon"] = _save(frontier, folder / f"{stem}-frontier.svg")
    return drawn


def _axes(figure: Figure) -> Axes:
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _bars(axes: Axes, title: str, rows: Sequence[Row]) -> None:
    ordered = sorted(rows, key=lambda row: row.means[HEADLINE])
    errors = [[_half(row) for row in ordered]] * 2
    colours = ["#1b6ca8" if row.group.method == FEDERATED else "#9bb4c7" for row in ordered]
    places = range(len(ordered))
    axes.barh(places, [row.means[HEADLINE] for row in ordered], xerr=errors, color=colours, capsize=2)
    axes.set_yticks(places, [method_label(row.group.method, row.group.partition) for row in ordered])
    axes.set(title=title, xlabel="NDCG@10")


def _frontier(axes: Axes, title: str, rows: Sequence[Row]) -> None:
    """Epsilon from strict to loose, evenly spaced, and at the right what the method has without privacy."""
    epsilons = sorted({row.group.epsilon for row in rows if row.group.epsilon is not None})
    place: dict[float | None, int] = {epsilon: number for number, epsilon in enumerate(epsilons)}
    place[None] = len(epsilons)
    methods = list(dict.fromkeys(row.group.method for row in rows if row.group.epsilon is not None))
    for method, partition in dict.fromkeys((row.group.method, row.group.partition) for row in rows):
        if method not in methods:
            continue  # without a private form
        own = [row for row in rows if (row.group.method, row.group.partition) == (method, partition)]
        own.sort(key=lambda row: place[row.group.epsilon])
        axes.errorbar(
            [place[row.group.epsilon] for row in own],
            [row.means[HEADLINE] for row in own],
            yerr=[_half(row) for row in own],
            label=method_label(method, partition),
            color=f"C{methods.index(method)}",
            linestyle=LINES.get(partition, "-"),
            linewidth=2.2 if method == FEDERATED else 1.1,
            marker="o",
            markersize=4,
            capsize=2,
        )
    axes.set_xticks(range(len(epsilons) + 1), [*(f"{epsilon:g}" for epsilon in epsilons), "none"])
    axes.set(title=title, xlabel="epsilon", ylabel="NDCG@10", ylim=(0, None))


def _half(row: Row) -> float:
    low, high = row.intervals.get(HEADLINE, (0.0, 0.0))
    return (high - low) / 2


def _save(figure: Figure, file: Path) -> Path:
    write_bytes(file, svg(figure))
    return file
