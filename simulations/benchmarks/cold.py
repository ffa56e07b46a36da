"""The command ``veilrec bench cold``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from simulations.benchmarks.show import show

COLUMNS = {
    "method": "method",
    "among_cold_hr@10": "cold HR@10",
    "to_chance": "× chance",
    "among_cold_auc": "cold AUC",
    "hr@10": "all HR@10",
    "warm_ndcg@10": "warm NDCG@10",
}
"""Short enough for 80 columns; ``--json`` has the rest."""


def cold(
    data: Annotated[str, typer.Option(help="marketplace, an imported set, or a path.")] = "marketplace",
    share: Annotated[float, typer.Option(help="Items that are withheld, as a share of those with events.")] = 0.1,
    partners: Annotated[int, typer.Option(min=1)] = 4,
    partition: Annotated[
        Literal["iid", "dirichlet", "taste"], typer.Option(help="The marketplace has its own.")
    ] = "iid",
    privacy: Annotated[Literal["distributed", "local", "none"], typer.Option()] = "distributed",
    epsilon: Annotated[float, typer.Option(help="User-level, for the whole run.")] = 8.0,
    delta: Annotated[float, typer.Option()] = 1e-5,
    rounds: Annotated[int | None, typer.Option(min=0, help="Training rounds.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    users: Annotated[int, typer.Option(help="People in the marketplace.")] = 3000,
    items: Annotated[int, typer.Option(help="Products in the marketplace.")] = 300,
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/bench-cold"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")
    ] = False,
) -> None:
    """Items that nobody met in training: HR@10 among them, against a popularity ranking with random ties (chance)."""
    from simulations.cold import cold_study
    from simulations.simulate import Request

    settings: dict[str, Any] = {"privacy": {"mode": privacy, "epsilon": epsilon, "delta": delta}}
    if rounds is not None:
        settings["training"] = {"rounds": rounds}
    request = Request(data, partners, partition, seed, "inprocess", users, items, False, settings)
    rows = cold_study(request, out, share=share)
    one = rows[0]
    show(
        "cold",
        rows,
        COLUMNS,
        as_json=as_json,
        title=f"{one['data']}: {one['withheld']} items withheld from training",
        caption=f"{one['users']} users; targets ranked among withheld (cold) items, and among all. "
        f"Chance has HR@10 {one['chance_hr@10']:.4f}; a method with AUC 0.5 is chance: equal scores count half.",
    )
