"""The command ``veilrec bench poisoning``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulations.benchmarks.show import show

COLUMNS = {
    "defence": "defence",
    "attack": "attack",
    "attackers": "by",
    "strength": "boost",
    "er@10": "ER@10",
    "er@10_clean": "clean",
    "er@50": "ER@50",
    "mean_rank": "rank",
    "hr@10": "HR@10",
    "hr@10_change": "change",
    "ndcg@10": "NDCG@10",
    "backdoor_rate": "backdoor",
    "gate_holds": "gate",
    "detection_auc_prior": "AUC",
}


def poisoning(
    out: Annotated[Path | None, typer.Option(help="Keep the federation and the runs here.")] = None,
    users: Annotated[int, typer.Option(min=100, help="People in the marketplace.")] = 12_000,
    items: Annotated[int, typer.Option(min=64, help="Products in the marketplace.")] = 300,
    partners: Annotated[int, typer.Option(min=9, max=50, help="Buckets of three are made of them.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Training rounds.")] = 4,
    epsilon: Annotated[float, typer.Option(min=0.1, help="User-level, for the whole run.")] = 8.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")
    ] = False,
) -> None:
    """Dishonest partners push an item, open a backdoor or send noise: what do honest partners' users see?"""
    from tempfile import TemporaryDirectory

    from simulations.audit.poisoning.defences import RECOMMENDED
    from simulations.audit.poisoning.experiment import Setting, run_experiment

    setting = Setting(users=users, items=items, partners=partners, seed=seed, rounds=rounds, epsilon=epsilon)
    with TemporaryDirectory() as folder:
        rows = run_experiment(setting, out or Path(folder), say=lambda line: typer.echo(line, err=True))
    show(
        "poisoning",
        rows,
        COLUMNS,
        as_json=as_json,
        title=f"{users:,} users at {partners} partners, {items} items, epsilon {epsilon:g}",
        caption="ER: share of honest partners' users who are shown the target. Gate: of partners that hold it back. "
        f"Recommended: {RECOMMENDED}.",
    )
