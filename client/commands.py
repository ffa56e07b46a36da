"""A partner's commands at the top of the tree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def rank(
    run: Annotated[Path, typer.Option(help="Run folder with an adapter.")],
    data: Annotated[str, typer.Option(help="The partner's data: an imported set, a folder or a file.")],
    user: Annotated[str | None, typer.Option(help="A user id of the data.")] = None,
    query: Annotated[str | None, typer.Option(help="What somebody wants, in words.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many items.")] = 10,
    explain: Annotated[bool, typer.Option(help="Say what of the user's history moved each item.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Rank the catalogue for a user of the partner's own data, or for a free-text query."""
    from dataclasses import asdict

    from client.ranking.rank import LocalRanker, data_of
    from shared.errors import ConfigError

    if (user is None) == (query is None):
        raise ConfigError("Expected one of --user and --query.")
    ranker = LocalRanker.open(run / "adapter", data_of(run, data), device=device)
    ranked = ranker.for_query(query, k) if query is not None else ranker.for_user(str(user), k, explain=explain)
    if as_json:
        typer.echo(json.dumps(asdict(ranked)))
        return
    for item in ranked.items:
        typer.echo(f"{item.rank:>3}  {item.score:8.3f}  {item.title or item.item_id}")
        if item.reason:
            typer.echo(f"{'':>15}{item.reason}")
