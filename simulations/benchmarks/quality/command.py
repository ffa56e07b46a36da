"""The command ``veilrec bench quality``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from simulations.benchmarks.quality.runner import Outcome


def quality(
    data: Annotated[str, typer.Option(help="Names or paths, with commas between.")] = "marketplace",
    partitions: Annotated[str, typer.Option(help="Of iid, dirichlet, taste; the marketplace has its own.")] = "iid",
    epsilons: Annotated[str, typer.Option(help="User-level, as in none,8,3,1.")] = "none",
    delta: Annotated[float, typer.Option(help="Wherever there is an epsilon.")] = 1e-6,
    seeds: Annotated[int, typer.Option(min=1, help="Three or more give intervals.")] = 3,
    partners: Annotated[int, typer.Option(min=1)] = 8,
    methods: Annotated[
        str, typer.Option(help="Names with commas between; by default all but the slow local_only, concatenated_text.")
    ] = "",
    users: Annotated[int, typer.Option(help="People in the marketplace.")] = 6000,
    items: Annotated[int, typer.Option(help="Products in the marketplace.")] = 300,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Overrides the federated preset: section.key=value.")
    ] = None,
    tune: Annotated[
        bool,
        typer.Option(help="Choose the federated model's rounds and prior, without privacy, as baselines are."),
    ] = True,
    cache: Annotated[Path | None, typer.Option(help="Folder of finished cells; by default in VEILREC_HOME.")] = None,
    write: Annotated[Path | None, typer.Option(help="Markdown file to write; plots go to figures/ beside it.")] = None,
    only_cached: Annotated[bool, typer.Option("--only-cached", help="Measure nothing; show what is there.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")
    ] = False,
) -> None:
    """Ranking quality over data sets, partitions, privacy, seeds and methods; goes on where it was stopped."""
    from simulations.baselines.methods import CONCATENATED_TEXT, METHODS
    from simulations.benchmarks.quality import options
    from simulations.benchmarks.quality.cache import Cache
    from simulations.benchmarks.quality.document import write_document
    from simulations.benchmarks.quality.runner import run_study
    from simulations.benchmarks.quality.study import FROM_A_RUN, Study
    from simulations.presets import settings_of

    study = Study(
        data=options.names_of(data),
        methods=options.names_of(methods) or (*FROM_A_RUN, *(name for name in METHODS if name != CONCATENATED_TEXT)),
        partitions=options.names_of(partitions),
        epsilons=options.epsilons_of(epsilons),
        seeds=seeds,
        partners=partners,
        delta=delta,
        users=users,
        items=items,
        settings=settings_of(set_ or []),
        tuned=tune,
    )
    outcome = run_study(study, Cache(cache or options.default_cache()), only_cached=only_cached, tell=_tell)
    if write is not None:
        write_document(outcome, write)
    if as_json:
        typer.echo(json.dumps(_document(outcome)))
    else:
        _print(outcome)


def _tell(line: str) -> None:
    typer.echo(line, err=True)


def _document(outcome: Outcome) -> dict[str, Any]:
    from dataclasses import asdict

    from simulations.benchmarks.machine import machine
    from simulations.benchmarks.quality.summary import comparisons_of, rows_of

    return {
        "benchmark": "quality",
        "machine": machine(),
        "canary": asdict(outcome.canary),
        "cells": {"wanted": outcome.cells, "done": len(outcome.results)},
        "results": [row.document() for row in rows_of(outcome.results)],
        "comparisons": [one.document() for one in comparisons_of(outcome.results)],
    }


def _print(outcome: Outcome) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from simulations.benchmarks.quality.labels import method_label, promise_label
    from simulations.benchmarks.quality.summary import HEADLINE, rows_of

    table = Table(title=f"quality: {len(outcome.results)} of {outcome.cells} cells", box=SIMPLE)
    for name in ("data", "method", "privacy", "seeds", "NDCG@10", "95 %", "HR@10"):
        table.add_column(name, justify="left" if name in ("data", "method", "privacy") else "right")
    for row in rows_of(outcome.results):
        group, bounds = row.group, row.intervals.get(HEADLINE)
        table.add_row(
            group.data,
            method_label(group.method, group.partition),
            promise_label(group.epsilon),
            str(len(row.seeds)),
            f"{row.means[HEADLINE]:.4f}",
            "" if bounds is None else f"{bounds[0]:.4f} to {bounds[1]:.4f}",
            f"{row.means['hr@10']:.4f}",
        )
    Console().print(table)
