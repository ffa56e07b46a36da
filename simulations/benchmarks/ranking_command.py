"""The command ``veilrec bench ranking``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from simulations.benchmarks.show import show

COLUMNS = {
    "system": "system",
    "path": "path",
    "items": "items",
    "batch": "batch",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "users_per_s": "users/s",
    "recall": "recall@10",
    "peak_rss_mb": "MB",
}


def ranking(
    items: Annotated[str, typer.Option(help="Sizes of the catalogue, with commas between.")] = "20000",
    repeat: Annotated[int, typer.Option(min=1, help="Turns of each contender after one to warm up.")] = 5,
    folder: Annotated[Path | None, typer.Option(help="Keeps the shops; by default they are made anew.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")
    ] = False,
) -> None:
    """Lists for users with 50 events: over HTTP, in the library, against FAISS and implicit, in turns."""
    from tempfile import TemporaryDirectory

    from simulations.benchmarks.arguments import numbers_of
    from simulations.benchmarks.ranking import benchmark

    sizes = numbers_of(items, "--items", 1000)
    with TemporaryDirectory() as temporary:
        rows = [
            row
            for size in sizes
            for row in benchmark(size, repeat, folder or Path(temporary), lambda line: print(line, file=sys.stderr))
        ]
    show(
        "ranking",
        rows,
        COLUMNS,
        as_json=as_json,
        caption="Medians over turns. HTTP: a service of its own process with 50 events of each user in SQLite.",
    )


LOAD_COLUMNS = {
    "clients": "clients",
    "minutes": "minutes",
    "requests": "requests",
    "failures": "failed",
    "requests_per_s": "a second",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "rss_warm_mb": "MB warm",
    "rss_end_mb": "MB at the end",
    "rss_mb_per_hour": "MB an hour",
}


def load(
    items: Annotated[int, typer.Option(min=1000, help="Size of the catalogue.")] = 20_000,
    clients: Annotated[int, typer.Option(min=1, help="That ask at once, without a pause.")] = 50,
    minutes: Annotated[float, typer.Option(min=0.02, help="How long.")] = 15.0,
    folder: Annotated[Path | None, typer.Option(help="Keeps the shop; by default it is made anew.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")
    ] = False,
) -> None:
    """A service at saturation: failures, times, and whether its memory grows."""
    from tempfile import TemporaryDirectory

    from simulations.benchmarks.load import benchmark

    with TemporaryDirectory() as temporary:
        row = benchmark(items, clients, minutes, folder or Path(temporary), lambda line: print(line, file=sys.stderr))
    show("load", [row], LOAD_COLUMNS, as_json=as_json, caption="One in twenty requests brings an event.")
