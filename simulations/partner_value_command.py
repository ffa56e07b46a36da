"""The command ``veilrec partner value``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from simulations.partner_value import Value

HEADINGS = {
    "alone": "alone",
    "alone_and_own_adapter": "+ own adapter",
    "global": "global",
    "global_and_own_prior": "+ own prior",
    "global_and_personal": "+ own adapter",
    "global_without_noise": "without noise",
}


def value(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A partner's folder, or the folder of a simulation's partners.")
    ],
    run: Annotated[Path, typer.Option(help="Run folder with the adapter.")],
    without_noise: Annotated[
        Path | None, typer.Option(help="Run folder of the same federation with --privacy none: what the noise costs.")
    ] = None,
    held_out: Annotated[
        Path | None, typer.Option(help="A real partner's events since the training: user_id, item_id, timestamp.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")
    ] = False,
) -> None:
    """What joining is worth to a partner's own users, and what its own data add at home.

    NDCG@10 (--json: HR@10 and all intervals too): alone (closed forms of its own data, without noise or BERT; with an
    adapter of its own), with the global model, and with a prior and an adapter of its own on top, kept in DIR/personal
    and never sent.
    """
    from simulations.partner_value import partner_values, verdicts

    values = partner_values(folder, run, without_noise=without_noise, held_out=held_out)
    if as_json:
        typer.echo(json.dumps({"run": run.name, "partners": [one.to_json() for one in values]}))
        return
    _print(values)
    for line in verdicts(values):
        typer.echo(line)


def _print(values: Sequence[Value]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(title="NDCG@10 for a partner's own users", box=SIMPLE)
    table.add_column("partner", no_wrap=True)
    table.add_column("users", justify="right")
    names = [name for name in HEADINGS if name in values[0].ranked]
    for name in names:
        table.add_column(HEADINGS[name], justify="right")
    for one in values:
        told = one.to_json()
        table.add_row(one.partner, str(told["users"]), *(f"{told['methods'][name]['ndcg@10']:.4f}" for name in names))
    Console().print(table)
