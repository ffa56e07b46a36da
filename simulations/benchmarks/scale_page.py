"""The page on scale: what grows with what, as tables and one plot. Written from rows of `simulations.benchmarks`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import ConfigError
from shared.files import write_bytes
from simulations.benchmarks.drawing import drawing, svg
from simulations.benchmarks.machine import machine
from simulations.benchmarks.show import markdown
from simulations.benchmarks.simulation import BASE, GROWTH, LARGE, Case, Row, is_row_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURE = "figures/scale.svg"
FIELDS = {"users": "users", "items": "items", "partners": "clients", "rounds": "rounds"}
"""What grows, and its key in a row."""
HEAD = """# Scale

Written by `veilrec bench simulation --engine both --grow --large --keep ROWS --write`; edit the program, not this page.
{cpus} CPU cores, {platform}, {threads} thread a process, with whatever else the machine was doing. The people of the
embedded marketplace, without the texts of their reviews: those are read once, before the rounds, at a cost of their
own. Privacy mode `distributed`. Sums are masked for 3 to 50 partners; larger simulations run without masks. *Epoch* is
the time of rounds whose sampling rates add up to 1. Peak memory is that of the process that trains (on Ray with all its
workers, pages that they share counted in each). Every partner keeps its ledger, plan checks, noise and receipts, as in
a real federation; all of them take turns in one process.
"""
COLUMNS = {
    "ms_per_client_round": "ms a partner and round",
    "prior_s": "prior s",
    "startup_s": "start s",
    "users_per_s": "users/s",
    "epoch_s": "epoch s",
    "cpu_s": "CPU s, all",
    "peak_rss_mb": "peak MB",
    "disk_mb": "disk MB",
    "bytes_up_per_client_round": "bytes up",
}


def write_page(rows: Sequence[Row], file: Path) -> None:
    """Write the page and, where something grew, its plot beside it.

    Raises
    ------
    ConfigError
        If there is nothing to write, or matplotlib is not installed.
    """
    if not rows:
        raise ConfigError("Expected rows for the page: run a benchmark, or name a file of rows with --keep.")
    told = machine()
    threads = os.environ.get("OMP_NUM_THREADS", told["cpus"])
    parts = [HEAD.format(cpus=told["cpus"], platform=told["platform"], threads=threads)]
    grown = {what: own for what in GROWTH if len(own := _growth(what, rows)) > 1}
    for what, own in grown.items():
        rest = ", ".join(f"{getattr(BASE, key):,} {name}" for name, key in FIELDS.items() if name != what)
        parts.append(f"## By {what}\n\n{rest}, sampling rate {BASE.sampling_rate:g}.\n")
        parts.append(_table([what], [[f"{row[FIELDS[what]]:,}"] for row in own], own))
    if grown:
        write_bytes(file.parent / FIGURE, _drawn(grown))
        parts.append(f"![Cost by users, items, partners and rounds]({FIGURE})\n")
    parts += _others(rows, [row for own in grown.values() for row in own])
    write_bytes(file, "\n".join(parts).encode())


def _growth(what: str, rows: Sequence[Row]) -> list[Row]:
    found = [next((row for row in rows if is_row_of(case, row)), None) for case in GROWTH[what]]
    return [row for row in found if row is not None]


def _others(rows: Sequence[Row], grown: Sequence[Row]) -> Iterator[str]:
    for title, chosen in (
        ("One epoch-equivalent, large", [row for case in LARGE for row in rows if is_row_of(case, row)]),
        ("Engines", _of_both_engines(rows)),
    ):
        if chosen:
            yield f"## {title}\n"
            keys = [[_told(row)] for row in chosen]
            yield _table(["federation"], keys, chosen)


def _of_both_engines(rows: Sequence[Row]) -> list[Row]:
    """Rows of cases that ran on Ray, each after that of the in-process engine."""
    pairs = []
    for row in rows:
        if row["engine"] == "ray":
            case = Case(**{key: row[key] for key in BASE.told() if key not in ("engine", "masked")})
            pairs += [one for one in rows if is_row_of(case, one)] + [row]
    return pairs


def _told(row: Row) -> str:
    engine = "Ray, " if row["engine"] == "ray" else ""
    sizes = f"{row['users']:,} users, {row['clients']:,} partners, {row['items']:,} items"
    rounds = f"{row['rounds']} round{'s' if row['rounds'] > 1 else ''}"
    return f"{engine}{sizes}, {rounds} at rate {row['sampling_rate']:g}, prior {row['prior']}"


def _table(heads: Sequence[str], keys: Sequence[Sequence[str]], rows: Sequence[Row]) -> str:
    body = [[*key, *(_number(row[name]) for name in COLUMNS)] for key, row in zip(keys, rows, strict=True)]
    return markdown([*heads, *COLUMNS.values()], body)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _drawn(grown: dict[str, list[Row]]) -> bytes:
    """One panel for each that grows: seconds of an epoch at the left, memory at the right; as SVG."""
    with drawing() as Figure:
        figure = Figure(figsize=(3.4 * len(grown), 3.2), layout="constrained")
        for place, (what, own) in enumerate(grown.items(), start=1):
            _panel(figure.add_subplot(1, len(grown), place), what, own)
        return svg(figure)


def _panel(axes: Axes, what: str, rows: Sequence[Row]) -> None:
    sizes = [row[FIELDS[what]] for row in rows]
    for key, label, style, side in (
        ("epoch_s", "epoch, s", "o-", axes),
        ("peak_rss_mb", "peak memory, MB", "s--", axes.twinx()),
    ):
        colour = "#1b6ca8" if side is axes else "#b0562b"
        side.plot(sizes, [row[key] for row in rows], style, color=colour, markersize=4)
        side.set_ylabel(label, color=colour)
        side.set_ylim(0, None)
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(what)
