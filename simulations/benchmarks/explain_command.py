"""The command ``veilrec bench explain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulations.benchmarks.show import show

COLUMNS = {
    "method": "method",
    "deleted": "deleted",
    "named": "fall, named",
    "random": "fall, random",
    "ratio": "ratio",
    "over_bar": "named - 2 random",
    "true": "true",
}


def explain(
    run: Annotated[Path, typer.Option(help="Run folder with an adapter.")],
    data: Annotated[str, typer.Option(help="marketplace (the run's own), an imported set, or a path.")] = "marketplace",
    users: Annotated[int, typer.Option(min=1, help="Drawn at random.")] = 100,
    items: Annotated[int, typer.Option(min=1, help="Best items of each that are explained.")] = 3,
    sets: Annotated[int, typer.Option(min=1, help="Random sets for each user and size.")] = 30,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")
    ] = False,
) -> None:
    """Delete what an explanation names, and as many things at random: by how much does the item's score fall?"""
    from simulations.benchmarks.explain import deletion_test

    rows = deletion_test(run, data, users=users, items=items, sets=sets, seed=seed)
    show(
        "explain",
        rows,
        COLUMNS,
        as_json=as_json,
        title=f"{users} users, {items} items each",
        caption="True: the fall is more than twice that of random things, by a 95 % bootstrap interval.",
    )
