"""A status on a terminal: facts in two columns, and tables, without frames that a log would garble."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

PIPE_WIDTH = 200


def show(facts: Sequence[tuple[str, str]], *tables: tuple[Sequence[str], Iterable[Sequence[str]]]) -> None:
    """Print facts, then tables of a header and rows; a table without rows is left out."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # A pipe has no width of its own: nothing is cut off there.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        console.print(Text(f"{name:<{width}}  {value}"), soft_wrap=True)
    for heads, rows in tables:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
        for head in heads:
            table.add_column(head, no_wrap=True)
        for row in rows:
            table.add_row(*map(Text, row))
        if table.row_count:
            console.print()
            console.print(table)
