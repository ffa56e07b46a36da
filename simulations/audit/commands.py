"""The commands ``veilrec audit run|bundle|verify|report``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from simulations.audit.bundle.commands import verify
from simulations.audit.report.command import report

audit_app = typer.Typer(no_args_is_help=True, help="Audit a run's privacy, and check the evidence of others' audits.")
EXIT_CODES = {"PASS": 0, "INCONCLUSIVE": 3, "FAIL": 4}


@audit_app.callback()
def _audit() -> None:
    """Audit a run's privacy, and check the evidence of others' audits."""


audit_app.command()(verify)
audit_app.command()(report)


@audit_app.command()
def run(
    folder: Annotated[Path, typer.Option("--run", help="Folder of a simulated run.")],
    rungs: Annotated[str, typer.Option(help="Rungs of the ladder, by number, with commas.")] = "0,1,2,4,6",
    out: Annotated[Path | None, typer.Option(help="Folder for audit.json; default: audit in the run folder.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the audit's own coins.")] = 1,
    canaries: Annotated[int, typer.Option(min=4, help="Gradient canaries of rung 1.")] = 1000,
    references: Annotated[int, typer.Option(min=1, help="Reference models of rung 5; 16 or more for LiRA.")] = 2,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")
    ] = False,
) -> None:
    """Try to refute what a run claims; exit code 0 for PASS, 3 for INCONCLUSIVE, 4 for FAIL."""
    from simulations.audit.runner import DEFAULT_SIZES, run_audit

    sizes = type(DEFAULT_SIZES)(canaries, DEFAULT_SIZES.text, DEFAULT_SIZES.users)
    document = run_audit(
        folder,
        rungs=_numbers(rungs),
        out=out,
        seed=seed,
        sizes=sizes,
        references=references,
        tell=lambda line: print(line, file=sys.stderr),
    )
    if as_json:
        typer.echo(json.dumps(document))
    else:
        _show(document)
    raise typer.Exit(EXIT_CODES[document["verdict"]])


@audit_app.command()
def bundle(
    folder: Annotated[Path, typer.Option("--run", help="Run folder; of a deployment with the partners' ledgers.")],
    home: Annotated[Path | None, typer.Option(help="The coordinator's folder; of a simulation: partners.")] = None,
    key: Annotated[Path | None, typer.Option(help="The key that signs; default: the coordinator's.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The archive; default: audit/evidence.tar in the run folder.")
    ] = None,
    with_release: Annotated[bool, typer.Option(help="Put the adapter's files in, not only their digests.")] = False,
) -> None:
    """Put plan, code digests, ledgers, receipts, transcripts, release and audit into one signed archive."""
    from server.admission import SERVER_KEY_FILE
    from shared.hazmat.signing import SigningKey
    from simulations.audit.bundle.collect import BUNDLE_FILE, load_audit, make_bundle

    at = home or folder / "partners"
    signer = SigningKey.load(key or at / SERVER_KEY_FILE)
    path = out or folder / "audit" / BUNDLE_FILE
    make_bundle(folder, at, path, signer, load_audit(folder), with_release=with_release)
    typer.echo(f"{path}: signed by {signer.public.text}")


def _numbers(text: str) -> list[int]:
    from shared.errors import ConfigError

    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ConfigError(f"Expected --rungs as numbers with commas, got {text!r}.") from None


def _show(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    claimed = document["claimed"]
    promise = "nothing" if claimed["epsilon"] is None else f"epsilon = {claimed['epsilon']:.4g}"
    table = Table(title=f"{document['verdict']}: claimed {promise} at delta = {claimed['delta']:g}")
    for column in ("rung", "verdict", "epsilon >=", "power", "seconds"):
        table.add_column(column, justify="left" if column in ("rung", "verdict") else "right")
    for one in document["rungs"]:
        numbers = [one["epsilon_lower_bound"], one["power"], one["seconds"]]
        told = ["-" if value is None else f"{value:.3g}" for value in numbers]
        table.add_row(f"{one['name']}", one["verdict"], *told)
    console = Console()
    console.print(table)
    for one in document["rungs"]:
        console.print(f"{one['name']}: {one['why']}", highlight=False, soft_wrap=True, markup=False)
        for each in one["measurements"]:
            if not each["holds"]:
                line = f"  does not hold: {each['name']}: {each['value']:.6g}, expected {each['expected']}"
                console.print(line, highlight=False, soft_wrap=True, markup=False)
