"""``veilrec demo``: the main job on the embedded marketplace, then a ranking to look at."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from client.agent import agent_for
from client.app import partner_folder
from client.data.ingest import read
from client.ranking.rank import LocalRanker
from simulations.datasets import MARKETPLACE
from simulations.simulate import Request, run, start

PARTNERS, ITEMS, EPSILON, DELTA = 4, 300, 8.0, 1e-5
QUERY = "something light for a weekend of hiking in the rain"


def run_demo(out: Path, users: int, *, quiet: bool) -> dict[str, Any]:
    """Run the demonstration in a fresh numbered folder below `out`; returns its ``run.json``."""
    folder = _fresh(out)
    settings = {"privacy": {"mode": "distributed", "epsilon": EPSILON, "delta": DELTA}}
    request = Request(MARKETPLACE, PARTNERS, "iid", 0, "inprocess", users, ITEMS, False, settings)
    document = run(start(request, folder))
    if not quiet:
        _show_ranking(folder)
        print(f"\nreport: {folder / 'report.html'}", file=sys.stderr)
    agent_for.cache_clear()
    return document


def _fresh(out: Path) -> Path:
    """`out`, or ``out-2``, ``out-3``, ... where it holds a run already: a demonstration can be repeated."""
    folder, n = out, 1
    while (folder / "simulation.json").exists():
        n += 1
        folder = out.with_name(f"{out.name}-{n}")
    return folder


def _show_ranking(folder: Path) -> None:
    data = read(partner_folder(folder / "partners", 0))
    ranker = LocalRanker.open(folder / "adapter", data)
    user = str(data.interactions.get_column("user_id").sort()[0])
    print(f"\nOne user of partner-000 ({user}), ranked on the partner's premises:", file=sys.stderr)
    for item in ranker.for_user(user, 5, explain=True).items:
        print(f"  {item.rank}. {item.title}\n     {item.reason}", file=sys.stderr)
    print(f"\nA wish in words: {QUERY!r}", file=sys.stderr)
    for item in ranker.for_query(QUERY, 5).items:
        print(f"  {item.rank}. {item.title}", file=sys.stderr)
