"""The commands ``veilrec bench ...``."""

from __future__ import annotations

from typing import Annotated

import typer

from simulations.audit.poisoning.command import poisoning
from simulations.benchmarks.cold import cold
from simulations.benchmarks.explain_command import explain
from simulations.benchmarks.pii_command import pii
from simulations.benchmarks.quality.command import quality
from simulations.benchmarks.questions_command import questions
from simulations.benchmarks.ranking_command import load, ranking
from simulations.benchmarks.rerank_command import rerank
from simulations.benchmarks.show import show
from simulations.benchmarks.speed_commands import simulation, softmax, training

bench_app = typer.Typer(help="Measure what a part of Veilrec costs on this machine.", no_args_is_help=True)
bench_app.command()(cold)
bench_app.command()(quality)
bench_app.command()(training)
bench_app.command()(softmax)
bench_app.command()(simulation)
bench_app.command()(ranking)
bench_app.command()(load)
bench_app.command()(explain)
bench_app.command()(rerank)
bench_app.command()(questions)
bench_app.command()(pii)
bench_app.command()(poisoning)

_HEADINGS = {
    "parameters": "size",
    "dropped": "lost",
    "client_s": "client ms",
    "server_s": "server ms",
    "total_compute_s": "total ms",
    "bytes_up_per_partner": "bytes up",
    "max_error_steps": "error",
    "round_s": "round s",
    "slowest_round_s": "slowest",
    "training_s": "training",
    "besides_training_s": "beside it",
    "node_peak_rss_mb": "node MB",
    "agent_peak_rss_mb": "agent MB",
    "superlink_peak_rss_mb": "SuperLink MB",
}
"""Short enough for 80 columns."""


@bench_app.callback()
def _bench() -> None:
    """Keeps the benchmark's name in the command, even while there is one alone."""


@bench_app.command("secure-sum")
def secure_sum(
    partners: Annotated[str, typer.Option(help="Numbers of partners, 3 to 50, with commas between.")] = "3,10,50",
    parameters: Annotated[int, typer.Option(min=1, help="Coordinates of the sum.")] = 100_000,
    dropped: Annotated[float, typer.Option(min=0, max=1, help="Fraction that is lost after sharing.")] = 0.2,
    repeat: Annotated[int, typer.Option(min=1, help="Rounds, each with fresh keys; the median is shown.")] = 3,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")
    ] = False,
) -> None:
    """A whole masked round: keys, shares, masks, consents, opening; all partners in one process."""
    from simulations.benchmarks.secure_sum import benchmark

    rows = benchmark(_numbers(partners), parameters, dropped, repeat)
    if not as_json:
        rows = [{name: 1e3 * value if name.endswith("_s") else value for name, value in row.items()} for row in rows]
    show("secure-sum", rows, {name: _HEADINGS.get(name, name) for name in rows[0]}, as_json=as_json)


@bench_app.command("round")
def deployed_round(
    partners: Annotated[int, typer.Option(min=3, max=50)] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Warm ones that are measured.")] = 10,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")
    ] = False,
) -> None:
    """A round of a whole deployment on this machine: SuperLink, TLS, nodes, agents; what it costs beside training."""
    from simulations.benchmarks.deployed_round import benchmark

    rows = benchmark(partners, rounds, lambda line: typer.echo(line, err=True))
    show("round", rows, {name: _HEADINGS.get(name, name) for name in rows[0]}, as_json=as_json)


def _numbers(text: str) -> list[int]:
    from shared.errors import ConfigError

    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(3 <= number <= 50 for number in numbers):
        raise ConfigError("Expected --partners as numbers from 3 to 50 with commas between, as in 3,10,50.")
    return numbers
