"""The command ``veilrec partner agent``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Only(StrEnum):
    """One of a partner's two processes."""

    agent = "agent"
    node = "node"


def agent(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The partner's folder.")],
    *,
    only: Annotated[Only | None, typer.Option(help="Be one of the two processes, in the foreground.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    agent_user: Annotated[str | None, typer.Option(help="As root: the user of the agent, which has the data.")] = None,
    node_user: Annotated[str | None, typer.Option(help="As root: the user of the node, which has the network.")] = None,
) -> None:
    """Keep a partner running: the agent, which has the data, and the node, which has the network.

    The agent answers rounds out of this installation alone; what comes with a run is never started.
    """
    import asyncio
    import os

    from client.node_settings import NODE_FOLDER
    from client.partner_process import AGENT, NODE, Users, be, run_partner
    from shared.logs import Log
    from shared.watched import CALM

    os.environ.update(CALM)
    if only is Only.agent:
        be(AGENT, folder, device)
    elif only is Only.node:
        be(NODE, folder / NODE_FOLDER)
    else:
        asyncio.run(run_partner(folder, device, Users(agent_user, node_user), Log()))
