"""The command ``veilrec server run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run(
    home: Annotated[Path, typer.Argument(metavar="HOME", help="What `veilrec server init` made.")],
    until_done: Annotated[bool, typer.Option("--until-done", help="End once the run is complete.")] = False,
    exchange_s: Annotated[float, typer.Option(min=1, help="Time-out of an exchange without training.")] = 120.0,
    gather_s: Annotated[float, typer.Option(min=1, help="Time for all partners to be there.")] = 600.0,
    grace_s: Annotated[float, typer.Option(min=1, help="Time for the rest, once a quorum has answered.")] = 60.0,
) -> None:
    """Keep the coordinator running: SuperLink, public gate, operator's page, and the run until it is complete."""
    import asyncio
    from dataclasses import replace

    from server.coordinator import PATIENCE, Coordinator
    from shared.logs import Log, take_over

    patience = replace(PATIENCE, gather_s=gather_s, exchange_s=exchange_s, grace_s=grace_s)
    log = Log(process="server")
    take_over(log)
    asyncio.run(Coordinator(home, log, patience, stay=not until_done).run())
