"""The command ``veilrec bench rerank``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from simulations.benchmarks.show import show

COLUMNS = {
    "what": "stage",
    "ndcg@10": "NDCG@10",
    "tail_users_ndcg@10": "rare",
    "long_tail@10": "tail",
    "coverage@10": "cover",
    "diversity@10": "unlike",
    "age_days@10": "days",
}
"""Short enough for 80 columns; ``--json`` has the rest."""


def rerank(
    run: Annotated[Path, typer.Option(help="Run folder of a simulation.")],
    tune: Annotated[
        Path | None, typer.Option(help="Also choose the long tail's strength, by a second training that goes here.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")
    ] = False,
) -> None:
    """Each stage of reranking by itself: accuracy, long tail, coverage, novelty, diversity, age, exposure."""
    from simulations.benchmarks.rerank import rerank_study

    rows = rerank_study(run, tune)
    last = [row for row in rows if row["split"] == "last"]
    show(
        "rerank",
        rows if as_json else [{**row, "what": _named(row)} for row in last],
        COLUMNS,
        as_json=as_json,
        title=f"{run.name}: the best {last[0]['retrieved']} of each user reranked",
        caption=f"{last[0]['users']} users. rare: NDCG@10 of the {last[0]['tail_users']} whose held-out item is among "
        "the least popular 80 % of the catalogue. Of the ten listed items: tail, share outside the head, which holds "
        "80 % of interactions; cover, share of the catalogue that is listed; unlike, 1 - cosine of pairs; days, age. "
        "A star: chosen on the last-but-one split.",
    )


def _named(row: dict[str, Any]) -> str:
    value = "" if row["value"] is None else f" {row['value']:g}"
    return f"{row['stage']}{value}{' *' if row['chosen'] else ''}"
