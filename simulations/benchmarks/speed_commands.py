"""The commands ``veilrec bench training``, ``veilrec bench softmax`` and ``veilrec bench simulation``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from simulations.benchmarks.arguments import numbers_of
from simulations.benchmarks.show import show

if TYPE_CHECKING:
    from simulations.benchmarks.simulation import Case

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
TRAINING = {
    "method": "method",
    "privacy": "privacy",
    "variant": "variant",
    "precision": "bits",
    "users_per_s": "users/s",
    "peak_rss_mb": "MB",
    "times_non_private": "× no DP",
    "speed_up": "× usual",
}
SOFTMAX = {
    "items": "items",
    "softmax": "softmax",
    "users_per_s": "users/s",
    "speed_up": "× all",
    "peak_rss_mb": "MB",
    "cosine": "cosine to exact",
}
SIMULATION = {
    "engine": "engine",
    "clients": "clients",
    "users": "users",
    "items": "items",
    "rounds": "rounds",
    "startup_s": "start s",
    "ms_per_client_round": "ms",
    "epoch_s": "epoch s",
    "peak_rss_mb": "MB",
}
"""Short enough for a terminal; ``--json`` has the rest."""


def training(
    users: Annotated[int, typer.Option(min=1, help="Users of a turn of Veilrec.")] = 256,
    usual_users: Annotated[int, typer.Option(min=1, help="Users of a turn of the usual way.")] = 32,
    repeat: Annotated[int, typer.Option(min=1, help="Turns of each; the median is shown.")] = 5,
    as_json: Json = False,
) -> None:
    """Users per second of training, against BERT on concatenated text with LoRA on every layer (the usual way)."""
    from simulations.benchmarks.training import benchmark

    rows = benchmark(users, usual_users, repeat, told=_progress)
    show("training", rows, TRAINING, as_json=as_json)


def softmax(
    items: Annotated[str, typer.Option(help="Sizes of the catalogue, with commas between.")] = "60000,100000",
    users: Annotated[int, typer.Option(min=1, help="Of a batch.")] = 32,
    repeat: Annotated[int, typer.Option(min=1, help="Turns of each; the median is shown.")] = 3,
    as_json: Json = False,
) -> None:
    """Private training over large catalogues: the softmax over all items, or over a round's sample of them."""
    from shared.model.candidates import MOST_EXACT
    from simulations.benchmarks.softmax import benchmark

    sizes = numbers_of(items, "--items", MOST_EXACT + 1)
    show("softmax", benchmark(sizes, users, repeat, _progress), SOFTMAX, as_json=as_json)


def simulation(
    engine: Annotated[Literal["inprocess", "ray", "both"], typer.Option()] = "inprocess",
    clients: Annotated[str, typer.Option(help="Numbers of partners, with commas between.")] = "10",
    users: Annotated[int, typer.Option(min=1, help="Of all partners together.")] = 2000,
    items: Annotated[int, typer.Option(min=1)] = 300,
    rounds: Annotated[int, typer.Option(min=1)] = 4,
    rate: Annotated[float, typer.Option(help="Sampling rate.")] = 0.1,
    privacy: Annotated[Literal["none", "distributed"], typer.Option()] = "distributed",
    ray_address: Annotated[str, typer.Option(help="A running Ray cluster, as host:port.")] = "",
    grow: Annotated[bool, typer.Option(help="Also how cost grows with users, items, partners and rounds.")] = False,
    large: Annotated[bool, typer.Option(help="Also 100,000 users, and 10,000 partners of one; an hour.")] = False,
    keep: Annotated[Path | None, typer.Option(help="A file of rows: its cases are not run again.")] = None,
    write: Annotated[Path | None, typer.Option(help="Write a page with all rows, and figures/ beside it.")] = None,
    as_json: Json = False,
) -> None:
    """What a simulated federation costs: start, time of a partner and round, memory, disk."""
    from shared.files import write_lines
    from simulations.benchmarks.scale_page import write_page
    from simulations.benchmarks.simulation import GROWTH, LARGE, Case, benchmark

    engines: list[Any] = ["inprocess", "ray"] if engine == "both" else [engine]
    cases: list[Case] = [
        Case(one, number, users, items, rounds, rate, privacy, ray_address=ray_address if one == "ray" else "")
        for one in engines
        for number in numbers_of(clients, "--clients")
    ]
    cases += [case for grown in GROWTH.values() for case in grown] if grow else []
    cases += LARGE if large else ()
    known = _known(keep)

    def kept(row: dict[str, Any]) -> None:
        known.append(row)
        if keep is not None:
            write_lines(keep, known)

    rows = benchmark(cases, tuple(known), kept, _progress)
    if write is not None:
        write_page(known, write)
    show("simulation", rows, SIMULATION, as_json=as_json)


def _known(keep: Path | None) -> list[dict[str, Any]]:
    from shared.errors import DataError

    if keep is None or not keep.exists():
        return []
    try:
        return [dict(json.loads(line)) for line in keep.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, TypeError):
        raise DataError(f"{keep}: Expected a JSON object in every line.") from None


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
