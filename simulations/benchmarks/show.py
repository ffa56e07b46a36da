"""How every benchmark tells its rows: one JSON document on stdout, or a table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import typer

Row = Mapping[str, Any]


def show(
    name: str, rows: Sequence[Row], columns: Mapping[str, str], *, as_json: bool, title: str = "", caption: str = ""
) -> None:
    """Print rows.

    Parameters
    ----------
    name : str
        Of the benchmark.
    rows : sequence of mappings
    columns : mapping of str to str
        Headings of the fields that a table has; JSON has all fields.
    as_json : bool
    title, caption : str
        Of the table.
    """
    from simulations.benchmarks.machine import machine

    if as_json:
        typer.echo(json.dumps({"benchmark": name, "machine": machine(), "results": list(rows)}))
        return
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    table = Table(title=title or name, caption=caption or None, box=SIMPLE)
    for key, heading in columns.items():
        words = any(isinstance(row.get(key), str) for row in rows)
        table.add_column(heading, justify="left" if words else "right")
    for row in rows:
        table.add_row(*(_cell(row.get(key)) for key in columns))
    console = Console()
    if not console.is_terminal:  # a file has no width: cells that are cut off cannot be read there
        wide = Console(width=10_000)
        console = Console(width=max(console.width, Measurement.get(wide, wide.options, table).maximum))
    console.print(table)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table of a page."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
