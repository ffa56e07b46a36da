"""The command ``veilrec bench questions``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from simulations.benchmarks.show import show

COLUMNS = {"question": "question", "method": "method", "figures": "figures", "users": "users"}


def questions(
    run: Annotated[Path, typer.Option(help="Run folder of a simulation.")],
    tune: Annotated[
        Path | None, typer.Option(help="Also on the last but one item, by a second training that goes here.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")
    ] = False,
) -> None:
    """Interests, wishes, similar items and users, audiences: each against simple ways, on held-out items."""
    from simulations.benchmarks.questions import questions_study

    rows = questions_study(run, tune)
    last = [{**row, "figures": _figures(row)} for row in rows if row["split"] == "last"]
    show("questions", rows if as_json else last, COLUMNS, as_json=as_json, title=f"{run.name}: questions of a shop")


def _figures(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in row.items() if isinstance(value, float))
